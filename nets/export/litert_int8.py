"""LiteRT int8: Google's quantiser, calibrated on real images; with raw maps, all tensors are integers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.attached import attach
from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.litert_file import convert_litert
from nets.export.litert_runtime import open_interpreter, output_details
from nets.export.quantize import PROBES, Node, Run, as_inputs, choose_layers
from nets.export.quiet import quiet
from nets.yolov4 import YOLOv4
from utils.cpus import num_threads
from utils.files import write_atomically

INPUT_NAME = "args_0"  # the converter's name of the first argument


def quantize_litert(
    model: YOLOv4, path: Path, form: Form, photos: Sequence[np.ndarray], info: dict[str, Any] | None = None
) -> str:
    """Write an int8 .tflite (weights per channel, activations per tensor).

    With raw maps, everything is integer, including input and outputs, as Coral and the NPUs of microcontrollers
    require. With boxes and scores, decoding and the most sensitive layers remain in floating point.

    Source: https://ai.google.dev/edge/litert/models/post_training_quantization
    """
    with quiet():
        from ai_edge_quantizer import qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.algorithm_manager import AlgorithmName
    inputs, example = as_inputs(photos, model.config, form), form.example(model.config)
    if not form.decodes:  # a float input of 0 to 255, which after quantisation is the uint8 input
        inputs, example = [each.astype(np.float32) for each in inputs], example.float()
    content = convert_litert(DeployedNetwork(model, Form(form.uint8_input, form.decodes)), example)
    everything, operations = qtyping.TFLOperationName.ALL_SUPPORTED, qtyping.TFLOperationName

    def quantized(left_out: set[str], integers_only: bool) -> Any:
        recipe = recipe_manager.RecipeManager()
        recipe.add_static_config(regex=".*", operation_name=everything, activation_num_bits=8, weight_num_bits=8)
        if not integers_only:
            for border in (operations.INPUT, operations.OUTPUT):
                recipe.add_quantization_config(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
        for name in sorted(left_out):
            recipe.add_quantization_config(
                f"^{re.escape(name)};?$", everything, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
        return quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe())

    with quiet():
        samples = {"serving_default": [{INPUT_NAME: each} for each in inputs]}
        ranges = quantized(set(), True).calibrate(samples, num_threads=num_threads())

    def build(left_out: set[str], integers_only: bool = False) -> bytes:
        with quiet():
            return bytes(quantized(left_out, integers_only).quantize(ranges).quantized_model)

    if form.decodes:
        best, kept = choose_layers(build, _run, _run(content), _nodes(content), inputs[:PROBES])
    else:
        best, kept = build(set(), integers_only=True), "nothing"
    texts = write_metadata(model.config, form, {**(info or {}), "floating_point": kept})
    write_atomically(path, attach(best, texts))
    return kept


def _run(content: bytes) -> Run:
    interpreter = open_interpreter(content)
    index = interpreter.get_input_details()[0]["index"]
    outputs = output_details(interpreter)

    def run(image: np.ndarray) -> list[np.ndarray]:
        interpreter.set_tensor(index, image)
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in outputs]

    return run


def _nodes(content: bytes) -> list[Node]:
    """The operations of a file, each named after its first output, as in the quantiser."""
    interpreter = open_interpreter(content)
    names = {each["index"]: each["name"] for each in interpreter.get_tensor_details()}
    operations = [each for each in interpreter._get_ops_details() if each["op_name"] != "DELEGATE"]
    made_by = {index: names[each["outputs"][0]] for each in operations for index in each["outputs"]}
    return [
        Node(names[each["outputs"][0]], each["op_name"], tuple(made_by[i] for i in each["inputs"] if i in made_by))
        for each in operations
    ]
