"""Detector with user-set thresholds and classes, another NMS, tiles or test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from data.class_names import class_index
from imaging.detections import Detections
from nets.nms import SUPPRESSIONS, soft_nms
from nets.tiling import TiledDetector
from prediction.tta import AugmentedDetector
from utils.errors import UserError
from utils.thresholds import Thresholds

MOST_CANDIDATES = 1000  # detections requested if some are filtered out afterwards


class Finder:
    """Detector with thresholds by class, a class filter, a choice of NMS, tiling and test-time augmentation.

    Args:
        detector: a `Detector`.
        thresholds: `0.3` for all classes, `person=0.5` for one; empty uses the model's.
        iou_threshold, max_detections: None uses the model's.
        classes: names or indices; empty keeps all.
        nms: a key of `SUPPRESSIONS`.
        tile: None, or the tile size in pixels; 0 uses the model's input size.
        tile_overlap: overlap of neighbouring tiles, as a fraction of the tile.
        tta: test-time augmentation, mirrored and at other sizes.
        batch_size: images (or tiles) per batch; 0 uses the default of the detector's runtime.

    Raises:
        UserError: for an invalid threshold or a class that the model does not have.
    """

    def __init__(
        self,
        detector: Any,
        thresholds: Sequence[str] = (),
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Sequence[str] = (),
        nms: str = "default",
        tile: int | None = None,
        tile_overlap: float = 0.25,
        tta: bool = False,
        batch_size: int = 0,
    ) -> None:
        self.detector, self.config = detector, detector.config
        self.threshold, self.by_class = _thresholds(thresholds, self.config)
        self.wanted = class_mask(classes or None, self.config.class_names, "--classes")
        self.limit = max_detections or self.config.max_detections
        self.least = np.full(self.config.num_classes, self.threshold)
        for label, threshold in self.by_class.items():
            self.least[label] = threshold
        self.batch_size = batch_size or getattr(getattr(detector, "runtime", None), "usual_batch", 1)
        # tiles and views need the full-size image
        self.decoded_size = None if tta or tile is not None else getattr(detector, "decoded_size", None)
        self._engine = detector
        if tta:
            self._engine = AugmentedDetector(self._engine)
        if tile is not None:
            self._engine = TiledDetector(self._engine, tile or None, tile_overlap, batch_size=self.batch_size)
        self._suppress = SUPPRESSIONS[nms]
        self._iou_threshold = iou_threshold

    def find(
        self,
        images: Sequence[np.ndarray],
        least: float | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detect objects in RGB images; boxes are in image pixels.

        Args:
            images: (H, W, 3) uint8 each.
            least: upper limit of all thresholds, for the tracker.
            sizes: (height, width) of the full-size images, if they were decoded at `decoded_size`.
        """
        thresholds = self.least if least is None else np.minimum(self.least, least)
        lowest = float(thresholds[self.wanted].min())
        suppress = partial(soft_nms, score_threshold=lowest) if self._suppress is soft_nms else self._suppress
        asked = Thresholds(lowest, self._iou_threshold, self.limit, suppress=suppress)
        detect = self._engine.detect_batch
        if self.decoded_size is not None and sizes is not None:
            detect = partial(detect, sizes=sizes)
        return detect_filtered(detect, images, asked, self.wanted, thresholds)

    def threshold_text(self) -> str:
        """The threshold in use and its origin."""
        given = self.threshold != self.config.score_threshold
        source = "as given" if given else f"the checkpoint's: {self.config.score_threshold_source}"
        others = "".join(f", {self.config.class_names[c]} {t:g}" for c, t in sorted(self.by_class.items()))
        return f"score threshold {self.threshold:g} ({source}){others}"


def _thresholds(values: Sequence[str], config: Any) -> tuple[float, dict[int, float]]:
    """The general threshold and the thresholds by class, from `0.3 person=0.5`."""
    general, by_class = config.score_threshold, {}
    for value in values:
        name, equals, number = value.rpartition("=")
        threshold = read_threshold(number)
        if equals:
            by_class[class_index(name, config.class_names, "--score-threshold")] = threshold
        else:
            general = threshold
    return general, by_class


def read_threshold(text: str) -> float:
    """A score from 0 to 1. Raises UserError."""
    try:
        value = float(text)
    except ValueError as error:
        raise UserError("--score-threshold", f"{text!r} is not a number", "give 0 to 1, or NAME=T") from error
    if not 0 <= value <= 1:
        raise UserError("--score-threshold", f"{value:g} is out of range", "it must be at least 0 and at most 1")
    return value


def class_mask(names: Sequence[str | int] | str | int | None, class_names: Sequence[str], where: str) -> np.ndarray:
    """(C,) bool: the named classes; all for None. Raises UserError for a class that the model lacks."""
    if names is None:
        return np.ones(len(class_names), bool)
    mask = np.zeros(len(class_names), bool)
    for name in [names] if isinstance(names, (str, int)) else names:
        mask[class_index(name, class_names, where)] = True
    return mask


def detect_filtered(
    detect: Callable[[Sequence[np.ndarray], Thresholds], list[Detections]],
    images: Sequence[np.ndarray],
    thresholds: Thresholds,
    wanted: np.ndarray,
    least: np.ndarray | None = None,
) -> list[Detections]:
    """Detections filtered by class or by class thresholds.

    Args:
        detect: as `Detector.detect_batch`.
        thresholds: with `score_threshold` and `max_detections`, for all classes.
        wanted: (C,) bool, the classes to keep.
        least: (C,) minimum score of each class; None uses `thresholds.score_threshold`.
    """
    limit, lowest = thresholds.max_detections, thresholds.score_threshold
    if least is not None:
        lowest = float(least[wanted].min(initial=1.0))
    if wanted.all() and (least is None or bool((least <= lowest).all())):
        return detect(images, replace(thresholds, score_threshold=lowest))
    # detections that are filtered out must not count towards the limit
    many = max(limit or 0, MOST_CANDIDATES)
    found = detect(images, replace(thresholds, score_threshold=lowest, max_detections=many))
    keep = [wanted[each.labels] & (True if least is None else each.scores >= least[each.labels]) for each in found]
    return [each[mask][:limit] for each, mask in zip(found, keep, strict=True)]
