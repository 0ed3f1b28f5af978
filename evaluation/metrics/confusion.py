"""Confusion matrix of detections, with background."""

from __future__ import annotations

import numpy as np

from evaluation.metrics.matching import pair_iou, pairs_in_image
from evaluation.metrics.record import EvalRecord
from evaluation.metrics.voc import IOU_THRESHOLD


def confusion_matrix(record: EvalRecord, score_threshold: float, iou_threshold: float = IOU_THRESHOLD) -> np.ndarray:
    """Count objects by their true class and their predicted class.

    Detections of at least `score_threshold` and objects of any class are matched one to one, the largest IoU first. A
    detection of a difficult object or a crowd is left out.

    Returns:
        (C + 1, C + 1) int64, rows true classes, columns predicted; the last of each is background: the last column
        counts missed objects, the last row detections without an object.
    """
    background = record.num_classes
    kept = record.keep_detections(record.det_scores >= score_threshold)
    det_free, gt_free = np.ones(len(kept.det_image), bool), np.ones(len(kept.gt_image), bool)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for dets, gts in _matching_pairs(kept, iou_threshold):
        if not det_free[dets]:
            continue
        if kept.gt_ignored[gts]:
            det_free[dets] = False
        elif gt_free[gts]:
            det_free[dets] = gt_free[gts] = False
            matrix[kept.gt_labels[gts], kept.det_labels[dets]] += 1
    missed = gt_free & ~kept.gt_ignored
    matrix[:background, background] = np.bincount(kept.gt_labels[missed], minlength=background)
    matrix[background, :background] = np.bincount(kept.det_labels[det_free], minlength=background)
    return matrix


def _matching_pairs(record: EvalRecord, iou_threshold: float) -> list[tuple[int, int]]:
    """(detection, object) pairs of sufficient IoU: objects that count first, then by decreasing IoU."""
    parts = []
    for dets, gts, _ in pairs_in_image(record, False, None):
        iou = pair_iou(record.det_boxes[dets], record.gt_boxes[gts])
        enough = iou >= iou_threshold
        parts.append((dets[enough], gts[enough], iou[enough]))
    if not parts:
        return []
    dets, gts, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-record.det_scores[dets], -iou, record.gt_ignored[gts]))
    return list(zip(dets[order].tolist(), gts[order].tolist(), strict=True))
