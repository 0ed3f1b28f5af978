"""Calibration: compare detection scores with measured precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics.matching import IGNORED, TRUE_POSITIVE

LEAST_SCORE = 0.05  # most of the many low-scoring boxes lie below it


@dataclass(frozen=True)
class Calibration:
    """Detections by score, in bins of equal width.

    Args:
        edges: (K + 1,) of the bins.
        counts: (K,) detections in each.
        mean_score, precision: (K,) of each bin, NaN where it is empty.
        error: expected calibration error: the mean of |precision - score| over detections; None without any.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean_score: np.ndarray
    precision: np.ndarray
    error: float | None


def calibrate(scores: np.ndarray, outcome: np.ndarray, bins: int = 10) -> Calibration:
    """Compare scores with precision.

    Args:
        scores: (N,) in [0, 1].
        outcome: (N,) of `matching.outcomes`; ignored detections and scores below `LEAST_SCORE` are left out.
        bins: number of bins.

    Source: detection expected calibration error, https://arxiv.org/abs/2004.13546, section 3.
    """
    kept = (outcome != IGNORED) & (scores >= LEAST_SCORE)
    scores, right = scores[kept], outcome[kept] == TRUE_POSITIVE
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip((scores * bins).astype(int), 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    divisor = np.where(counts > 0, counts, np.nan)
    mean_score = np.bincount(places, scores, bins) / divisor
    precision = np.bincount(places, right, bins) / divisor
    error = float(np.nansum(counts * np.abs(precision - mean_score)) / counts.sum()) if counts.sum() else None
    return Calibration(edges, counts, mean_score, precision, error)
