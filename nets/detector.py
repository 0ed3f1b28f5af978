"""Image in, detections in its own pixels out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.load import load_runtime
from nets.model_config import ModelConfig, input_size_option
from nets.runtime import Runtime, TorchRuntime
from nets.yolov4 import YOLOv4
from utils.detections import Detections
from utils.errors import UserError
from utils.images import read_image

# the weights in the box, best first: what runs where no checkpoint is named
BUILT_IN = ("small.pth", "nano.pth")
MODEL_DATA = Path(__file__).resolve().parent.parent / "model_data"


class Detector:
    """A network with everything around it that turns pictures into objects.

    Args:
        runtime: the network (see `nets.runtime`).

    Attributes:
        config: the model's configuration; `config.class_names[label]` names a detection.
        timings: seconds spent so far in `preprocess`, `network`, `postprocess`.

    Several threads may use it at once: one is in the network while others prepare and read.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.timings = {"preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
        self._turn = threading.Lock()

    @classmethod
    def from_model(cls, model: YOLOv4, device: str = "cpu") -> Detector:
        """A detector on a copy of a network's present weights."""
        return cls(TorchRuntime(model, device))

    @property
    def config(self) -> ModelConfig:
        return self.runtime.config

    def set_input_size(self, input_size: Sequence[int] | int) -> None:
        """Run at another (height, width). Raises UserError if the file was exported for one size."""
        size = input_size_option(input_size)
        if self.runtime.fixed_size and size != self.config.input_size:
            raise UserError(
                "--input-size",
                f"this file takes {self.config.input_size[0]} x {self.config.input_size[1]} only",
                "export it with --dynamic, or for that size",
            )
        self.runtime.config = self.config.replace(input_size=size)

    def __call__(self, images: Any, **thresholds: Any) -> Any:
        """Find the objects of one image or of several.

        Args:
            images: a path, an RGB array (H, W, 3) uint8, a list of either, or an array (B, H, W, 3).
            thresholds: `score_threshold`, `iou_threshold`, `max_detections`, `multi_label`, as in `postprocess`.

        Returns:
            `Detections` in image pixels, or a list of them for a list or batch.
        """
        single = isinstance(images, (str, os.PathLike)) or (isinstance(images, np.ndarray) and images.ndim == 3)
        batch = [_as_image(image) for image in ([images] if single else images)]
        found = self.detect_batch(batch, **thresholds)
        return found[0] if single else found

    def detect_batch(self, images: Sequence[np.ndarray], **thresholds: Any) -> list[Detections]:
        """Objects of RGB images (H, W, 3) uint8 of any sizes, each in its own pixels; thresholds as in `__call__`."""
        if not images:
            return []
        started = time.perf_counter()
        letterbox = self.config.letterbox
        batch = np.empty((len(images), *self.config.input_size, 3), np.uint8)
        for image, place in zip(images, batch, strict=True):
            letterbox.apply(image, out=place)
        prepared = time.perf_counter()
        results: list[Detections] = []
        spent = {"preprocess": prepared - started, "network": 0.0, "postprocess": 0.0}
        for part in self._parts(batch):
            with self._turn:
                before = time.perf_counter()
                outputs = self.runtime.run(part)
                after = time.perf_counter()
            results += self.runtime.read(outputs, **thresholds)
            spent["network"] += after - before
            spent["postprocess"] += time.perf_counter() - after
        results = results[: len(images)]
        for number, (image, found) in enumerate(zip(images, results, strict=True)):
            boxes = letterbox.boxes_to_image(found.boxes, *image.shape[:2])
            results[number] = Detections(boxes, found.scores, found.labels)
        with self._turn:
            for name, seconds in spent.items():
                self.timings[name] += seconds
        return results

    def stream(self, source: Any, **options: Any) -> Iterator[Any]:
        """Objects of a video, frame by frame: yields (frame, `Detections`); see `prediction.streaming.stream`."""
        from prediction.streaming import stream  # streaming knows the detector, so not the other way round at import

        return stream(self, source, **options)

    def _parts(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """The batch in the sizes that the runtime takes; the last part is filled up with zeros."""
        size = self.runtime.fixed_batch
        if size is None:
            yield batch
            return
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            yield part


def load_detector(path: str | os.PathLike[str] | None = None, device: str = "auto", runtime: str = "auto") -> Detector:
    """A detector from a checkpoint or an exported file.

    Args:
        path: the file; None takes the weights that come with this platform.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        runtime: `auto`, or what to run on (see `nets.runtime`).

    Example:
        detections = load_detector("best.pth")("photo.jpg")
    """
    return Detector(load_runtime(default_checkpoint() if path is None else Path(path), device, runtime))


def weights_path(name: str) -> Path:
    """The file of that name, or the bundled weights: `small` is model_data/small.pth."""
    bundled = MODEL_DATA / f"{name}.pth"
    return bundled if bundled.name in BUILT_IN and not os.path.exists(name) else Path(name)


def default_checkpoint() -> Path:
    """The built-in weights. Raises UserError where this copy has none."""
    for name in BUILT_IN:
        if (MODEL_DATA / name).is_file():
            return MODEL_DATA / name
    raise UserError("--checkpoint", "none named, and there are no built-in weights", "give --checkpoint FILE")


def _as_image(image: Any) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise UserError(
            "image", f"an array of {image.dtype} and shape {image.shape}", "give RGB, uint8, (height, width, 3)"
        )
    if not image.size:
        raise UserError(
            "image", f"an array of shape {image.shape} has no pixels", "give RGB, uint8, (height, width, 3)"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image
