"""Classify detection errors by type and measure the mAP that each type costs (TIDE)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evaluation.metrics.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, best_matches
from evaluation.metrics.record import EvalRecord, box_areas
from evaluation.metrics.voc import IOU_THRESHOLD, average_precision_10, class_curves

CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
ERROR_TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32.0**2, 96.0**2)  # COCO's, pixels of area
BACKGROUND_IOU = 0.1  # below it a detection matches no object (TIDE, section 2.2)


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a record, by type (`ERROR_TYPES`), class and object size (`SIZES`).

    Args:
        det_type: (N,) int8, the error type of each detection, -1 for none.
        det_gt: (N,) int64, the object that the error concerns, -1 for none.
        missed: (M,) bool, objects without any detection, not even one of wrong class or location.
        counts: (6, 3) int64, errors by type and size.
        gain: (6,) the gain in mAP50 (VOC10) if all errors of this type, and no others, were corrected.
        gain_by_class: (6, C) the same for AP of each class, NaN for classes without objects.
        gain_by_size: (6, 3) the same for mAP, by size of object (of the detection, for background).
        average_precision: the mAP, NaN without objects.
    """

    det_type: np.ndarray
    det_gt: np.ndarray
    missed: np.ndarray
    counts: np.ndarray
    gain: np.ndarray
    gain_by_class: np.ndarray
    gain_by_size: np.ndarray
    average_precision: float


def analyse_errors(record: EvalRecord, outcome: np.ndarray) -> ErrorAnalysis:
    """Classify the errors and measure the mAP that each type costs.

    Each false positive has one type, tried in this order: localisation (IoU of 0.1 to 0.5 with an object of its
    class), classification (0.5 or more with one of another class), duplicate (0.5 or more with an object that is found
    already), background (less than 0.1 with any object), both (the rest). A correction sets the box or class of the
    object, or removes the detection if that would make it a second one; it removes duplicates and background, and it
    removes missed objects.

    Args:
        record: detections and ground truth.
        outcome: (N,) of `matching.outcomes` at IoU 0.5.

    Source: TIDE, section 2, https://arxiv.org/abs/2008.08115; with VOC's matching and all-point AP.
    """
    det_type, det_gt = _types(record, outcome)
    found = np.zeros(len(record.gt_image), bool)
    own = best_matches(record)
    found[own.gt[outcome == TRUE_POSITIVE]] = True
    correctable = found.copy()
    correctable[det_gt[np.isin(det_type, (CLASSIFICATION, LOCALISATION))]] = True
    missed = ~correctable & ~record.gt_ignored
    gt_size = np.digitize(record.gt_areas, SIZE_LIMITS)
    det_size = np.digitize(box_areas(record.det_boxes), SIZE_LIMITS)
    concerned = det_gt >= 0
    det_size[concerned] = gt_size[det_gt[concerned]]

    base = _class_ap(record, outcome, record.num_gt)
    gain, counts = np.zeros(len(ERROR_TYPES)), np.zeros((len(ERROR_TYPES), len(SIZES)), np.int64)
    by_class = np.full((len(ERROR_TYPES), record.num_classes), np.nan)
    by_size = np.zeros((len(ERROR_TYPES), len(SIZES)))
    for kind in range(len(ERROR_TYPES)):
        wrong, sizes = (missed, gt_size) if kind == MISSED else (det_type == kind, det_size)
        counts[kind] = np.bincount(sizes[wrong], minlength=len(SIZES))
        by_class[kind] = _corrected_ap(record, outcome, kind, wrong, det_gt, found) - base
        gain[kind] = _mean(by_class[kind])
        for size in range(len(SIZES)):
            if counts[kind, size]:
                corrected = _corrected_ap(record, outcome, kind, wrong & (sizes == size), det_gt, found)
                by_size[kind, size] = _mean(corrected - base)
    return ErrorAnalysis(det_type, det_gt, missed, counts, gain, by_class, by_size, _mean(base, np.nan))


def _types(record: EvalRecord, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Type of each false positive, and the object it concerns."""
    counted = ~record.gt_ignored
    own, any_class = best_matches(record, True, counted), best_matches(record, False, counted)
    wrong = outcome == FALSE_POSITIVE
    # np.select uses the first rule that applies, so the order is that of the definitions
    right_class = own.iou >= BACKGROUND_IOU
    rules = [
        (LOCALISATION, right_class & (own.iou < IOU_THRESHOLD), own.gt),
        (CLASSIFICATION, ~(own.iou >= IOU_THRESHOLD) & (any_class.iou >= IOU_THRESHOLD), any_class.gt),
        (DUPLICATE, own.iou >= IOU_THRESHOLD, own.gt),
        (BACKGROUND, any_class.iou < BACKGROUND_IOU, np.full_like(own.gt, -1)),
        (BOTH, np.ones_like(wrong), any_class.gt),
    ]
    conditions = [wrong & condition for _, condition, _ in rules]
    det_type = np.select(conditions, [kind for kind, _, _ in rules], -1).astype(np.int8)
    return det_type, np.select(conditions, [gt for _, _, gt in rules], -1)


def _corrected_ap(
    record: EvalRecord, outcome: np.ndarray, kind: int, wrong: np.ndarray, det_gt: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """(C,) AP if the errors `wrong` of a type were corrected."""
    if kind == MISSED:
        removed = np.bincount(record.gt_labels[wrong], minlength=record.num_classes)
        return _class_ap(record, outcome, record.num_gt - removed)
    outcome = outcome.copy()
    outcome[wrong] = IGNORED  # a removed detection is neither a true nor a false positive
    if kind in (CLASSIFICATION, LOCALISATION):
        # Of several detections corrected to one object, the best becomes a true positive; the others are removed.
        free = np.flatnonzero(wrong)
        free = free[~found[det_gt[free]]]
        free = free[np.argsort(-record.det_scores[free], kind="stable")]
        _, first = np.unique(det_gt[free], return_index=True)
        outcome[free[first]] = TRUE_POSITIVE
        labels = record.det_labels.copy()
        labels[free[first]] = record.gt_labels[det_gt[free[first]]]
        record = replace(record, det_labels=labels)
    return _class_ap(record, outcome, record.num_gt)


def _class_ap(record: EvalRecord, outcome: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """(C,) VOC10 AP; NaN for a class without objects, 1 for one whose objects were all removed as missed."""
    curves = class_curves(record, outcome, num_gt)
    ap = np.array([average_precision_10(recall, precision) for _, recall, precision in curves])
    ap[(num_gt == 0) & (record.num_gt > 0)] = 1.0
    return np.where(record.num_gt > 0, ap, np.nan)


def _mean(values: np.ndarray, empty: float = 0.0) -> float:
    there = ~np.isnan(values)
    return float(values[there].mean()) if there.any() else empty
