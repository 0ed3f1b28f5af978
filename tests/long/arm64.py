"""Run exported files in an emulated arm64 Debian with the arm64 wheels of the libraries, and compare the outputs.

    python -m tests.long.arm64 best.onnx best.ncnn.param best.tflite

Requires Debian's debootstrap and apt, access to the Debian archive and PyPI, and qemu-user 10 or later (ONNX Runtime
and LiteRT crash in Debian 12's 7.2). The arm64 system is not installed or booted: its packages are unpacked, and the
emulator runs their Python on one file after the other. Times in an emulator are not meaningful and are not printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from nets.export.exported import ExportedRuntime, as_float
from nets.export.load import load_runtime
from utils.errors import RunError, UserError, run_command

SUITE, PYTHON = "bookworm", "3.11"  # the Debian of Raspberry Pi OS 12, and its Python
PACKAGES = ("numpy", "onnxruntime", "ncnn", "ai-edge-litert")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# what runs inside: the library alone, as examples do it; arrays go through a file
INSIDE = r"""
import sys, numpy as np
path, data, result = sys.argv[1:]
x = np.load(data)
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"images": x})
elif path.endswith(".tflite"):
    from ai_edge_litert.interpreter import Interpreter
    network = Interpreter(path, num_threads=1)
    network.allocate_tensors()
    network.set_tensor(network.get_input_details()[0]["index"], x)
    network.invoke()
    details = sorted(network.get_output_details(), key=lambda each: each["name"])
    outputs = [network.get_tensor(each["index"]) for each in details]
else:
    import ncnn
    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):  # as for fp32 files
        setattr(net.opt, name, False)
    assert not net.load_param(path) and not net.load_model(path[:-5] + "bin")
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x[0]))
    outputs = [np.array(extractor.extract(name)[1])[None] for name in net.output_names()]
np.savez(result, *outputs)
"""


def prepare(root: Path) -> None:
    """Unpack arm64 Debian with Python, and the wheels into /opt/site; what is there stays."""
    if not (root / "usr/bin/python3").exists():
        packages = "python3,libgomp1,libstdc++6"
        command = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={packages}", SUITE]
        _run([*command, str(root)], "apt-get install debootstrap, and be root")
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(root)], "apt-get install dpkg")
    wheels, site = root / "opt/wheels", root / "opt/site"
    if not site.is_dir():
        platforms = [part for name in PLATFORMS for part in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", *platforms]
        _run([*command, "--python-version", PYTHON, "-d", str(wheels), *PACKAGES], "look at pip's message")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def compare(path: Path, root: Path, emulator: str) -> dict[str, object]:
    """Largest differences of boxes and scores between the emulated outputs and those of this machine."""
    runtime = load_runtime(path, "cpu")
    assert isinstance(runtime, ExportedRuntime)
    height, width = runtime.config.input_size
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    inputs = image if runtime.form.uint8_input else as_float(image)
    expected = [np.asarray(each) for each in runtime.call(inputs)]
    with tempfile.TemporaryDirectory() as folder:
        script, data, result = (Path(folder) / name for name in ("inside.py", "input.npy", "outputs.npz"))
        script.write_text(INSIDE)
        np.save(data, inputs)
        settings = ["-L", str(root), "-E", f"PYTHONPATH={root}/opt/site", "-E", "OMP_NUM_THREADS=1"]
        command = [emulator, *settings, str(root / "usr/bin/python3"), str(script), str(path.resolve())]
        _run([*command, str(data), str(result)], "qemu-user must be 10 or later: apt-get install -t trixie qemu-user")
        with np.load(result) as found:
            outputs = [found[name] for name in found.files]
    differences = [float(np.abs(a - b).max()) for a, b in zip(expected, outputs, strict=True)]
    size = path.stat().st_size / 1e6
    return {"file": path.name, "runtime": runtime.name, "MB": round(size, 1), "largest differences": differences}


def _run(command: list[str], todo: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise UserError(command[0], "is not installed", todo) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise RunError(command[0], lines[-1][:200], todo)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="exported files: .onnx, .ncnn.param, .tflite")
    parser.add_argument("--root", type=Path, default=Path("/var/tmp/yolov4-arm64"), help="where the arm64 system lies")
    parser.add_argument("--qemu", default=os.environ.get("QEMU_AARCH64", "qemu-aarch64"), help="the emulator")
    parser.add_argument("--score", type=float, default=0.02, help="largest difference of a score that is allowed")
    options = parser.parse_args(argv)
    prepare(options.root)
    worst = 0.0
    for path in options.files:
        found = compare(path, options.root, options.qemu)
        print(json.dumps(found), flush=True)
        worst = max(worst, found["largest differences"][-1])  # type: ignore[index]
    if worst > options.score:
        print(f"error: a score differs by {worst:.3g}, more than {options.score:g}")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
