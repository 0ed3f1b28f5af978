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
from nets.export.onnx_file import build_onnx, read_onnx_metadata
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
from utils.errors import MissingExtra, RunError, UserError

RT_INFO = "mobilenet_yolov4"  # where our metadata stands in the file's rt_info
MAX_SHAPES = 4  # compiled forms of a file for any size that are kept


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


def read_model(path: Path) -> Any:
    """Any file that OpenVINO reads (.xml, .onnx), as an `openvino.Model`. Raises UserError."""
    try:
        return import_openvino().Core().read_model(path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        todo = "export it again; the .bin must lie beside the .xml"
        raise UserError(path, f"OpenVINO cannot read it: {reason}", todo) from error


def compile_model(model: Any, precision: str = "fp32", threads: int | None = None) -> Any:
    """Compile an `openvino.Model` for the CPU.

    Args:
        model: what `read_model` gives.
        precision: `fp32` computes in float32; with `fp16`, `bf16` and `int8` OpenVINO takes the quickest there is
            (bf16 on a CPU with AVX512-BF16 or AMX).
        threads: None takes torch's number.
    """
    settings = {"INFERENCE_NUM_THREADS": threads or num_threads(), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return import_openvino().Core().compile_model(model, "CPU", settings)


class OpenVinoRuntime(ExportedRuntime):
    """An OpenVINO or ONNX file of ours on OpenVINO, on the CPU.

    A file for any size is compiled once for each shape that comes: OpenVINO is quicker at shapes it knows.
    """

    name = "openvino"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        check_cpu("OpenVINO", device)
        texts = read_onnx_metadata(path) if path.suffix.lower() == ".onnx" else _texts(path)
        config, form = read_metadata(path, texts)
        super().__init__(path, config, form)
        self.threads, self.model = threads, read_model(path)
        self._requests: dict[tuple[int, ...], Any] = {}

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        request = self._requests.get(images.shape) or self._compile(images.shape)
        results = request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return [results[output].copy() for output in request.model_outputs]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        if self.form.dynamic:
            self.model.reshape(list(shape))
        if len(self._requests) == MAX_SHAPES:
            self._requests.pop(next(iter(self._requests)))
        compiled = compile_model(self.model, self.form.precision, self.threads)
        self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]


def _texts(path: Path) -> dict[str, str]:
    """Our metadata, from the .xml itself (the file is small: the weights are in the .bin)."""
    import defusedxml.ElementTree as ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise UserError(path, f"is no OpenVINO file: {error}", "give the .xml that export.py wrote") from error
    section = None if root is None else root.find(f"rt_info/{RT_INFO}")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}
