"""Write a network for LiteRT (TensorFlow Lite), as .tflite."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from nets.export.attached import attach
from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.quiet import quiet
from nets.yolov4 import YOLOv4
from utils.files import write_atomically


def export_litert(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write .tflite with Google's converter from PyTorch; metadata in a zip archive at its end.

    Source: https://ai.google.dev/edge/litert/models/convert_pytorch
    """
    content = convert_litert(DeployedNetwork(model, Form(form.uint8_input, form.decodes)), form.example(model.config))
    if form.precision == "fp16":
        content = _with_half_weights(content)
    write_atomically(path, attach(content, write_metadata(model.config, form, info)))


def convert_litert(network: nn.Module, example: Any) -> bytes:
    """Convert a network to a FlatBuffers file."""
    with quiet():
        import litert_torch

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            litert_torch.convert(network, (example,)).export(str(path))
            return path.read_bytes()


def _with_half_weights(content: bytes) -> bytes:
    """Convert the weights of a file to float16; runtimes that compute in float32 convert them back when loading."""
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    recipe = recipe_manager.RecipeManager()
    for name in (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D):
        recipe.add_weight_only_config(
            regex=".*", operation_name=name, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    with quiet():
        halved = quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe())
        return bytes(halved.quantize().quantized_model)
