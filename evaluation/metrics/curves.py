"""Precision-recall curves: precision, recall and F1 as functions of the score, per class and over all classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics.matching import IGNORED, TRUE_POSITIVE, ranked_by_class
from evaluation.metrics.record import EvalRecord


@dataclass(frozen=True)
class ScoreCurve:
    """Counts at each of K distinct score thresholds, highest first.

    Args:
        scores: (K,) float64, strictly decreasing.
        true_positives, false_positives: (K,) int64, counts of detections with at least this score.
        num_gt: number of objects that count.
    """

    scores: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_gt: int

    @property
    def precision(self) -> np.ndarray:
        return self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)

    @property
    def recall(self) -> np.ndarray:
        return self.true_positives / max(self.num_gt, 1)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall."""
        return 2 * self.true_positives / np.maximum(self.true_positives + self.false_positives + self.num_gt, 1)

    def at(self, threshold: float) -> tuple[float, float, float]:
        """(precision, recall, F1) of the detections with a score of at least `threshold`; 0 if there are none."""
        kept = int(np.searchsorted(-self.scores, -threshold, side="right")) - 1
        return (float(self.precision[kept]), float(self.recall[kept]), float(self.f1[kept])) if kept >= 0 else (0, 0, 0)

    def counts(self, threshold: float) -> tuple[int, int]:
        """(true positives, false positives) among the detections with a score of at least `threshold`."""
        kept = int(np.searchsorted(-self.scores, -threshold, side="right")) - 1
        return (int(self.true_positives[kept]), int(self.false_positives[kept])) if kept >= 0 else (0, 0)

    @property
    def best(self) -> tuple[float | None, float | None]:
        """(threshold, F1) where F1 is largest; None without detections or without objects.

        The threshold lies midway to the next lower score, so that rounding it loses no detection.
        """
        if not len(self.scores) or not self.num_gt or not self.true_positives[-1]:
            return None, None
        top = int(np.argmax(self.f1))
        below = self.scores[top + 1] if top + 1 < len(self.scores) else self.scores[top]
        return float((self.scores[top] + below) / 2), float(self.f1[top])


@dataclass(frozen=True)
class ScoreCurves:
    """The curve over all classes (each detection and object counts once) and of each class."""

    overall: ScoreCurve
    per_class: tuple[ScoreCurve, ...]

    @property
    def best_threshold(self) -> float | None:
        return self.overall.best[0]

    @property
    def best_f1(self) -> float | None:
        return self.overall.best[1]


def score_curves(record: EvalRecord, outcome: np.ndarray) -> ScoreCurves:
    """Curves of a record.

    Args:
        record: detections and ground truth.
        outcome: (N,) of `matching.outcomes`; ignored detections and difficult objects are left out.
    """
    num_gt = record.num_gt
    per_class = tuple(
        _curve(record.det_scores[part], outcome[part], int(num_gt[c]))
        for c, part in enumerate(ranked_by_class(record, outcome))
    )
    by_score = np.flatnonzero(outcome != IGNORED)
    by_score = by_score[np.argsort(-record.det_scores[by_score], kind="stable")]
    return ScoreCurves(_curve(record.det_scores[by_score], outcome[by_score], int(num_gt.sum())), per_class)


def _curve(scores: np.ndarray, outcome: np.ndarray, num_gt: int) -> ScoreCurve:
    """The curve of sorted detections; equal scores are kept or dropped together."""
    true = np.cumsum(outcome == TRUE_POSITIVE, dtype=np.int64)
    last = np.flatnonzero(np.diff(scores, append=-np.inf) != 0) if len(scores) else np.zeros(0, np.int64)
    return ScoreCurve(scores[last], true[last], last + 1 - true[last], num_gt)
