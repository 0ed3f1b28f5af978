"""Run LiteRT (TensorFlow Lite) files (Android, boards, microcontrollers), without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nets.export.attached import detach
from nets.export.exported import ExportedRuntime, check_cpu
from nets.export.form import read_metadata
from nets.export.quiet import quiet
from utils.cpus import num_threads
from utils.errors import MissingExtra, UserError


class LiteRtRuntime(ExportedRuntime):
    """Runs a .tflite file on LiteRT with XNNPACK, on the CPU."""

    name = "litert"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        check_cpu("LiteRT", device)
        try:
            with quiet():
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingExtra("LiteRT files", "ai-edge-litert", "litert") from error
        content, texts = detach(path)
        config, form = read_metadata(path, texts)
        super().__init__(path, config, form)
        try:
            with quiet():
                self.interpreter = Interpreter(model_content=content, num_threads=threads or num_threads())
                self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(path, f"LiteRT cannot load it: {reason}", "export it again") from error
        self._input = self.interpreter.get_input_details()[0]
        # The names end in the number of the output; the file may list them in another order.
        self._outputs = sorted(self.interpreter.get_output_details(), key=lambda each: each["name"])

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
