"""Records for tests of the metrics, built image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.metrics.coco import coco_figures
from evaluation.metrics.record import EvalRecord, box_areas
from evaluation.metrics.voc import IOU_THRESHOLD, voc_figures


class RecordBuilder:
    """Collects images one by one into an `EvalRecord`."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[Any] = []
        self._detections: list[tuple[np.ndarray, ...]] = []
        self._objects: list[tuple[np.ndarray, ...]] = []

    def update(self, detections: Any, target: dict[str, Any]) -> None:
        """Add one image.

        Args:
            detections: detections of the image; labels index `class_names`.
            target: a `Target`, with `areas` (N,) if the annotation gives them.
        """
        boxes = np.asarray(target["boxes"], np.float64).reshape(-1, 4)
        count = len(boxes)
        areas = target.get("areas")
        self._images.append(target.get("image_id", len(self._images)))
        self._detections.append((np.asarray(detections.boxes), detections.scores, detections.labels))
        self._objects.append(
            (
                boxes,
                np.asarray(target["labels"], np.int64).reshape(-1),
                np.asarray(target.get("difficult", np.zeros(count)), bool).reshape(-1),
                np.asarray(target.get("crowd", np.zeros(count)), bool).reshape(-1),
                box_areas(boxes) if areas is None else np.asarray(areas, np.float64).reshape(-1),
            )
        )

    def build(self) -> EvalRecord:
        """All images so far."""
        position = np.arange(len(self._images))
        det_counts = [len(scores) for _, scores, _ in self._detections]
        gt_counts = [len(labels) for _, labels, *_ in self._objects]
        return EvalRecord(
            class_names=self.class_names,
            image_ids=np.asarray(self._images) if self._images else np.zeros(0, np.int64),
            det_image=np.repeat(position, det_counts),
            det_boxes=_joined([d[0] for d in self._detections], np.float64, (4,)),
            det_scores=_joined([d[1] for d in self._detections], np.float64),
            det_labels=_joined([d[2] for d in self._detections], np.int64),
            gt_image=np.repeat(position, gt_counts),
            gt_boxes=_joined([o[0] for o in self._objects], np.float64, (4,)),
            gt_labels=_joined([o[1] for o in self._objects], np.int64),
            gt_difficult=_joined([o[2] for o in self._objects], bool),
            gt_crowd=_joined([o[3] for o in self._objects], bool),
            gt_areas=_joined([o[4] for o in self._objects], np.float64),
        )


class VOCMetric(RecordBuilder):
    """VOC metrics of the images so far."""

    def __init__(self, class_names: Sequence[str], iou_thresholds: Sequence[float] = (IOU_THRESHOLD,)) -> None:
        self.iou_thresholds = tuple(iou_thresholds)
        super().__init__(class_names)

    def compute(self) -> dict[str, Any]:
        return voc_figures(self.build(), self.iou_thresholds)


class COCOMetric(RecordBuilder):
    """COCO metrics of the images so far."""

    def __init__(self, class_names: Sequence[str], evaluator: str = "auto") -> None:
        self.evaluator = evaluator
        super().__init__(class_names)

    def compute(self) -> dict[str, Any]:
        return coco_figures(self.build(), self.evaluator)


def _joined(parts: Sequence[Any], dtype: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    if not parts:
        return np.zeros((0, *shape), dtype)
    return np.concatenate([np.asarray(part, dtype).reshape(-1, *shape) for part in parts])
