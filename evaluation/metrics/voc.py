"""Average precision by the two Pascal VOC protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.metrics.matching import TRUE_POSITIVE, best_matches, outcomes, ranked_by_class
from evaluation.metrics.record import EvalRecord

IOU_THRESHOLD = 0.5  # of the VOC challenge
# k * 0.1 in floating point, as in py-faster-rcnn's voc_eval.py and later Python evaluations of VOC: a recall of
# exactly 0.3, 0.6 or 0.7 lies just below its recall point.
ELEVEN_POINTS = np.arange(0.0, 1.1, 0.1)


def average_precision_07(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over recall 0, 0.1, ... 1 of the maximum precision at that recall or above (VOC2007, section 4.2).

    Args:
        recall, precision: (N,) after each detection, highest score first.
    """
    if not len(recall):
        return 0.0

    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # maximum precision at this recall or above
    first = np.searchsorted(recall, ELEVEN_POINTS, side="left")
    reached = first < len(recall)
    return float(np.where(reached, envelope[np.minimum(first, len(recall) - 1)], 0.0).mean())


def average_precision_10(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the monotonically decreasing precision-recall curve (VOC2010 and later, section 3.4.1).

    Args:
        recall, precision: (N,) after each detection, highest score first.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def class_curves(
    record: EvalRecord, outcome: np.ndarray, num_gt: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(scores, recall, precision) of each class, highest score first, without ignored detections.

    Args:
        record: detections and ground truth.
        outcome: (N,) of `matching.outcomes`.
        num_gt: (C,) objects of each class, by default from the record. Recall is 0 without objects.
    """
    num_gt = record.num_gt if num_gt is None else num_gt
    curves = []
    for c, part in enumerate(ranked_by_class(record, outcome)):
        # Every prefix of the ranking is the result of one score threshold.
        true = np.cumsum(outcome[part] == TRUE_POSITIVE)
        recall = true / max(num_gt[c], 1)
        curves.append((record.det_scores[part], recall, true / np.arange(1, len(part) + 1)))
    return curves


def voc_ap(record: EvalRecord, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) VOC07 and (C,) VOC10 average precision; NaN for a class without objects."""
    curves = class_curves(record, outcome)
    has_objects = record.num_gt > 0
    ap_07 = [average_precision_07(recall, precision) for _, recall, precision in curves]
    ap_10 = [average_precision_10(recall, precision) for _, recall, precision in curves]
    return np.where(has_objects, ap_07, np.nan), np.where(has_objects, ap_10, np.nan)


def voc_figures(record: EvalRecord, iou_thresholds: Sequence[float] = (IOU_THRESHOLD,)) -> dict[str, Any]:
    """mAP and AP of each class by both protocols.

    A detection is matched to the object of its class with the largest IoU. Objects marked `difficult` are ignored. A
    second detection of an object is a false positive. Equal scores keep their input order. Crowd
    regions are treated as difficult. The mean is over the classes that have objects.

    Returns:
        `voc07_mAP50`, `voc10_mAP50` (and so on for other thresholds; None without objects) and `per_class`: name to
        `voc07_AP50`, `voc10_AP50`, `num_gt` (difficult ones not counted), `num_detections`.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, section 3.4.1
    """
    figures: dict[str, Any] = {}
    num_gt, num_detections = record.num_gt, record.num_detections
    per_class: dict[str, dict[str, Any]] = {
        name: {"num_gt": int(num_gt[c]), "num_detections": int(num_detections[c])}
        for c, name in enumerate(record.class_names)
    }
    matches = best_matches(record)
    for threshold in iou_thresholds:
        suffix = f"{100 * threshold:g}"
        both = voc_ap(record, outcomes(record, matches, threshold))
        for protocol, ap in zip(("voc07", "voc10"), both, strict=True):
            figures[f"{protocol}_mAP{suffix}"] = mean_or_none(ap)
            for c, name in enumerate(record.class_names):
                per_class[name][f"{protocol}_AP{suffix}"] = none_if_nan(ap[c])
    figures["per_class"] = per_class
    return figures


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean of the values that are not NaN; None if there are none."""
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    return float(values[there].mean()) if there.any() else None


def none_if_nan(value: float) -> float | None:
    """Replace NaN by None, as JSON has no NaN."""
    return None if np.isnan(value) else float(value)
