"""The part of the data check that takes a moment: run by train.py before the first epoch."""

from __future__ import annotations

import os

import numpy as np

from data.index import DatasetIndex, classes_found
from data.tools.findings import Finding, finding, some_names
from data.tools.look import heard_complaints
from utils.errors import UserError
from utils.images import read_image

IMBALANCE = 100.0  # most frequent class to rarest
FEW = 10  # boxes of a class
PROBED = 50  # images that are tried at most before all are taken for broken


def quick_check(train: DatasetIndex, val: DatasetIndex | None = None) -> list[Finding]:
    """What can be said in a moment, without decoding more pictures than it takes to find a good one.

    Args:
        train: the training split.
        val: the validation split, read with the same class names.

    Returns:
        The findings that do not prevent a training.

    Raises:
        UserError: if a split has no image, none that can be decoded, or no box of any class; names the classes that
            were found.
    """
    findings = []
    for index in (train, val):
        if index is not None:
            _refuse_hopeless(index)
            _refuse_unreadable(index)
            findings += check_classes(index, index.name, is_training=index is train)
    if val is not None:
        findings += check_overlap({train.name: train, val.name: val})
    return findings


def _refuse_hopeless(index: DatasetIndex) -> None:
    if not len(index):
        skipped = sum(skip.kind == "image" for skip in index.skips)
        raise UserError(index.name, f"has no image that can be used, {skipped} were left out", "run: dataset.py check")
    if not index.num_boxes:
        sought = ", ".join(index.class_names[:20]) or "none"
        what = f"has no box of any class: sought {sought}; found {classes_found(index)}"
        raise UserError(index.name, what, "give the class file that belongs to this data, or run: dataset.py check")


def _refuse_unreadable(index: DatasetIndex) -> None:
    """Look for one picture that can be decoded: where there is none, training would find that out later and slowly."""
    if "format" not in index.source:  # made in memory, or of shards
        return
    reasons = []
    for i in np.unique(np.linspace(0, len(index) - 1, PROBED).round().astype(int)).tolist():
        try:
            with heard_complaints():
                read_image(index.path(i), min_size=(64, 64))
            return
        except (UserError, OSError) as error:
            reasons.append(str(error))
    what = f"not one of {len(reasons)} pictures can be decoded, the first because {reasons[0]}"
    raise UserError(index.name, f"{what}; found {classes_found(index)}", "run: dataset.py check")


def check_classes(index: DatasetIndex, split: str, is_training: bool = True) -> list[Finding]:
    """Classes that are rare, absent, or written in two ways."""
    findings = []
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    where = index.source.get("json") or index.source.get("root", index.name)
    spelt: dict[str, str] = {}
    for name in index.class_names:
        near = spelt.setdefault(_letters(name) or name, name)
        if near != name:
            what = f"classes {near!r} and {name!r} differ only in case or punctuation"
            findings.append(finding("similar_classes", where, what, "give both one name", split))
    if not is_training or not index.num_boxes:
        return findings
    absent = [name for name, count in zip(index.class_names, counts, strict=True) if not count]
    if absent:
        what = f"no box of {some_names(absent)} ({len(absent)} of {len(counts)} classes)"
        findings.append(finding("class_without_boxes", where, what, "add some, or remove the class", split))
    few = [f"{name} ({count})" for name, count in zip(index.class_names, counts, strict=True) if 0 < count < FEW]
    if few:
        what = f"fewer than {FEW} boxes of {some_names(few)}"
        findings.append(finding("few_boxes", where, what, "they will hardly be learnt", split))
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    if counts[most] > IMBALANCE * counts[least]:
        names = index.class_names
        what = f"{names[most]} has {counts[most]} boxes, {names[least]} has {counts[least]}"
        findings.append(finding("class_imbalance", where, what, "add pictures of the rare classes", split))
    return findings


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def check_overlap(indices: dict[str, DatasetIndex]) -> list[Finding]:
    """The same file in two splits."""
    findings = []
    paths = {name: {os.path.realpath(index.path(i)): i for i in range(len(index))} for name, index in indices.items()}
    names = list(indices)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for path in sorted(paths[first].keys() & paths[second].keys()):
                what = f"is in {first} and in {second}"
                findings.append(finding("same_image", path, what, "leave it in one of them", f"{first}+{second}"))
    return findings
