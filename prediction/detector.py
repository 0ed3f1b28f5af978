"""The Python API: a detector for any image, several images, videos, folders and cameras."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import nets.detector
from prediction.finder import class_mask, detect_filtered
from prediction.inputs import each_image, is_single
from prediction.streaming import stream
from prediction.video import Frame
from utils.detections import Detections
from utils.errors import UserError
from utils.thresholds import Thresholds, unknown_argument

Classes = Sequence[str | int] | str | int | None
ARGUMENTS = ("score_threshold", "iou_threshold", "max_detections", "multi_label", "classes", "batch_size")


class Detector(nets.detector.Detector):
    """A detector for Python programs; see `load_detector`.

    Attributes:
        names: the class names; `names[label]` names a detection.
        config: the model's configuration, its thresholds among it.
        timings: seconds spent so far in `preprocess`, `network`, `postprocess`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return self.config.class_names

    def __repr__(self) -> str:
        height, width = self.config.input_size
        classes = f"{len(self.names)} classes" if len(self.names) > 1 else "1 class"
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
        """Find the objects of one image or of several.

        What an image may be, and the rule by which its axes are read:

        - a path (`str` or `pathlib.Path`) or a PIL image, of any mode. It is turned upright by its EXIF orientation,
          and boxes are in pixels of the upright image;
        - a NumPy array, always channels last: (H, W) grey, (H, W, 1) grey, (H, W, 3), or (H, W, 4) whose fourth
          channel, opacity, is left out;
        - a torch tensor, always channels first: (C, H, W) with C = 1, 3 or 4.

        Several images: a list or another iterable of these, an array (B, H, W, C), or a tensor (B, C, H, W).
        Numbers are uint8 from 0 to 255, or floating point from 0 to 1.

        Args:
            images: one image or several.
            score_threshold: lowest score, 0 to 1.
            iou_threshold: boxes of one class whose IoU exceeds this are one object.
            max_detections: most detections of an image.
            multi_label: whether a box may have several classes.
            classes: only these, by name or index.
            color: order of the channels of arrays and tensors: `rgb`, or `bgr` as OpenCV reads them.
            batch_size: images run at once.

        A threshold that is None is the model's own (`detector.config`).

        Returns:
            `Detections` in pixels of the image; for several images a list of them.

        Raises:
            ValueError: for an image or argument that is none of the above; the message says what to give.
            FileNotFoundError: for a path that does not exist (it is a ValueError, too).
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
        """Objects of a video, camera, folder or glob, frame by frame.

        Args:
            source: a video file, folder, glob, list file (.txt), address (http, rtsp, ...), or a webcam's number; or a
                list of these.
            batch_size: frames of files run at once; of a camera always the newest one.
            others: as in a call.

        Yields:
            the frame (`image` RGB, `index`, `time` and `lag` in seconds) and its `Detections`, which know their image.

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
        def find(images: Sequence[np.ndarray]) -> list[Detections]:
            return detect_filtered(self.detect_batch, images, thresholds, mask)

        with _speaking_of_arguments():
            for frame, found in stream(find, source, batch_size):
                yield frame, replace(found, source=frame.image)

    def set_input_size(self, input_size: Sequence[int] | int) -> None:
        """Run at another (height, width), multiples of 32. Raises ValueError if the file was exported for one size."""
        with _speaking_of_arguments():
            super().set_input_size(input_size)


def load_detector(
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    input_size: Sequence[int] | int | None = None,
    **unknown: Any,
) -> Detector:
    """A detector from a checkpoint or an exported file.

    Args:
        model: a checkpoint or exported file (.pth, .onnx, .xml, ...); the name of bundled weights, `small` or `nano`;
            the folder of a training run, whose best.pth is taken; None takes the bundled default.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        runtime: `auto`, or what to run on (see `nets.runtime`).
        input_size: (height, width), or one number for both, multiples of 32; None takes the model's own.

    Raises:
        ValueError: for a file that is no model, or an argument that is out of range.
        FileNotFoundError: if the model is not there (it is a ValueError, too).

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
    """Turns `--input-size` of an error within into `input_size`: Python has arguments, not options."""

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
