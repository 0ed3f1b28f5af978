"""The detector: preprocessing, network and postprocessing of RGB images."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from imaging.detections import Detections
from nets.export.load import load_runtime
from nets.model_config import STRIDES, ModelConfig, input_size_option
from nets.runtime import Runtime
from nets.weights.bundled import find_model
from utils.errors import UserError
from utils.thresholds import OWN_THRESHOLDS, Thresholds

if TYPE_CHECKING:
    from nets.yolov4 import YOLOv4

Own = TypeVar("Own", bound="Detector")


class Detector:
    """A network with its preprocessing and postprocessing.

    Args:
        runtime: the network (see `nets.runtime`).

    Attributes:
        config: the model's configuration; `config.class_names[label]` names a detection.
        timings: total seconds spent in `preprocess`, `network` and `postprocess`.

    It is thread-safe: one thread runs the network while others do preprocessing and postprocessing.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.timings = {"preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
        self._turn = threading.Lock()
        self._is_sized = False  # whether the input size was set by the user
        self._opened: tuple[str, str, str] | None = None  # the arguments of `open`, to unpickle

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the model file is, and the configuration; unpickling loads the file."""
        if self._opened is None:
            raise UserError("pickle", "this detector has no model file", "save a checkpoint, and load it")
        return _reopen, (type(self), self._opened, self.config, self._is_sized)

    @classmethod
    def from_model(cls: type[Own], model: YOLOv4, device: str = "cpu") -> Own:
        """A detector with a copy of the model's current weights."""
        from nets.torch_runtime import TorchRuntime  # imported here: exported files run without PyTorch

        return cls(TorchRuntime(model, device))

    @classmethod
    def open(
        cls: type[Own], model: str | os.PathLike[str] | None = None, device: str = "auto", runtime: str = "auto"
    ) -> Own:
        """Load a detector from a model file, the name of bundled weights, or a run's folder (see `find_model`)."""
        path = find_model(model)
        detector = cls(load_runtime(path, device, runtime))
        detector._opened = os.path.abspath(path), device, runtime
        return detector

    @property
    def config(self) -> ModelConfig:
        return self.runtime.config

    def set_input_size(self, input_size: Sequence[int] | int) -> None:
        """Set the input size, (height, width). Raises UserError if the file was exported for a fixed size."""
        size = input_size_option(input_size)
        if self.runtime.fixed_size and size != self.config.input_size:
            raise UserError(
                "--input-size",
                f"this file takes {self.config.input_size[0]} x {self.config.input_size[1]} only",
                "export it with --dynamic, or for that size",
            )
        self.runtime.config = self.config.replace(input_size=size)
        self._is_sized = True

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """Minimum (height, width) at which to decode an image of this size: see `Letterbox.decoded_size`."""
        return self.config.letterbox.decoded_size(height, width)

    def detect_batch(
        self,
        images: Sequence[np.ndarray],
        thresholds: Thresholds = OWN_THRESHOLDS,
        sizes: Sequence[tuple[int, int]] | None = None,
        trim: bool = False,
    ) -> list[Detections]:
        """Detect objects in RGB images (H, W, 3) uint8 of any sizes. Boxes are in the pixels of each image.

        Args:
            images: the images.
            thresholds: see `Thresholds`.
            sizes: original (height, width) of images that were decoded at a reduced size (`decoded_size`). Boxes are
                then in pixels of the original images.
            trim: leave out rows and columns of the input that would be padding in all these images, which saves up to
                half of the time for video. It has no effect on a file with a fixed size, or after `set_input_size`.
        """
        if not images:
            return []
        started = time.perf_counter()
        letterbox, names = self.config.letterbox, self.config.class_names
        sizes = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else sizes
        if trim and not (self.runtime.fixed_size or self._is_sized):
            letterbox = letterbox.trimmed(sizes, STRIDES[-1])
        batch = np.empty((len(images), *letterbox.input_size, 3), np.uint8)
        for image, size, place in zip(images, sizes, batch, strict=True):
            letterbox.apply(image, place, size)
        prepared = time.perf_counter()
        results: list[Detections] = []
        spent = {"preprocess": prepared - started, "network": 0.0, "postprocess": 0.0}
        for part in self._parts(batch):
            with self._turn:
                before = time.perf_counter()
                outputs = self.runtime.run(part)
                after = time.perf_counter()
            results += self.runtime.read(outputs, thresholds)
            spent["network"] += after - before
            spent["postprocess"] += time.perf_counter() - after
        results = results[: len(images)]
        for number, (size, found) in enumerate(zip(sizes, results, strict=True)):
            boxes = letterbox.boxes_to_image(found.boxes, *size)
            results[number] = Detections(boxes, found.scores, found.labels, names=names)
        with self._turn:
            for name, seconds in spent.items():
                self.timings[name] += seconds
        return results

    def _parts(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Split the batch into the batch sizes that the runtime accepts; the last part is padded with zeros."""
        size = self.runtime.fixed_batch
        if size is None:
            yield batch
            return
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            yield part


def _reopen(kind: type[Detector], opened: tuple[str, str, str], config: ModelConfig, is_sized: bool) -> Detector:
    detector = kind.open(*opened)
    detector.runtime.config, detector._is_sized = config, is_sized
    return detector
