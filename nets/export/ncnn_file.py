"""Write a network for ncnn, as .ncnn.param, .ncnn.bin and .ncnn.json."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from nets.export.attached import write_beside
from nets.export.form import Form, write_metadata
from nets.export.formats import FORMATS
from nets.export.graph import DeployedNetwork
from nets.export.torchscript_file import torchscript_bytes, trace_torchscript
from nets.yolov4 import YOLOv4
from utils.errors import RunError
from utils.files import write_atomically


def export_ncnn(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write NAME.ncnn.param, NAME.ncnn.bin and NAME.ncnn.json with pnnx, ncnn's converter, from TorchScript.

    With `fp16`, weights have half the size, and devices that support fp16 compute in it.

    Raises:
        RunError: if pnnx fails.

    Source: https://github.com/pnnx/pnnx, "Usage"
    """
    save_ncnn(path, *convert_ncnn(model, path, form), write_metadata(model.config, form, info))


def save_ncnn(path: Path, param: bytes, weights: bytes, texts: dict[str, str]) -> None:
    """Write the three files; the .param, which users open, is written last."""
    param_file, bin_file, json_file = FORMATS["ncnn"].files(path)
    write_beside(json_file, texts, [param, weights])
    write_atomically(bin_file, weights)
    write_atomically(param_file, param)


def convert_ncnn(model: YOLOv4, path: Path, form: Form) -> tuple[bytes, bytes]:
    """Convert a network to the contents of .param and .bin. `path` is only for messages."""
    import pnnx

    height, width = model.config.input_size
    float_form = Form(decodes=form.decodes)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.pt"
        traced = trace_torchscript(DeployedNetwork(model, float_form), float_form.example(model.config))
        source.write_bytes(torchscript_bytes(traced))
        half = int(form.precision == "fp16")
        command = [pnnx.EXEC_PATH, source.name, f"inputshape=[1,3,{height},{width}]", f"fp16={half}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        written = [Path(folder) / f"model.ncnn.{part}" for part in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in written):
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise RunError(path, f"pnnx failed: {lines[-1][:200]}", "try another version of pnnx")
        param, weights = (file.read_bytes() for file in written)
    return param, weights
