"""Start-up: commands import only what they need; no PyTorch for --help, usage errors and cached exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_makers import checkpoint, pictures

from imaging.image_io import write_image
from nets.export.load import load_runtime

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train", "eval", "predict", "export", "dataset", "serve", "benchmark")
HEAVY = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "cv2",
    "matplotlib",
    "onnxruntime",
    "openvino",
    "pycocotools",
    "albumentations",
    "scipy",
)
# runs a script as `python X.py ...` does, and says what it imported
RUN = """
import runpy, sys
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code or 0
print("imported:", *sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def run(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> tuple[int, set[str], str]:
    """Exit code, the imported packages of `HEAVY`, and the output."""
    program = RUN.format(root=str(ROOT), argv=[str(ROOT / f"{script}.py"), *arguments], heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert lines and lines[-1].startswith("imported:"), done.stderr
    return done.returncode, set(lines[-1].split()[1:]), done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_usage_errors_import_nothing_heavy(script: str) -> None:
    code, imported, text = run(script, "--help")
    assert code == 0 and not imported and "usage" in text
    code, imported, text = run(script, "--no-such-option")
    assert code == 2 and not imported and "error: " in text


def test_the_parts_that_run_exports_import_no_pytorch() -> None:
    for module in ("nets", "nets.detector", "nets.export.load", "prediction.detector", "prediction.command"):
        program = f"import sys, {module}; assert not {{'torch', 'torchvision'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=1500)


def test_prediction_in_pytorch_imports_no_torchvision(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.jpg", pictures(1, 90, 120)[0])
    command = ("photo.jpg", "--checkpoint", "nano", "--output", "out", "--device", "cpu", "--heatmap")
    code, imported, text = run("predict", *command, cwd=tmp_path, MOBILENET_YOLO_RUNTIME="torch")
    assert code == 0 and "torch" in imported and not {"torchvision", "torch._dynamo"} & imported, text


@pytest.mark.slow
def test_a_cached_export_is_run_without_importing_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    cache = {"MOBILENET_YOLO_CACHE": str(tmp_path / "cache"), "MOBILENET_YOLO_RUNTIME": "onnxruntime"}
    before = {name: os.environ.get(name) for name in cache}
    os.environ.update(cache)
    try:
        load_runtime(checkpoint(), "cpu")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    write_image(tmp_path / "photo.jpg", pictures(1, 90, 120)[0])
    options = ("photo.jpg", "--checkpoint", str(checkpoint()), "--output", "out", "--json", "--save", "crops")
    code, imported, text = run("predict", *options, "--heatmap", "--device", "cpu", cwd=tmp_path, **cache)
    assert code == 0 and not {"torch", "torchvision", "matplotlib"} & imported, text
    assert {"onnxruntime", "cv2"} <= imported
    assert {"photo.jpg", "detections.json", "photo_heatmap.jpg"} <= {path.name for path in (tmp_path / "out").iterdir()}
    program = "import sys; from nets import load_detector; d = load_detector(sys.argv[1]); d('photo.jpg'); "
    subprocess.run(
        [sys.executable, "-c", program + "assert 'torch' not in sys.modules", str(checkpoint())],
        cwd=tmp_path,
        env={**os.environ, **cache, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=1500,
    )
