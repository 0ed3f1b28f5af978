"""Compare two evaluations, with bootstrap confidence intervals of the mAP difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, warn
from utils.json_file import read_json
from utils.text import counted

REPETITIONS = 1000
CONFIDENCE = 0.95
_EXPECTED = "a file written by eval.py --json"


@dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations of the same images, by VOC10 AP at IoU 0.5 over the classes that both score.

    Args:
        name_a, name_b: names of the two evaluations.
        a, b: mAP50 of each.
        low, high: ends of the interval of b - a.
        num_images: number of images that both scored.
        repetitions: number of bootstrap samples.
        confidence: confidence level of the intervals.
        per_class: name to (AP of a, AP of b, low, high of the difference).
    """

    name_a: str
    name_b: str
    a: float
    b: float
    low: float
    high: float
    num_images: int
    repetitions: int = REPETITIONS
    confidence: float = CONFIDENCE
    per_class: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def verdict(self) -> str:
        """The comparison as text."""
        if self.low == self.high == 0:
            return "there is no difference."
        if self.low > 0:
            return "B is significantly better."
        if self.high < 0:
            return "A is significantly better."
        return "the difference is not significant on these images; evaluate on more images."

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain types."""
        return {
            "a": {"name": self.name_a, "voc10_mAP50": self.a},
            "b": {"name": self.name_b, "voc10_mAP50": self.b},
            "difference": self.difference,
            "interval": [self.low, self.high],
            "confidence": self.confidence,
            "num_images": self.num_images,
            "repetitions": self.repetitions,
            "more_than_noise": bool(self.low > 0 or self.high < 0),
            "verdict": self.verdict,
            "per_class": {
                name: {"a": a, "b": b, "difference": b - a, "interval": [low, high]}
                for name, (a, b, low, high) in self.per_class.items()
            },
        }


def compare_results(path_a: Path, path_b: Path, repetitions: int = REPETITIONS) -> Comparison:
    """Compare two files of `eval.py --json`. Raises UserError if a file is invalid or the images differ."""
    result_a, result_b = _read_result(path_a), _read_result(path_b)
    try:
        return compare_rows(result_a, result_b, str(path_a), str(path_b), repetitions)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(path_b, f"its results per image are damaged ({error!r})", f"give {_EXPECTED}") from error


def _read_result(path: Path) -> dict[str, Any]:
    value = read_json(path, _EXPECTED)
    if not isinstance(value, dict) or not {"per_image", "class_names"} <= set(value):
        raise UserError(path, "contains no results per image", f"give {_EXPECTED}")
    return value


def score_interval(path: Path, repetitions: int = REPETITIONS) -> tuple[float, float, float]:
    """VOC10 mAP50 of a file of `eval.py --json`, and its bootstrap confidence interval.

    The mAP is treated as the difference to a detector without detections.
    """
    result = _read_result(path)
    nothing = {**result, "per_image": [{**row, "detections": []} for row in result["per_image"]]}
    found = compare_rows(nothing, result, "nothing", str(path), repetitions)
    return found.b, found.low, found.high


def compare_rows(
    result_a: Mapping[str, Any],
    result_b: Mapping[str, Any],
    name_a: str = "A",
    name_b: str = "B",
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Comparison:
    """Compare two results of `EvaluationResult.to_json(per_image=True)`.

    Images are resampled with replacement, the same for both, and both mAPs are computed again. The interval is taken
    from the percentiles of their difference, so images that are hard for both models do not widen it.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    rows_a = {str(row["image_id"]): row for row in result_a["per_image"]}
    rows_b = {str(row["image_id"]): row for row in result_b["per_image"]}
    images = [key for key in rows_a if key in rows_b]
    if not images:
        raise UserError(name_b, f"has no image in common with {name_a}", "compare two evaluations of the same split")
    alone = len(rows_a) + len(rows_b) - 2 * len(images)
    if alone:
        warn(
            name_b,
            f"{counted(alone, 'image is', 'images are')} in one file only",
            f"only the {len(images)} common ones are compared",
        )
    classes = [name for name in result_a["class_names"] if name in set(result_b["class_names"])]
    objects = _objects(rows_a, images, classes)
    sides = [
        _Ranked(rows, images, [classes.index(n) if n in classes else -1 for n in result["class_names"]], len(classes))
        for rows, result in ((rows_a, result_a), (rows_b, result_b))
    ]
    once = np.ones(len(images))
    ap_a, ap_b = (side.average_precision(once, objects) for side in sides)
    if not objects.any():
        raise UserError(name_a, "has no objects in the common images and classes", "evaluate on annotated data")
    rng = np.random.default_rng(seed)
    differences = np.full((repetitions, len(classes)), np.nan)
    overall = np.zeros(repetitions)
    for r in range(repetitions):
        weights = np.bincount(rng.integers(0, len(images), len(images)), minlength=len(images)).astype(float)
        differences[r] = sides[1].average_precision(weights, objects) - sides[0].average_precision(weights, objects)
        overall[r] = np.nanmean(differences[r]) if not np.isnan(differences[r]).all() else 0.0
    tails = [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)]
    low, high = np.percentile(overall, tails)
    ends = {c: np.nanpercentile(differences[:, c], tails) for c in np.flatnonzero(~np.isnan(ap_a))}
    per_class = {
        classes[c]: (float(ap_a[c]), float(ap_b[c]), float(class_low), float(class_high))
        for c, (class_low, class_high) in ends.items()
    }
    mean_a, mean_b = float(np.nanmean(ap_a)), float(np.nanmean(ap_b))
    return Comparison(
        name_a, name_b, mean_a, mean_b, float(low), float(high), len(images), repetitions, CONFIDENCE, per_class
    )


def _objects(rows: Mapping[str, Any], images: list[str], classes: list[str]) -> np.ndarray:
    """(I, C) objects of each class in each image."""
    place = {name: c for c, name in enumerate(classes)}
    counts = np.zeros((len(images), len(classes)))
    for i, key in enumerate(images):
        for name, count in rows[key]["objects"].items():
            if name in place:
                counts[i, place[name]] = count
    return counts


class _Ranked:
    """The detections of one model, sorted once by class and score, for computing AP with weighted images.

    Args:
        rows: results by image id.
        images: ids of the images to use, in order.
        labels: the common class of each class index of the file, -1 for none.
        num_classes: number of common classes.
    """

    def __init__(self, rows: Mapping[str, Any], images: list[str], labels: list[int], num_classes: int) -> None:
        counts = [len(rows[key]["detections"]) for key in images]
        table = np.array([row for key in images for row in rows[key]["detections"]], float).reshape(-1, 3)
        image = np.repeat(np.arange(len(images)), counts)
        label = np.array(labels, np.int64)[table[:, 0].astype(int)]
        kept = np.flatnonzero((label >= 0) & (table[:, 2] >= 0))
        order = kept[np.lexsort((-table[kept, 1], label[kept]))]
        self.image, self.right = image[order], table[order, 2] == 1
        self.bounds = np.searchsorted(label[order], np.arange(num_classes + 1))

    def average_precision(self, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """(C,) VOC10 AP with each image counted `weights` (I,) times; NaN for classes without objects."""
        num_gt = weights @ objects
        weight = weights[self.image]
        true = np.concatenate([[0.0], np.cumsum(weight * self.right)])
        every = np.concatenate([[0.0], np.cumsum(weight)])
        result = np.full(len(num_gt), np.nan)
        for c in np.flatnonzero(num_gt):
            start, end = self.bounds[c], self.bounds[c + 1]
            hits = true[start + 1 : end + 1] - true[start]
            seen = every[start + 1 : end + 1] - every[start]
            precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            result[c] = np.sum(np.diff(hits, prepend=0.0) * envelope) / num_gt[c]
        return result
