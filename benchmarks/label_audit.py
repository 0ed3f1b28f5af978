"""Precision and recall of the label audit on labels with planted errors, by kind of error.

    python -m benchmarks.label_audit --data VOCDEVKIT --split train --detections FILE.json [--seed 0]

Errors are planted into the labels: 5 % are dropped, 5 % get another class, 5 % are shifted by a third of their width or
height, and 2 % are added where there is no object. The detections must not come from a detector that was trained
on these labels. For out-of-fold detections, `--write` saves the labels with the errors as a data set:

    python -m benchmarks.label_audit --data VOCDEVKIT --split train --write PLANTED
    python train.py --folds 3 --data PLANTED ... --run-dir RUN
    python -m benchmarks.label_audit --data VOCDEVKIT --split train --detections RUN/detections.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.snapshot import write_snapshot
from data.index import DatasetIndex
from data.open import open_dataset
from evaluation.audit import (
    CLASS,
    KINDS,
    MISSING,
    PHANTOM,
    SLOPPY,
    Finding,
    box_overlaps,
    find_label_errors,
    finding_row,
)
from evaluation.detections_file import read_detections
from evaluation.evaluator import FoundDetections
from prediction.audit import audit_page, detect_in_views
from utils.config import option, parse_options
from utils.errors import run_command
from utils.text import counted

DROPPED, SWAPPED, SHIFTED, ADDED = 0.05, 0.05, 0.05, 0.02
FIRST = (100, 300, 1000)
BEST = 300  # `P@n` and `wrong` are of the first n = min(BEST, planted) findings of a kind
SHARE = 0.7  # `P@70%` is of the first 70 % of the planted number, so that data sets of all sizes can be compared
SAME = 0.5  # IoU of a finding's box with the dropped object


@dataclass(frozen=True)
class Options:
    data: str = option("", "path of the data set", metavar="PATH")
    split: str = option("train", "split of the data set")
    detections: str | None = option(
        None, "detections on the images, in the format of eval.py --detections", metavar="FILE.json"
    )
    checkpoint: str | None = option(None, "a detector to run on the images, as dataset.py audit does", metavar="FILE")
    write: str | None = option(
        None, "write the labels with the errors to this new folder in COCO format", metavar="DIR"
    )
    seed: int = option(0, "random seed of the planted errors", low=0)
    repeats: int = option(1, "number of seeds to average over, from --seed on", low=1)
    page: str | None = option(
        None, "write crops of the findings of P@n that count as false to this file", metavar="FILE.html"
    )
    json: str | None = option(None, "write the figures to this file", metavar="FILE")


@dataclass(frozen=True)
class Planted:
    """Labels with planted errors, and a record of the errors.

    Args:
        index: the labels with the errors.
        kind: (M,) kind of error of each label; an empty string for a correct label.
        dropped: image position, class and xyxy box of each dropped label.
    """

    index: DatasetIndex
    kind: np.ndarray
    dropped: list[tuple[int, int, np.ndarray]]

    def is_true(self, finding: Finding, found: FoundDetections) -> bool:
        """Whether a finding matches a planted error of the same kind."""
        if finding.kind != MISSING:
            return finding.label >= 0 and self.kind[finding.label] == finding.kind
        return self.dropped_by(finding, found) is not None

    def dropped_by(self, finding: Finding, found: FoundDetections) -> int | None:
        """Position of the dropped object that a finding matches."""
        for number, (image, label, box) in enumerate(self.dropped):
            iou = box_overlaps(found.boxes[finding.detection][None], box[None])[0] if image == finding.image else 0
            if np.max(iou) >= SAME and found.labels[finding.detection] == label:
                return number
        return None


def plant(index: DatasetIndex, seed: int) -> Planted:
    """Plant errors into the labels of objects that are neither difficult nor crowds."""
    rng = np.random.default_rng(seed)
    owner = index.image_of_box
    usual = rng.permutation(np.flatnonzero(~index.difficult & ~index.crowd))
    total = len(usual)
    sizes = [round(share * total) for share in (DROPPED, SWAPPED, SHIFTED)]
    dropped, swapped, shifted = np.split(usual[: sum(sizes)], np.cumsum(sizes)[:-1])
    boxes, labels = index.boxes.copy(), index.labels.copy()
    kind = np.full(len(boxes), "", object)
    kind[swapped], kind[shifted] = CLASS, SLOPPY
    labels[swapped] = (labels[swapped] + rng.integers(1, len(index.class_names), len(swapped))) % len(index.class_names)
    for m in shifted:
        boxes[m] = _shifted(boxes[m], index.sizes[owner[m]], rng)
    added = [_phantom(index, rng) for _ in range(round(ADDED * total))]
    keep = np.setdiff1d(np.arange(len(boxes)), dropped)
    images = np.concatenate([owner[keep], [image for image, _, _ in added]]).astype(np.int64)
    order = np.argsort(images, kind="stable")

    def joined(values: np.ndarray, new: Any) -> np.ndarray:
        return np.concatenate([values[keep], np.asarray(new, values.dtype).reshape(-1, *values.shape[1:])])[order]

    false = [False] * len(added)
    planted = replace(
        index,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(images, minlength=len(index)))]).astype(np.int64),
        boxes=joined(boxes, [box for _, _, box in added]),
        labels=joined(labels, [label for _, label, _ in added]),
        difficult=joined(index.difficult, false),
        crowd=joined(index.crowd, false),
        areas=None,
        box_refs=None,
    )
    gone = [(int(owner[m]), int(index.labels[m]), index.boxes[m]) for m in dropped]
    return Planted(planted, joined(kind, [PHANTOM] * len(added)), gone)


def _shifted(box: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift a box by a third of its width or height, if possible in a direction that keeps it inside the image."""
    sides = box[2:] - box[:2]
    moves = [np.array([sign * sides[0] / 3, 0]) for sign in (-1, 1)] + [
        np.array([0, s * sides[1] / 3]) for s in (-1, 1)
    ]
    rng.shuffle(moves)
    limit = size[::-1].astype(np.float64)
    results = [np.clip(box + np.tile(move, 2), 0, np.tile(limit, 2)) for move in moves]
    return max(results, key=lambda moved: (moved[2:] - moved[:2]).prod().round(3))


def _phantom(index: DatasetIndex, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
    """A false label: an image, a class, and a box of the size of a real object that overlaps no object of the image."""
    while True:
        image, model = int(rng.integers(len(index))), int(rng.integers(index.num_boxes))
        limit = index.sizes[image][::-1].astype(np.float64)
        sides = index.boxes[model, 2:] - index.boxes[model, :2]
        if (sides >= limit).any():
            continue
        corner = rng.random(2) * (limit - sides)
        box = np.concatenate([corner, corner + sides]).round()
        others = index.boxes[index.offsets[image] : index.offsets[image + 1]]
        if not len(others) or box_overlaps(box[None], others)[0].max() < 0.1:
            return image, int(rng.integers(len(index.class_names))), box


def measure(planted: Planted, found: FoundDetections) -> tuple[dict[str, Any], list[Finding]]:
    """Figures for each kind, and for all kinds in one list; and the findings of `P@n` that count as false.

    A finding is right if it names a planted error of its own kind, and `wrong` counts it if its label has any planted
    error (no cow is where a bottle was labelled a cow).
    """
    findings = find_label_errors(planted.index, found)
    right = np.array([planted.is_true(each, found) for each in findings], bool)
    wrong = right | np.array([each.label >= 0 and bool(planted.kind[each.label]) for each in findings], bool)
    kinds = np.array([each.kind for each in findings])
    there = {kind: int((planted.kind == kind).sum()) for kind in (PHANTOM, CLASS, SLOPPY)}
    there = {MISSING: len(planted.dropped), **there}
    rows: dict[str, Any] = {}
    false: list[Finding] = []
    for kind in (*(each for each in KINDS if each in there), "all"):
        mine = np.flatnonzero((kinds == kind) | (kind == "all"))
        number = sum(there.values()) if kind == "all" else there[kind]
        best = mine[: min(BEST, number)]
        rows[kind] = {"planted": number, "precision_at_n": right[best].sum() / max(min(BEST, number), 1)}
        rows[kind]["precision_at_share"] = right[mine[: round(SHARE * number)]].mean() if number and len(mine) else 0.0
        rows[kind]["wrong_at_n"] = wrong[best].sum() / max(min(BEST, number), 1)
        for first in FIRST:
            hits = int(right[mine[:first]].sum())
            rows[kind][f"precision_{first}"] = hits / max(min(first, len(mine)), 1)
            rows[kind][f"recall_{first}"] = hits / max(number, 1)
        if kind != "all":
            false += [findings[place] for place in best[~right[best]]]
    return rows, false


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, argv, description=__doc__ or "", prog="benchmarks.label_audit")
    index = open_dataset(options.data, options.split)
    planted = plant(index, options.seed)
    if options.write:
        write_snapshot(Path(options.write), {"train": [(planted.index, np.arange(len(index)))]})
    if options.checkpoint:
        found = detect_in_views(options.checkpoint, index)
    elif options.detections:
        found = read_detections(Path(options.detections), index, missing="empty", others="skip", unknown="keep").found
    else:
        return
    rows, false = measure(planted, found)
    if options.page:
        shown = [finding_row(each, planted.index, found, rank) for rank, each in enumerate(false, 1)]
        page = audit_page(planted.index, found, false, shown, f"{index.name}, seed {options.seed}, counted as false")
        Path(options.page).write_text(page, encoding="utf-8")
    others = [measure(plant(index, options.seed + k), found)[0] for k in range(1, options.repeats)]
    rows = {kind: {name: float(np.mean([row[name], *(each[kind][name] for each in others)])) for name in row}
            for kind, row in rows.items()}  # fmt: skip
    seeds = f"seed {options.seed}" if not others else f"mean of seeds {options.seed} to {options.seed + len(others)}"
    print(f"{index.name}: {counted(len(index), 'image')}, {counted(index.num_boxes, 'label')} before planting, {seeds}")
    print(
        "kind      planted "
        + " ".join(f"{'P@' + str(n):>7} {'R@' + str(n):>7}" for n in FIRST)
        + "   P@70%     P@n   wrong"
    )
    for kind, row in rows.items():
        cells = " ".join(f"{row[f'precision_{n}']:7.3f} {row[f'recall_{n}']:7.3f}" for n in FIRST)
        print(
            f"{kind:9s} {row['planted']:7.0f} {cells} "
            f"{row['precision_at_share']:7.3f} {row['precision_at_n']:7.3f} {row['wrong_at_n']:7.3f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    run_command(main)
