"""examples/onnx_only.py: it needs neither torch nor this project, and returns the same detections."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from export_makers import checkpoint, exported, pictures

from imaging.image_io import write_image
from nets.export.form import Form
from prediction.detector import load_detector

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "onnx_only.py"
# an environment without torch and without this platform: importing either fails, as if it were not installed
BLOCKED = """
import os, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "nets", "utils", "onnx", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
sys.path[:] = [os.path.dirname(sys.argv[0]), *(p for p in sys.path if p)]  # as Python does for a script
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(folder: Path, *arguments: str, example: str = EXAMPLE.name) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, str(EXAMPLE.with_name(example)), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500, check=False)


@pytest.mark.parametrize("uint8_input", [False, True])
def test_it_gives_the_detections_of_this_project_without_torch(tmp_path, uint8_input) -> None:
    names = [f"photo{i}.png" for i in range(2)]
    for name, picture in zip(names, pictures(2, 104, 80), strict=True):
        write_image(tmp_path / name, picture)
    model = exported("onnx", Form(uint8_input=uint8_input))
    done = run_example(tmp_path, str(model), *names)
    assert done.returncode == 0, done.stderr
    detector = load_detector(checkpoint(), "cpu")
    for name in names:
        lines = [line.rsplit(" ", 5) for line in done.stdout.splitlines() if line.startswith(name)]
        found = detector(tmp_path / name)
        assert len(lines) == len(found) > 3
        labels = [line[0].removeprefix(f"{name}: ") for line in lines]
        assert labels == [detector.config.class_names[label] for label in found.labels]
        numbers = np.array([[float(value) for value in line[1:]] for line in lines])
        assert np.allclose(numbers[:, 0], found.scores, atol=1e-3)
        assert np.allclose(numbers[:, 1:], found.boxes, atol=0.1)


def test_its_usage_errors_are_clear(tmp_path) -> None:
    assert "usage: python onnx_only.py" in run_example(tmp_path).stderr


def test_it_is_a_short_file() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 90


def test_the_camera_example_finds_the_same_in_a_video_without_torch(tmp_path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (80, 104))
    for picture in pictures(3, 104, 80):
        writer.write(picture[..., ::-1])
    writer.release()
    shutil.copy(exported("onnx", Form(uint8_input=True)), tmp_path / "a.onnx")
    done = run_example(tmp_path, "a.onnx", "video.avi", "--threads", "1", "--rate", "50", example="camera.py")
    assert done.returncode == 0, done.stderr
    names = load_detector(checkpoint(), "cpu").config.class_names
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    assert len(lines) > 3 and all(line[0] in names and 0 < float(line[1]) <= 1 for line in lines)
    done = run_example(tmp_path, "a.onnx", "nowhere.avi", example="camera.py")
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere.avi")
