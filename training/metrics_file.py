"""Read a run's metrics.csv to check for convergence."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

from utils.errors import UserError
from utils.files import MEGABYTE, read_lines

LEAST_SCORES = 5  # minimum number of evaluations to judge convergence
CONVERGED_SHARE = 0.7  # a best score within the first 70 % of the evaluations means convergence


def has_converged(folder: Path) -> bool:
    """Whether the run in `folder` had stopped improving: its best mAP50 was reached well before its end."""
    scores: list[float] = []
    with contextlib.suppress(UserError, ValueError, csv.Error):
        for row in csv.DictReader(line for _, line in read_lines(folder / "metrics.csv", 16 * MEGABYTE)):
            if row.get("voc10_mAP50"):
                scores.append(float(row["voc10_mAP50"]))
    return len(scores) >= LEAST_SCORES and scores.index(max(scores)) < CONVERGED_SHARE * (len(scores) - 1)
