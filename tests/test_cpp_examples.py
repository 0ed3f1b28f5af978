"""The C++ examples: they compile if their libraries are installed, and return the detections of this project."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from export_makers import checkpoint, exported, pictures

from imaging.image_io import write_image
from nets import load_detector
from nets.export.form import Form

SOURCES = Path(__file__).resolve().parent.parent / "examples" / "cpp"
# where a release of each was unpacked, or what it was installed into
ROOTS = {"onnxruntime": os.environ.get("ORT_ROOT"), "ncnn": os.environ.get("NCNN_ROOT")}
VARIABLES = {"onnxruntime": "ORT_ROOT", "ncnn": "NCNN_ROOT"}


@pytest.mark.slow
@pytest.mark.parametrize("library", ROOTS)
def test_the_program_gives_the_detections_of_this_project(tmp_path, library) -> None:
    root = ROOTS[library]
    if root is None:
        pytest.skip(f"{VARIABLES[library]} does not name where {library}'s headers and library are")
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no compiler: apt-get install cmake g++ libopencv-dev")
    where = [f"-DORT_ROOT={root}"] if library == "onnxruntime" else [f"-Dncnn_DIR={root}/lib/cmake/ncnn"]
    configured = run("cmake", "-S", SOURCES, "-B", tmp_path / "build", *where)
    if "OpenCV" in configured.stderr and configured.returncode:
        pytest.skip("no OpenCV for C++: apt-get install libopencv-dev")
    assert configured.returncode == 0, configured.stderr
    program = f"{library}_detect"
    built = run("cmake", "--build", tmp_path / "build", "--target", program)
    assert built.returncode == 0, built.stdout + built.stderr
    photo = tmp_path / "photo.png"
    write_image(photo, pictures(1, 104, 80)[0])
    model = exported("onnx", Form(uint8_input=True)) if library == "onnxruntime" else exported("ncnn", Form())
    name = str(model).removesuffix(".ncnn.param")
    done = run(tmp_path / "build" / program, name, photo, env={"LD_LIBRARY_PATH": f"{root}/lib", **os.environ})
    assert done.returncode == 0, done.stderr
    detector = load_detector(checkpoint(), "cpu", "torch")
    expected = detector(photo)
    lines = [line.removeprefix(f"{photo}: ").split(" ") for line in done.stdout.splitlines()]
    assert len(lines) == len(expected) > 3
    assert [line[0] for line in lines] == [detector.config.class_names[label] for label in expected.labels]
    numbers = np.array([[float(value) for value in line[1:]] for line in lines])
    assert np.allclose(numbers[:, 0], expected.scores, atol=2e-3)
    assert np.allclose(numbers[:, 1:], expected.boxes, atol=0.2)


def run(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1500, check=False, env=env)
