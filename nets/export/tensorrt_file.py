"""Write a network for TensorRT, as an .engine for the NVIDIA GPU of this machine, and run it.

Written after NVIDIA's documentation and not yet run, because no NVIDIA GPU was available. With one,
`python -m tests.long.tensorrt` exports, compares and times an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nets.export.attached import read_beside, write_beside
from nets.export.exported import ExportedRuntime
from nets.export.form import Form, write_metadata
from nets.export.formats import FORMATS
from nets.export.onnx_file import build_onnx
from nets.export.onnx_runtime import INPUT
from nets.yolov4 import YOLOv4
from utils.errors import RunError, UserError
from utils.files import write_atomically


def export_tensorrt(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write an .engine, converted from ONNX, and NAME.engine.json with its metadata.

    Raises:
        RunError: if TensorRT rejects the graph.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)  # explicit batch is the only mode since TensorRT 10
    parser = tensorrt.OnnxParser(network, logger)
    onnx_form = Form(form.uint8_input, form.decodes, form.nms)
    if not parser.parse(build_onnx(model, onnx_form, info).SerializeToString()):
        raise RunError(path, f"TensorRT rejects the graph: {parser.get_error(0)}", "use --format onnx instead")
    config = builder.create_builder_config()
    if form.precision == "fp16":
        config.set_flag(tensorrt.BuilderFlag.FP16)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RunError(path, "TensorRT built no engine", "see its messages above")
    _, json_file = FORMATS["tensorrt"].files(path)
    write_beside(json_file, write_metadata(model.config, form, info), [bytes(engine)])
    write_atomically(path, bytes(engine))


class TensorRtRuntime(ExportedRuntime):
    """Runs an .engine on the GPU it was built for."""

    name = "tensorrt"
    supports_gpu = True

    def __init__(self, path: Path, device: str = "cuda") -> None:
        import tensorrt

        if not torch.cuda.is_available():
            raise UserError(path, "needs an NVIDIA GPU like the one it was built on", "use the .onnx or .pth here")
        _, json_file = FORMATS["tensorrt"].files(path)
        (content,), texts = read_beside(json_file, [path])
        super().__init__(path, texts, device)
        self.engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(content)
        if self.engine is None:
            raise UserError(path, "was built by another TensorRT or for another GPU", "export it again on this machine")
        self.context = self.engine.create_execution_context()
        self.device = torch.device("cuda" if device.startswith("cpu") else device)
        self._outputs = []
        for name in self.form.outputs:
            self._outputs.append(torch.empty(tuple(self.engine.get_tensor_shape(name)), device=self.device))
            self.context.set_tensor_address(name, self._outputs[-1].data_ptr())

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        inputs = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        self.context.set_tensor_address(INPUT, inputs.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT did not run")
        stream.synchronize()
        return [output.cpu().numpy() for output in self._outputs]
