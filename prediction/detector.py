"""The Python API: a detector for images, videos, folders and cameras."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import nets.detector
from imaging.detections import Detections
from prediction.configured import class_mask, detect_filtered
from prediction.inputs import each_image, is_single
from prediction.streaming import stream
from prediction.video import Frame
from utils.errors import UserError
from utils.text import counted
from utils.thresholds import Thresholds, unknown_argument

Classes = Sequence[str | int] | str | int | None
ARGUMENTS = ("score_threshold", "iou_threshold", "max_detections", "multi_label", "classes", "batch_size")

# Methods of other libraries' models and what to write here.
OTHER_CALLS = {
    **dict.fromkeys(("predict", "forward", "detect"), "call the detector itself: detector(images)"),
    **dict.fromkeys(("to", "cuda", "cpu"), 'give the device to load_detector(..., device="cuda")'),
    **dict.fromkeys(("train", "fit"), "run: python train.py --help"),
    **dict.fromkeys(("val", "validate", "evaluate"), "run: python eval.py --help"),
    "export": "run: python export.py --help",
    "track": "run: python predict.py VIDEO --track",
    "eval": "a detector is always ready for inference",
}


class Detector(nets.detector.Detector):
    """A detector for Python programs; see `load_detector`.

    Attributes:
        names: the class names; `names[label]` names a detection.
        config: the model's configuration, including its thresholds.
        timings: seconds spent so far in `preprocess`, `network`, `postprocess`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return self.config.class_names

    def __repr__(self) -> str:
        height, width = self.config.input_size
        classes = counted(len(self.names), "class")
        return f"Detector({self.config.backbone}, {classes}, input {height} x {width}, on {self.runtime.name})"

    def __call__(
        self,
        images: Any,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        multi_label: bool | None = None,
        classes: Classes = None,
        color: str = "rgb",
        batch_size: int = 8,
        **unknown: Any,
    ) -> Any:
        """Detect objects in one or several images.

        Accepted images and the order of their axes:

        - a path (`str` or `pathlib.Path`), the bytes of an image file, an open file, or a PIL image of any mode. It is
          turned upright by its EXIF orientation, and boxes are in pixels of the upright image;
        - a NumPy array, always channels last: (H, W) grey, (H, W, 1) grey, (H, W, 3), or (H, W, 4), whose fourth
          channel (alpha) is ignored;
        - a torch tensor, always channels first: (C, H, W) with C = 1, 3 or 4.

        Several images: a list or another iterable of these, an array (B, H, W, C), or a tensor (B, C, H, W).
        Numbers are uint8 from 0 to 255, or floating point from 0 to 1.

        Args:
            images: one image or several.
            score_threshold: lowest score, 0 to 1.
            iou_threshold: NMS removes boxes of one class whose IoU with a better box exceeds this.
            max_detections: maximum number of detections per image.
            multi_label: whether a box may have several classes.
            classes: classes to keep, by name or index.
            color: channel order of arrays and tensors: `rgb`, or `bgr` as in OpenCV.
            batch_size: number of images per batch.

        A threshold of None uses the model's default (`detector.config`).

        Returns:
            `Detections` in pixels of the image; for several images a list of them.

        Raises:
            ValueError: for an unsupported image or argument; the message says what is accepted.
            FileNotFoundError: for a path that does not exist (also a ValueError).
        """
        if unknown:
            raise unknown_argument(next(iter(unknown)), (*ARGUMENTS, "color"), "detector(...)")
        thresholds = Thresholds(score_threshold, iou_threshold, max_detections, multi_label).resolved(self.config)
        mask = class_mask(classes, self.names, "classes")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError("batch_size", f"{batch_size!r} is out of range", "give a whole number of at least 1")
        found: list[Detections] = []
        items = each_image(images, color)
        while batch := list(itertools.islice(items, batch_size)):
            arrays = [array for array, _ in batch]
            results = detect_filtered(self.detect_batch, arrays, thresholds, mask)
            found += [replace(each, source=source) for each, (_, source) in zip(results, batch, strict=True)]
        return found[0] if is_single(images) else found

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            hint = f"; {OTHER_CALLS[name]}" if name in OTHER_CALLS else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    def stream(
        self,
        source: str | os.PathLike[str] | int | Sequence[str],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        multi_label: bool | None = None,
        classes: Classes = None,
        batch_size: int = 4,
        **unknown: Any,
    ) -> Iterator[tuple[Frame, Detections]]:
        """Detect objects in a video, camera, folder or glob, frame by frame.

        Args:
            source: a video file, folder, glob, list file (.txt), address (http, rtsp, ...), or a webcam's number; or a
                list of these.
            batch_size: frames per batch for files; a camera always uses the newest frame.
            others: as in `__call__`.

        Yields:
            the frame (`image` RGB, `index`, `time` and `lag` in seconds) and its `Detections`, which hold their image.

        Raises:
            ValueError: if the source cannot be read. FileNotFoundError: if it does not exist.
        """
        if unknown:
            raise unknown_argument(next(iter(unknown)), ARGUMENTS, "detector.stream(...)")
        thresholds = Thresholds(score_threshold, iou_threshold, max_detections, multi_label).resolved(self.config)
        mask = class_mask(classes, self.names, "classes")
        return self._frames(source, batch_size, thresholds, mask)

    def _frames(
        self, source: Any, batch_size: int, thresholds: Thresholds, mask: np.ndarray
    ) -> Iterator[tuple[Frame, Detections]]:
        def find(images: Sequence[np.ndarray], trim: bool) -> list[Detections]:
            return detect_filtered(partial(self.detect_batch, trim=trim), images, thresholds, mask)

        with _speaking_of_arguments():
            for frame, found in stream(find, source, batch_size):
                yield frame, replace(found, source=frame.image)

    def set_input_size(self, input_size: Sequence[int] | int) -> None:
        """Change the input size (height, width), multiples of 32. Raises ValueError for a file with a fixed size."""
        with _speaking_of_arguments():
            super().set_input_size(input_size)


def load_detector(
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    input_size: Sequence[int] | int | None = None,
    **unknown: Any,
) -> Detector:
    """Load a detector from a checkpoint or an exported file.

    Args:
        model: a checkpoint or exported file (.pth, .onnx, .xml, ...); the name of bundled weights, `small` or `nano`;
            the folder of a training run, whose best.pth is loaded; None loads the bundled default.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        runtime: `auto`, or a runtime (see `nets.runtime`).
        input_size: (height, width), or one number for both, multiples of 32; None uses the model's default.

    Raises:
        ValueError: for a file that is not a model, or an argument that is out of range.
        FileNotFoundError: if the model does not exist (also a ValueError).

    Example:
        detections = load_detector("nano")("photo.jpg")
    """
    if unknown:
        raise unknown_argument(next(iter(unknown)), ("model", "device", "runtime", "input_size"), "load_detector(...)")
    with _speaking_of_arguments(checkpoint="model"):
        detector = Detector.open(model, device, runtime)
        if input_size is not None:
            detector.set_input_size(input_size)
    return detector


@contextlib.contextmanager
def _speaking_of_arguments(**renamed: str) -> Iterator[None]:
    """Replaces `--input-size` in error messages by the argument name `input_size`."""

    def argument(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return renamed.get(name, name) + ("=" if match[2] else "")

    try:
        yield
    except UserError as error:
        known = "checkpoint|device|runtime|input-size"
        for name in ("where", "what", "todo"):
            setattr(error, name, re.sub(rf"--({known})\b( (?=[a-z0-9]))?", argument, getattr(error, name)))
        raise
