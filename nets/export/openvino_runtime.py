"""Run OpenVINO files (.xml and .bin) and ONNX files on OpenVINO, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nets.export.exported import ExportedRuntime
from nets.export.onnx_runtime import read_onnx_metadata
from utils.cpus import num_threads
from utils.errors import wrap_errors

RT_INFO = "mobilenet_yolov4"  # key of our metadata in the file's rt_info
MAX_SHAPES = 4  # number of compiled shapes kept for a file with dynamic sizes


def compile_model(model: Any, precision: str = "fp32") -> Any:
    """Compile an `openvino.Model` for the CPU.

    With precision `fp32` it computes in float32; with `fp16`, `bf16` and `int8`, in the fastest precision of the CPU
    (bf16 with AVX512-BF16 or AMX).
    """
    import openvino

    settings = {"INFERENCE_NUM_THREADS": num_threads(), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return openvino.Core().compile_model(model, "CPU", settings)


class OpenVinoRuntime(ExportedRuntime):
    """Runs an OpenVINO or ONNX file on OpenVINO, on the CPU.

    A file with dynamic sizes is compiled once for each shape in use, because OpenVINO is faster with static shapes.
    """

    name = "openvino"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import openvino

        texts = read_onnx_metadata(path) if path.suffix.lower() == ".onnx" else _texts(path)
        super().__init__(path, texts, device)
        todo = "export it again; the .bin must be in the same folder as the .xml"
        with wrap_errors(path, "OpenVINO cannot read it", todo):
            self.model = openvino.Core().read_model(path)
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
        self._requests[shape] = compile_model(self.model, self.form.precision).create_infer_request()
        return self._requests[shape]


def _texts(path: Path) -> dict[str, str]:
    """Read our metadata from the .xml."""
    import defusedxml.ElementTree as ElementTree

    with wrap_errors(path, "is not an OpenVINO file", "give the .xml written by export.py"):
        root = ElementTree.parse(path).getroot()
    section = None if root is None else root.find(f"rt_info/{RT_INFO}")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}
