"""TensorRT: writing a network as an .engine for the NVIDIA GPU of this machine, and running it there.

Written to NVIDIA's documentation and never run: no machine of this project's has had an NVIDIA GPU. On one that has,
`python -m tests.long.tensorrt` exports, compares and times it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nets.export.attached import read_beside, write_beside
from nets.export.exported import ExportedRuntime
from nets.export.form import Form, read_metadata, write_metadata
from nets.export.onnx_file import build_onnx
from nets.export.onnx_runtime import INPUT
from nets.yolov4 import YOLOv4
from utils.errors import MissingExtra, RunError, UserError
from utils.files import write_atomically


def import_tensorrt() -> Any:
    """The package. Raises MissingExtra without it."""
    try:
        import tensorrt
    except ImportError as error:
        raise MissingExtra("TensorRT files", "tensorrt", "tensorrt") from error
    return tensorrt


def metadata_file(path: Path) -> Path:
    """NAME.engine.json beside NAME.engine."""
    return path.with_name(f"{path.name}.json")


def export_tensorrt(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write an .engine through ONNX, and NAME.engine.json with its metadata.

    Args:
        model: in eval mode.
        path: the file.
        form: precision `fp32` or `fp16`.
        info: what else the file should say, plain types.

    Raises:
        MissingExtra: without tensorrt.
        RunError: if TensorRT does not take the graph.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
    """
    tensorrt = import_tensorrt()
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)  # explicit batch is the only kind since TensorRT 10
    parser = tensorrt.OnnxParser(network, logger)
    onnx_form = Form(form.uint8_input, form.decodes, form.nms)
    if not parser.parse(build_onnx(model, onnx_form, info).SerializeToString()):
        raise RunError(path, f"TensorRT does not take the graph: {parser.get_error(0)}", "export --format onnx instead")
    config = builder.create_builder_config()
    if form.precision == "fp16":
        config.set_flag(tensorrt.BuilderFlag.FP16)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RunError(path, "TensorRT built no engine", "see its messages above")
    write_beside(metadata_file(path), write_metadata(model.config, form, info), [bytes(engine)])
    write_atomically(path, bytes(engine))


class TensorRtRuntime(ExportedRuntime):
    """An .engine of ours on the GPU it was built for."""

    name = "tensorrt"

    def __init__(self, path: Path, device: str = "cuda") -> None:
        if not torch.cuda.is_available():
            raise UserError(path, "needs the NVIDIA GPU that it was built on", "use the .onnx or .pth here")
        tensorrt = import_tensorrt()
        (content,), texts = read_beside(metadata_file(path), [path])
        config, form = read_metadata(path, texts)
        super().__init__(path, config, form)
        self.engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(content)
        if self.engine is None:
            raise UserError(path, "was built by another TensorRT or for another GPU", "export it again on this machine")
        self.context = self.engine.create_execution_context()
        self.device = torch.device("cuda" if device.startswith("cpu") else device)
        self._outputs = {
            name: torch.empty(tuple(self.engine.get_tensor_shape(name)), device=self.device) for name in form.outputs
        }
        for name, output in self._outputs.items():
            self.context.set_tensor_address(name, output.data_ptr())

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        inputs = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        self.context.set_tensor_address(INPUT, inputs.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT did not run")
        stream.synchronize()
        return [output.cpu().numpy() for output in self._outputs.values()]
