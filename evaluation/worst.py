"""Write the images with the most errors as a data set for labelling, with labels, detections and a queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.dataset_writer import Losses, write_dataset
from data.tools.new_folder import check_new_folder, new_folder
from evaluation.evaluator import EvaluationResult
from evaluation.metrics.matching import FALSE_POSITIVE, TRUE_POSITIVE
from utils.files import write_file

YEAR = "VOC2012"  # a devkit folder name that every VOC reader accepts
FALLBACK_THRESHOLD = 0.5


@dataclass(frozen=True)
class Mistakes:
    """Correct and wrong detections and missed objects at a score threshold.

    Args:
        right, wrong: (N,) bool, detections.
        missed: (M,) bool, objects.
        counts: (3, I) numbers of right, wrong and missed in each image.
        worst_first: positions of the images with errors, by decreasing errors, then by increasing correct detections.
    """

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray
    counts: np.ndarray
    worst_first: np.ndarray


def find_mistakes(result: EvaluationResult, threshold: float) -> Mistakes:
    """Errors of an evaluation among detections with a score of at least `threshold`."""
    record = result.record
    kept = record.det_scores >= threshold
    right = kept & (result.outcome == TRUE_POSITIVE)
    wrong = kept & (result.outcome == FALSE_POSITIVE)
    found = np.zeros(len(record.gt_image), bool)
    found[result.matches.gt[right]] = True
    missed = ~found & ~record.gt_ignored
    images = (record.det_image[right], record.det_image[wrong], record.gt_image[missed])
    counts = np.stack([np.bincount(each, minlength=record.num_images) for each in images])
    mistakes = counts[1] + counts[2]
    order = np.lexsort((counts[0], -mistakes))
    return Mistakes(right, wrong, missed, counts, order[mistakes[order] > 0])


def export_worst(result: EvaluationResult, folder: Path, count: int) -> int:
    """Write the worst images as a VOC devkit with a split `worst`, `detections.json` and `queue.json`.

    The images are copied, so labelling does not change the original data set. The queue lists detections without
    a label and missed objects; `serve.py --label FOLDER --queue FOLDER/queue.json` shows it. Returns the number of
    images; without errors, 0, and nothing is written.

    Raises:
        UserError: if the folder is not empty.
    """
    check_new_folder("--export", folder)
    threshold = FALLBACK_THRESHOLD if result.best_f1_threshold is None else result.best_f1_threshold
    mistakes = find_mistakes(result, threshold)
    positions = mistakes.worst_first[:count]
    if not len(positions):
        return 0
    index = result.index.subset(positions)
    with new_folder(folder) as partial:
        names = write_dataset({"worst": index}, partial, "voc", Losses(), progress=False, year=YEAR)
        rows: list[dict[str, Any]] = []
        findings: list[dict[str, Any]] = []
        for i in positions.tolist():
            original = result.index.path(i)
            found = _found(result, i, threshold)
            rows.append({"image": names[original], "original": str(original), "detections": found})
            findings += _findings(result, i, f"{YEAR}/JPEGImages/{names[original]}", mistakes)
        write_file(partial / "detections.json", json.dumps(rows, indent=1).encode())
        write_file(partial / "queue.json", json.dumps({"findings": findings}, indent=1).encode())
    return len(positions)


def _found(result: EvaluationResult, i: int, threshold: float) -> list[dict[str, Any]]:
    record = result.record
    mine = np.flatnonzero((record.det_image == i) & (record.det_scores >= threshold))
    return [
        {
            "class_name": record.class_names[record.det_labels[d]],
            "score": round(float(record.det_scores[d]), 4),
            "box_xyxy": record.det_boxes[d].round(2).tolist(),
        }
        for d in mine.tolist()
    ]


def _findings(result: EvaluationResult, i: int, image: str, mistakes: Mistakes) -> list[dict[str, Any]]:
    """Queue entries of an image, named from the queue's folder: wrong detections that may lack a label, and missed
    objects."""
    record = result.record
    wrong = np.flatnonzero(mistakes.wrong & (record.det_image == i))
    missed = np.flatnonzero(mistakes.missed & (record.gt_image == i))
    rows = []
    for d in wrong.tolist():
        name, score = record.class_names[record.det_labels[d]], round(float(record.det_scores[d]), 4)
        seen = {"class_name": name, "box": record.det_boxes[d].round(2).tolist(), "score": score}
        text = f"detected, not labelled: {name}"
        rows.append({"kind": "missing", "score": score, "label": None, "suggestion": seen, "text": text})
    for m in missed.tolist():
        name = record.class_names[record.gt_labels[m]]
        label = {"class_name": name, "box": record.gt_boxes[m].round(2).tolist()}
        text = f"not detected: {name}"
        rows.append({"kind": "phantom", "score": 0.0, "label": label, "suggestion": None, "text": text})
    return [{"image": image, **row} for row in rows]
