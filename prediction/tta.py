"""Test-time augmentation: run a detector on several views of an image and merge the detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from imaging.detections import Detections
from nets.nms import Suppress, nms, weighted_box_fusion
from nets.tiling import DetectorWrapper
from utils.thresholds import OWN_THRESHOLDS, Thresholds


class AugmentedDetector(DetectorWrapper):
    """A detector that runs on mirrored and resized views of each image and merges the detections.

    Args:
        detector: must support `set_input_size` if `scales` has more than one value.
        flip: also run on the horizontally mirrored image.
        scales: input sizes as factors of the model's input size, rounded to multiples of 32.

    Views are merged by the same suppression as candidates: greedy NMS within each class keeps the best score;
    weighted box fusion averages boxes and lowers the score of those that some views lack.
    """

    def __init__(self, detector: Any, flip: bool = True, scales: Sequence[float] = (1.0, 0.83, 1.25)) -> None:
        super().__init__(detector)
        self.flip = flip
        size = detector.config.input_size
        sizes = [tuple(max(32, 32 * round(side * scale / 32)) for side in size) for scale in scales]
        self.sizes = list(dict.fromkeys(sizes)) if hasattr(detector, "set_input_size") else [tuple(size)]

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        """As `Detector.detect_batch`."""
        own_size = self.config.input_size
        views: list[list[Detections]] = []
        try:
            for size in self.sizes:
                if size != tuple(self.config.input_size):
                    self.detector.set_input_size(size)
                views.append(self.detector.detect_batch(images, thresholds))
                if self.flip:
                    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in images]
                    found = self.detector.detect_batch(mirrored, thresholds)
                    views.append([_mirrored(f, image.shape[1]) for f, image in zip(found, images, strict=True)])
        finally:
            if tuple(self.config.input_size) != tuple(own_size):
                self.detector.set_input_size(own_size)
        iou = self.config.iou_threshold if thresholds.iou_threshold is None else thresholds.iou_threshold
        limit = thresholds.max_detections or self.config.max_detections
        suppress = thresholds.suppress
        if suppress is weighted_box_fusion:
            suppress = partial(weighted_box_fusion, views=len(views))
        return [_joined(list(each), iou, limit, suppress) for each in zip(*views, strict=True)]


def _mirrored(found: Detections, width: int) -> Detections:
    boxes = found.boxes.copy()
    boxes[:, [0, 2]] = width - found.boxes[:, [2, 0]]
    return replace(found, boxes=boxes)


def _joined(
    views: Sequence[Detections], iou_threshold: float, max_detections: int, suppress: Suppress | None
) -> Detections:
    """Merge the views of one image, best first; by NMS within each class if `suppress` is None."""
    boxes, scores, labels = (
        np.concatenate([getattr(v, name) for v in views]) for name in ("boxes", "scores", "labels")
    )
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    if suppress is None:
        keep = nms(boxes, labels, iou_threshold)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    else:
        boxes, scores, labels = suppress(boxes, scores, labels, iou_threshold)
    return Detections(boxes[:max_detections], scores[:max_detections], labels[:max_detections])
