"""Detections and ground truth of a split as flat arrays, the input of all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.index import DatasetIndex


@dataclass(frozen=True)
class EvalRecord:
    """N detections and M ground-truth objects in I images.

    Args:
        class_names: the classes that are scored.
        image_ids: (I,) ids of the images, str or int.
        det_image, gt_image: (N,), (M,) int64 position of the image, ascending.
        det_boxes, gt_boxes: (N, 4), (M, 4) float64 xyxy, image pixels.
        det_scores: (N,) float64.
        det_labels, gt_labels: (N,), (M,) int64, index into `class_names`.
        gt_difficult, gt_crowd: (M,) bool.
        gt_areas: (M,) float64 pixels, from the annotation (COCO: of the mask) or else of the box.
    """

    class_names: tuple[str, ...]
    image_ids: np.ndarray
    det_image: np.ndarray
    det_boxes: np.ndarray
    det_scores: np.ndarray
    det_labels: np.ndarray
    gt_image: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_difficult: np.ndarray
    gt_crowd: np.ndarray
    gt_areas: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def gt_ignored(self) -> np.ndarray:
        """(M,) bool: objects that the VOC protocol ignores."""
        return self.gt_difficult | self.gt_crowd

    @property
    def num_gt(self) -> np.ndarray:
        """(C,) int64: objects of each class that count."""
        return np.bincount(self.gt_labels[~self.gt_ignored], minlength=self.num_classes)

    @property
    def num_detections(self) -> np.ndarray:
        """(C,) int64: detections of each class."""
        return np.bincount(self.det_labels, minlength=self.num_classes)

    def keep_detections(self, index: np.ndarray) -> EvalRecord:
        """The same ground truth with only the detections of a mask or index."""
        return replace(
            self,
            det_image=self.det_image[index],
            det_boxes=self.det_boxes[index],
            det_scores=self.det_scores[index],
            det_labels=self.det_labels[index],
        )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas of (N, 4) xyxy boxes, in float64; 0 for an inverted box."""
    boxes = np.asarray(boxes, np.float64)
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def record_from_index(
    index: DatasetIndex,
    class_names: Sequence[str],
    class_map: np.ndarray,
    images: np.ndarray,
    det_image: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_labels: np.ndarray,
) -> EvalRecord:
    """Build a record with the ground truth of an index, in full precision.

    Args:
        index: the split.
        class_names: the classes that are scored.
        class_map: (C_index,) int64, the index's labels as labels of `class_names`, -1 for classes not scored.
        images: (I,) positions in `index` of the images that were scored, ascending.
        det_image: (N,) position in `index` of each detection's image; the order of the detections within an image is
            kept, as it decides the order of equal scores.
        det_boxes, det_scores, det_labels: the detections.
    """
    images = np.asarray(images, np.int64)
    part = index.subset(images)
    rank = np.full(len(index), -1, np.int64)
    rank[images] = np.arange(len(images))
    order = np.argsort(rank[det_image], kind="stable")
    order = order[rank[det_image[order]] >= 0]
    labels = class_map[part.labels]
    known = labels >= 0
    boxes = np.asarray(part.boxes, np.float64)
    areas = getattr(part, "areas", None)
    return EvalRecord(
        class_names=tuple(class_names),
        image_ids=part.image_ids,
        det_image=rank[det_image[order]],
        det_boxes=np.asarray(det_boxes, np.float64).reshape(-1, 4)[order],
        det_scores=np.asarray(det_scores, np.float64)[order],
        det_labels=np.asarray(det_labels, np.int64)[order],
        gt_image=np.repeat(np.arange(len(images)), np.diff(part.offsets))[known],
        gt_boxes=boxes[known],
        gt_labels=labels[known].astype(np.int64),
        gt_difficult=part.difficult[known],
        gt_crowd=part.crowd[known],
        gt_areas=(box_areas(boxes) if areas is None else np.asarray(areas, np.float64))[known],
    )
