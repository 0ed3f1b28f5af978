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
from prediction.options import PredictOptions, read_threshold
from prediction.tta import AugmentedDetector
from utils.thresholds import Thresholds

MOST_CANDIDATES = 1000  # detections requested if some are filtered out afterwards


class ConfiguredDetector:
    """A `Detector` with the options of predict.py: thresholds by class, classes, NMS, tiles, test-time augmentation.

    Raises:
        UserError: for an invalid threshold or a class that the model does not have.
    """

    def __init__(self, detector: Any, options: PredictOptions) -> None:
        self.detector, self.config = detector, detector.config
        self.threshold, self.by_class = _thresholds(options.score_threshold, self.config)
        self.classes = class_mask(options.classes or None, self.config.class_names, "--classes")
        self.limit = options.max_detections or self.config.max_detections
        self.least = np.full(self.config.num_classes, self.threshold)
        for label, threshold in self.by_class.items():
            self.least[label] = threshold
        usual_batch: int = getattr(getattr(detector, "runtime", None), "usual_batch", 1)
        self.batch_size = options.batch_size or usual_batch
        tiles = options.tile is not None
        # tiles and views need the full-size image
        self.decoded_size = None if options.tta or tiles else getattr(detector, "decoded_size", None)
        self._engine: Any = AugmentedDetector(detector) if options.tta else detector
        if tiles:
            overlap = options.tile_overlap
            self._engine = TiledDetector(self._engine, options.tile or None, overlap, batch_size=self.batch_size)
        self._suppress = SUPPRESSIONS[options.nms]
        self._iou_threshold = options.iou_threshold

    def detect(
        self,
        images: Sequence[np.ndarray],
        least: float | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
        trim: bool = False,
    ) -> list[Detections]:
        """Detect objects in RGB images; boxes are in image pixels.

        Args:
            images: (H, W, 3) uint8 each.
            least: upper limit of all thresholds, for the tracker.
            sizes: (height, width) of the full-size images, if they were decoded at `decoded_size`.
            trim: see `nets.detector.Detector.detect_batch`; without effect with tiles or test-time augmentation.
        """
        thresholds = self.least if least is None else np.minimum(self.least, least)
        lowest = float(thresholds[self.classes].min())
        suppress = partial(soft_nms, score_threshold=lowest) if self._suppress is soft_nms else self._suppress
        asked = Thresholds(lowest, self._iou_threshold, self.limit, suppress=suppress)
        detect = self._engine.detect_batch
        if self.decoded_size is not None and sizes is not None:
            detect = partial(detect, sizes=sizes)
        if trim and self._engine is self.detector:
            detect = partial(detect, trim=True)
        return detect_filtered(detect, images, asked, self.classes, thresholds)

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
    classes: np.ndarray,
    least: np.ndarray | None = None,
) -> list[Detections]:
    """Detections filtered by class or by class thresholds.

    Args:
        detect: as `Detector.detect_batch`.
        thresholds: with `score_threshold` and `max_detections`, for all classes.
        classes: (C,) bool, the classes to keep.
        least: (C,) minimum score of each class; None uses `thresholds.score_threshold`.
    """
    limit, lowest = thresholds.max_detections, thresholds.score_threshold
    if least is not None:
        lowest = float(least[classes].min(initial=1.0))
    if classes.all() and (least is None or bool((least <= lowest).all())):
        return detect(images, replace(thresholds, score_threshold=lowest))
    # detections that are filtered out must not count towards the limit
    many = max(limit or 0, MOST_CANDIDATES)
    found = detect(images, replace(thresholds, score_threshold=lowest, max_detections=many))
    keep = [classes[each.labels] & (True if least is None else each.scores >= least[each.labels]) for each in found]
    return [each[mask][:limit] for each, mask in zip(found, keep, strict=True)]
