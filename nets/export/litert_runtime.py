"""Run LiteRT (TensorFlow Lite) files (Android, boards, microcontrollers), without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nets.export.attached import detach
from nets.export.exported import ExportedRuntime
from nets.export.quiet import quiet
from utils.cpus import num_threads
from utils.errors import wrap_errors


def open_interpreter(content: bytes) -> Any:
    """A LiteRT interpreter of a file's content, ready to run."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content, num_threads=num_threads())
        interpreter.allocate_tensors()
    return interpreter


def output_details(interpreter: Any) -> list[dict[str, Any]]:
    """The outputs in the network's order: their names end in its number, but a file may list them otherwise."""
    return sorted(interpreter.get_output_details(), key=lambda each: each["name"])


class LiteRtRuntime(ExportedRuntime):
    """Runs a .tflite file on LiteRT with XNNPACK, on the CPU."""

    name = "litert"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        content, texts = detach(path)
        super().__init__(path, texts, device)
        with wrap_errors(path, "LiteRT cannot load it", "export it again"):
            self.interpreter = open_interpreter(content)
        self._input = self.interpreter.get_input_details()[0]
        self._outputs = output_details(self.interpreter)

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        self.interpreter.set_tensor(self._input["index"], _quantized(images, self._input))
        self.interpreter.invoke()
        return [_dequantized(self.interpreter.get_tensor(each["index"]), each) for each in self._outputs]


def _scale(details: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and zero point of an integer tensor; None for a tensor that is not quantised."""
    parameters = details["quantization_parameters"]
    return (parameters["scales"], parameters["zero_points"]) if len(parameters["scales"]) else None


def _quantized(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    if (scale := _scale(details)) is None:
        return values
    limits = np.iinfo(details["dtype"])
    whole = np.rint(values.astype(np.float32) / scale[0] + scale[1])
    return whole.clip(limits.min, limits.max).astype(details["dtype"])


def _dequantized(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    if (scale := _scale(details)) is None:
        return values
    return (values.astype(np.float32) - scale[1]) * scale[0]
