"""Write a network for OpenVINO, as .xml and .bin."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nets.export.form import Form, write_metadata
from nets.export.onnx_file import build_onnx
from nets.export.openvino_runtime import RT_INFO
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
from utils.errors import RunError


def export_openvino(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as OpenVINO's .xml and .bin, converted from ONNX, so that both formats have the same graph.

    With `fp16`, weights have half the size, and the device computes in its fastest precision (bf16 on a CPU with it).
    """
    save_openvino(build_openvino(model, form), path, model.config, form, info)


def build_openvino(model: YOLOv4, form: Form) -> Any:
    """The `openvino.Model` of `export_openvino`, weights in float32."""
    import openvino

    proto = build_onnx(model, Form(form.uint8_input, form.decodes, form.nms, form.dynamic))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        # Read by the core instead of convert_model, which may send telemetry.
        return openvino.Core().read_model(path).clone()


def save_openvino(model: Any, path: Path, config: ModelConfig, form: Form, info: dict[str, Any] | None) -> None:
    """Write an `openvino.Model` with metadata, atomically."""
    import openvino

    for key, value in write_metadata(config, form, info).items():
        model.set_rt_info(value, [RT_INFO, key])
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    except OSError as error:
        raise RunError(path.parent, f"cannot be written: {error.strerror}", "choose another folder") from error
    try:
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=form.precision == "fp16")
        os.replace(folder / "model.bin", path.with_suffix(".bin"))
        os.replace(folder / "model.xml", path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
