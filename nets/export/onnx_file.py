"""Write a network as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.onnx_nms import append_nms
from nets.export.onnx_runtime import INPUT
from nets.export.quiet import quiet
from nets.model_config import STRIDES
from nets.yolov4 import YOLOv4
from utils.errors import require_packages
from utils.files import write_atomically

OPSET = 18  # supported by ONNX Runtime 1.14 (2023) and later, OpenVINO and TensorRT 10


def export_onnx(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as ONNX, with classes, sizes and thresholds in its metadata."""
    write_atomically(path, build_onnx(model, form, info).SerializeToString())


def build_onnx(model: YOLOv4, form: Form, info: dict[str, Any] | None = None) -> Any:
    """The `onnx.ModelProto` of `export_onnx`."""
    network = DeployedNetwork(model, form)
    if form.dynamic:
        proto = _trace_dynamic(network)
    else:
        proto = trace_onnx(network, (form.example(model.config),), form.outputs)
    if form.nms:
        append_nms(proto, model.config, form)
    set_metadata(proto, write_metadata(model.config, form, info))
    return proto


def set_metadata(proto: Any, texts: dict[str, str]) -> None:
    """Replace the file's metadata."""
    del proto.metadata_props[:]
    for key, value in texts.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.doc_string = "mobilenet-yolov4", texts.get("description", "")


def _trace_dynamic(network: DeployedNetwork) -> Any:
    """Trace a network for any batch and size.

    The graph of the convolutions does not depend on the size. It is traced for one size, and then the sizes of its
    inputs and outputs are made dynamic, because the exporter takes minutes to derive the same. Decoding depends on the
    size, and is traced with dynamic sizes.
    """
    import onnx

    form, config = network.form, network.config
    maps = len(network.lasts) * len(network.lasts[0])
    names = [f"map{i}" for i in range(maps)] if form.decodes else list(form.outputs)
    body = trace_onnx(_Part(network.compute_maps), (form.example(config),), names)
    _free_sizes(body, form)
    if not form.decodes:
        return body
    batch, rows, columns = (torch.export.Dim(name, min=1, max=512) for name in ("batch", "rows", "columns"))
    examples, free = [], []
    for level, convs in enumerate(network.lasts):
        times = STRIDES[-1] // STRIDES[level]
        for conv in convs:
            examples.append(torch.rand(2, conv.out_channels, 3 * times, 4 * times))
            free.append({0: batch, 2: times * rows, 3: times * columns})
    tail = trace_onnx(_Part(network.decode), tuple(examples), form.outputs, tuple(free), [f"in_{n}" for n in names])
    tail = onnx.compose.add_prefix(tail, "decode_", rename_inputs=False, rename_outputs=False)
    merged = onnx.compose.merge_models(body, tail, [(n, f"in_{n}") for n in names])
    for output in merged.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    return merged


class _Part(nn.Module):
    """A module whose forward is the given method."""

    def __init__(self, method: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.method = method

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.method(*inputs)


def _free_sizes(proto: Any, form: Form) -> None:
    spatial = (1, 2) if form.uint8_input else (2, 3)
    for value, axes in [(proto.graph.input[0], spatial), *((output, (2, 3)) for output in proto.graph.output)]:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        for axis, name in zip(axes, ("height", "width"), strict=True):
            dims[axis].dim_param = name if value is proto.graph.input[0] else f"{value.name}_{name}"
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def trace_onnx(
    model: nn.Module,
    examples: tuple[Tensor, ...],
    outputs: Sequence[str],
    free: Any = None,
    inputs: Sequence[str] = (INPUT,),
) -> Any:
    """Trace a network as an `onnx.ModelProto`.

    `free` are the dynamic sizes of each input, as in `torch.export` ({axis: Dim}); None if all are fixed.
    """
    require_packages("export to ONNX", ["onnx", "onnxscript"], "onnx")
    import onnx

    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            examples,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=None if free is None else (free,),
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    for node in proto.graph.node:  # stack traces with source paths: half of the file's size, and private
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto)
    return proto
