"""Match detections to objects, over a whole split at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.record import EvalRecord

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1
_PAIRS_AT_ONCE = 4_000_000  # bounds memory (about 0.5 GB) for any number of objects in an image


@dataclass(frozen=True)
class BestMatch:
    """The object with the largest IoU for each of N detections.

    Args:
        iou: (N,) float64, 0 where there is no object to compare with.
        gt: (N,) int64 position of the object in the record, the first among equals, -1 for none.
    """

    iou: np.ndarray
    gt: np.ndarray


def pair_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """(P,) IoU of (P, 4) xyxy boxes with (P, 4) others, row by row; 0 if both areas are zero."""
    left_top = np.maximum(boxes_a[:, :2], boxes_b[:, :2])
    right_bottom = np.minimum(boxes_a[:, 2:], boxes_b[:, 2:])
    sides = right_bottom - left_top
    overlap = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area_a = (boxes_a[:, 2] - boxes_a[:, 0]) * (boxes_a[:, 3] - boxes_a[:, 1])
    area_b = (boxes_b[:, 2] - boxes_b[:, 0]) * (boxes_b[:, 3] - boxes_b[:, 1])
    union = area_a + area_b - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def best_matches(record: EvalRecord, same_class: bool = True, gt_mask: np.ndarray | None = None) -> BestMatch:
    """The best object of the same image (and class) for each detection, whether or not it is already matched.

    As in the VOC devkit, the result does not depend on other detections or their order, so it is vectorised.

    Args:
        record: detections and ground truth.
        same_class: compare only with objects of the detection's class.
        gt_mask: (M,) bool, objects to consider; all of them by default.
    """
    iou = np.zeros(len(record.det_image))
    best = np.full(len(record.det_image), -1, np.int64)
    for dets, gts, starts in pairs_in_image(record, same_class, gt_mask):
        ious = pair_iou(record.det_boxes[dets], record.gt_boxes[gts])
        counts = np.diff(np.append(starts, len(dets)))
        largest = np.maximum.reduceat(ious, starts)
        position = np.where(ious == np.repeat(largest, counts), np.arange(len(ious)), len(ious))
        first = np.minimum.reduceat(position, starts)
        iou[dets[starts]] = largest
        best[dets[starts]] = gts[first]
    return BestMatch(iou, best)


def outcomes(record: EvalRecord, matches: BestMatch, iou_threshold: float) -> np.ndarray:
    """True positive (1), false positive (0) or ignored (-1) for each detection, by the VOC protocol.

    In descending score order (ties keep their input order), a detection whose best object has an IoU of at
    least the threshold is ignored if that object is difficult, a true positive if it is the object's first, and a false
    positive otherwise.

    Source: VOCdevkit, VOCevaldet.m, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
    """
    result = np.full(len(matches.gt), FALSE_POSITIVE, np.int8)
    hit = (matches.iou >= iou_threshold) & (matches.gt >= 0)
    hit[hit] = ~record.gt_ignored[matches.gt[hit]]
    # As in VOCevaldet.m, a detection whose best object is already taken does not try its second-best one.
    by_score = np.argsort(-record.det_scores[hit], kind="stable")
    candidates = np.flatnonzero(hit)[by_score]
    _, first = np.unique(matches.gt[candidates], return_index=True)
    result[candidates[first]] = TRUE_POSITIVE
    overlaps = (matches.iou >= iou_threshold) & (matches.gt >= 0) & ~hit
    result[overlaps] = IGNORED
    return result


def ranked_by_class(record: EvalRecord, outcome: np.ndarray) -> list[np.ndarray]:
    """Positions of the detections of each class that are not ignored, highest score first (stable)."""
    counted = np.flatnonzero(outcome != IGNORED)
    order = counted[np.lexsort((-record.det_scores[counted], record.det_labels[counted]))]
    return np.split(order, np.searchsorted(record.det_labels[order], np.arange(1, record.num_classes)))


def pairs_in_image(
    record: EvalRecord, same_class: bool, gt_mask: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (detections, objects, start of each detection) of the pairs that share an image (and class), in parts."""
    classes = record.num_classes if same_class else 1
    det_keys = record.det_image * classes + (record.det_labels if same_class else 0)
    gt_keys = record.gt_image * classes + (record.gt_labels if same_class else 0)
    kept = np.arange(len(gt_keys)) if gt_mask is None else np.flatnonzero(gt_mask)
    gt_order = kept[np.argsort(gt_keys[kept], kind="stable")]
    sorted_keys = gt_keys[gt_order]
    low = np.searchsorted(sorted_keys, det_keys, side="left")
    counts = np.searchsorted(sorted_keys, det_keys, side="right") - low
    with_objects = np.flatnonzero(counts)
    ends = np.cumsum(counts[with_objects])
    begin = 0
    while begin < len(with_objects):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")), begin + 1)
        part = with_objects[begin:end]
        sizes = counts[part]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        positions = np.arange(sizes.sum()) + np.repeat(low[part] - starts, sizes)
        yield np.repeat(part, sizes), gt_order[positions], starts
        begin = end
