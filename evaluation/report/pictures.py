"""Images of a report: the worst images and the most confident errors, with detections and ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation.evaluator import EvaluationResult
from evaluation.metrics.errors import BACKGROUND, BOTH, CLASSIFICATION, DUPLICATE, LOCALISATION, ErrorAnalysis
from evaluation.worst import find_mistakes
from imaging.web_page import Mark, Picture, crop
from utils.errors import printable

WORST_IMAGES, WORST_MISTAKES = 12, 16
RIGHT, WRONG, MISSED = (22, 163, 74), (220, 38, 38), (245, 158, 11)  # RGB


def worst_images(
    result: EvaluationResult, threshold: float, read: Callable[[Path], np.ndarray], limit: int = WORST_IMAGES
) -> list[Picture]:
    """The images with the most wrong detections and missed objects at a score threshold, with boxes drawn."""
    record = result.record
    mistakes = find_mistakes(result, threshold)
    pictures = []
    for i in mistakes.worst_first[:limit]:
        path = result.index.path(i)
        marks: list[Mark] = []
        for mask, colour in ((mistakes.right, RIGHT), (mistakes.wrong, WRONG)):
            for d in np.flatnonzero(mask & (record.det_image == i)):
                text = f"{record.class_names[record.det_labels[d]]} {record.det_scores[d]:.2f}"
                # correct boxes get no text, which would cover the wrong ones
                marks.append((record.det_boxes[d], colour, text if mask is mistakes.wrong else ""))
        for m in np.flatnonzero(mistakes.missed & (record.gt_image == i)):
            marks.append((record.gt_boxes[m], MISSED, record.class_names[record.gt_labels[m]]))
        right, wrong, missed = mistakes.counts[:, i]
        caption = f"{path.name}: {right} correct, {wrong} wrong, {missed} missed"
        pictures.append(Picture(crop(path, marks, None, read), printable(caption)))
    return pictures


def confident_mistakes(
    result: EvaluationResult, errors: ErrorAnalysis, read: Callable[[Path], np.ndarray], limit: int = WORST_MISTAKES
) -> list[Picture]:
    """Crops of the wrong detections with the highest scores, with some context."""
    record = result.record
    wrong = np.flatnonzero(errors.det_type >= 0)
    pictures = []
    for d in wrong[np.argsort(-record.det_scores[wrong], kind="stable")][:limit]:
        path = result.index.path(record.det_image[d])
        name = record.class_names[record.det_labels[d]]
        marks: list[Mark] = []
        if errors.det_gt[d] >= 0:
            gt = errors.det_gt[d]
            marks.append((record.gt_boxes[gt], MISSED, record.class_names[record.gt_labels[gt]]))
        marks.append((record.det_boxes[d], WRONG, f"{name} {record.det_scores[d]:.2f}"))
        caption = f"{name} {record.det_scores[d]:.2f}: {_reason(result, errors, d)} ({path.name})"
        pictures.append(Picture(crop(path, marks, record.det_boxes[d], read), printable(caption)))
    return pictures


def _reason(result: EvaluationResult, errors: ErrorAnalysis, detection: int) -> str:
    gt = errors.det_gt[detection]
    label = result.record.class_names[result.record.gt_labels[gt]] if gt >= 0 else ""
    return {
        CLASSIFICATION: f"is labelled {label}",
        LOCALISATION: "does not fit the labelled box",
        BOTH: f"has a low overlap with a {label}",
        DUPLICATE: "is a duplicate",
        BACKGROUND: "has no label at this location",
    }[int(errors.det_type[detection])]
