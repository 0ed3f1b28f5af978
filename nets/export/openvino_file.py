"""OpenVINO: writing a network as .xml and .bin, and running it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.exported import ExportedRuntime, check_cpu, num_threads
from nets.export.graph import Form, read_metadata, write_metadata
from nets.export.onnx_file import build_onnx
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
from utils.errors import MissingExtra, RunError, UserError

RT_INFO = "mobilenet_yolov4"  # where our metadata stands in the file's rt_info


def import_openvino() -> Any:
    """The package. Raises MissingExtra without it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("OpenVINO files", "openvino", "openvino") from error
    return openvino


def export_openvino(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as OpenVINO's .xml with its .bin beside it; by way of ONNX, so that both are one graph.

    Args:
        model: in eval mode.
        path: the .xml.
        form: precision `fp32`, or `fp16`: weights of half the size, and the device computes in what it does best
            (bf16 on a CPU that has it).
        info: what else the file should say, plain types.

    Raises:
        MissingExtra: without openvino, onnx and onnxscript.
    """
    save_openvino(build_openvino(model, form), path, model.config, form, info)


def build_openvino(model: YOLOv4, form: Form) -> Any:
    """The `openvino.Model` of `export_openvino`, weights in float32."""
    openvino = import_openvino()
    proto = build_onnx(model, Form(form.uint8_input, form.decodes, form.nms, form.dynamic))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        # reading by the core, not by convert_model: that one sends telemetry, if it is allowed to
        return openvino.Core().read_model(path).clone()


def save_openvino(model: Any, path: Path, config: ModelConfig, form: Form, info: dict[str, Any] | None) -> None:
    """Write an `openvino.Model` with our metadata, whole or not at all."""
    openvino = import_openvino()
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


def compile_model(path: Path, precision: str = "fp32", threads: int | None = None) -> tuple[Any, Any]:
    """Read and compile any file that OpenVINO reads, for the CPU.

    Args:
        path: an .xml or .onnx file.
        precision: `fp32` computes in float32; with `fp16`, `bf16` and `int8` OpenVINO takes the quickest there is
            (bf16 on a CPU with AVX512-BF16 or AMX).
        threads: None takes torch's number.

    Returns:
        The model and its compiled form.
    """
    openvino = import_openvino()
    settings = {"INFERENCE_NUM_THREADS": threads or num_threads(), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    try:
        model = core.read_model(path)
        return model, core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        todo = "export it again; the .bin must lie beside the .xml"
        raise UserError(path, f"OpenVINO cannot load it: {reason}", todo) from error


class OpenVinoRuntime(ExportedRuntime):
    """An OpenVINO file of ours (.xml) on the CPU."""

    name = "openvino"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        check_cpu("OpenVINO", device)
        config, form = read_metadata(path, _texts(path))
        _, self.compiled = compile_model(path, form.precision, threads)
        self.request = self.compiled.create_infer_request()
        super().__init__(path, config, form)

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        self.batch = len(images)
        results = self.request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return [results[output].copy() for output in self.compiled.outputs]


def _texts(path: Path) -> dict[str, str]:
    """Our metadata, from the .xml itself (the file is small: the weights are in the .bin)."""
    import defusedxml.ElementTree as ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise UserError(path, f"is no OpenVINO file: {error}", "give the .xml that export.py wrote") from error
    section = root.find(f"rt_info/{RT_INFO}")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}
