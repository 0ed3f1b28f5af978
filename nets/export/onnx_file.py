"""The network as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import MissingExtra

OPSET = 18  # what ONNX Runtime 1.14 (2023) and later, OpenVINO and TensorRT 10 read
INPUT = "images"


def trace_onnx(model: nn.Module, example: Tensor, outputs: Sequence[str], dynamic: Any = None) -> Any:
    """An `onnx.ModelProto` of a network in eval mode.

    Args:
        model: takes one tensor, `images`.
        example: an input of the right shape and type.
        outputs: what to call the outputs, in order.
        dynamic: which sizes of the input are free, as `torch.export` takes it ({axis: Dim}); None fixes all.

    Raises:
        MissingExtra: without onnx and onnxscript.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 -- torch's exporter imports it late, with an error of its own
    except ImportError as error:
        raise MissingExtra("export to ONNX", "onnx and onnxscript", "onnx") from error
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (example,),
                input_names=[INPUT],
                output_names=list(outputs),
                opset_version=OPSET,
                dynamic_shapes=None if dynamic is None else (dynamic,),
                dynamo=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    proto = program.model_proto
    for node in proto.graph.node:  # source lines of whoever exported: half of the file, and nobody's business
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto)
    return proto
