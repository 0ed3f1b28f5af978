"""Fast data checks that train.py runs before the first epoch."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import Counter

import numpy as np

from data.index import DatasetIndex, classes_found
from data.tools.decoding import captured_decoder_errors
from data.tools.findings import Finding, finding
from imaging.image_io import read_image
from utils.errors import UserError
from utils.text import counted, some_names

IMBALANCE = 100.0  # most frequent class to rarest
FEW = 10  # minimum boxes of a class
MAX_COMPARED = 200  # maximum number of classes that a rare one is compared with for typing errors
MAX_TYPO_SHARE = 0.05  # of the boxes of the class that was meant
SMALL_SPLIT, GOOD_SPLIT = 10, 50  # images
SUSPICIOUS = 0.3  # fraction of misfitting boxes above which the box format is probably wrong
MOSTLY = 0.5  # fraction of images without a box from which labels are probably missing
PROBED = 50  # maximum number of images tried before all are considered broken


def quick_check(train: DatasetIndex, val: DatasetIndex | None = None) -> list[Finding]:
    """Run the fast checks, decoding only as many images as needed to find a valid one.

    Returns:
        The findings that do not prevent training.

    Raises:
        UserError: if a split has no image, none that can be decoded, or no box of any class; names the classes that
            were found.
    """
    findings: list[Finding] = []
    for index in (train, val):
        if index is not None:
            _refuse_hopeless(index)
            _refuse_unreadable(index)
            findings += check_sizes(index, index.name)
    findings += check_format(train, train.name) + check_classes(train, train.name)
    splits = {train.name: train} | ({} if val is None else {val.name: val})
    return findings + check_class_names(splits) + check_overlap(splits)


def _refuse_hopeless(index: DatasetIndex) -> None:
    if not len(index):
        skipped = sum(skip.kind == "image" for skip in index.skips)
        raise UserError(index.name, f"has no usable image, {skipped} were skipped", "run: dataset.py check")
    if not index.num_boxes:
        what = f"has no box of its classes ({', '.join(index.class_names[:20]) or 'none'})"
        dropped = [skip for skip in index.skips if skip.kind == "box"]
        found = index.source.get("found_classes", {})
        if dropped and (not found or found.keys() & set(index.class_names)):
            what += f"; {sum(skip.count for skip in dropped)} were dropped, the first because {dropped[0]}"
            raise UserError(index.name, what, "correct the annotations, or run: dataset.py check")
        what += f"; found {classes_found(index)}"
        todo = "give the class file of this data set" if found else "label the images"
        raise UserError(index.name, what, f"{todo}, or run: dataset.py check")


def _refuse_unreadable(index: DatasetIndex) -> None:
    """Find one image that can be decoded; without this check, training would fail late."""
    if "format" not in index.source:  # in memory, or from shards
        return
    reasons = []
    for i in index.spread(PROBED):
        try:
            with captured_decoder_errors():
                read_image(index.path(i), min_size=(64, 64))
            return
        except (UserError, OSError) as error:
            reasons.append(str(error))
    what = f"none of {len(reasons)} images can be decoded, the first because {reasons[0]}"
    raise UserError(index.name, f"{what}; found {classes_found(index)}", "run: dataset.py check")


def check_class_names(indices: dict[str, DatasetIndex]) -> list[Finding]:
    """Classes that are probably one class with two spellings; reported once for all splits."""
    counts: Counter[str] = Counter()
    for index in indices.values():
        own = np.bincount(index.labels, minlength=len(index.class_names)).tolist()
        counts.update(dict(zip(index.class_names, own, strict=True)))
    where = next((index.source.get("root", index.name) for index in indices.values()), "")
    findings = []
    common_first = sorted(counts, key=lambda name: -counts[name])
    spelt: dict[str, str] = {}
    for number, rare in enumerate(common_first):
        name = spelt.setdefault(_letters(rare) or rare, rare)
        why = "differ only in case, punctuation or Unicode form"
        if name == rare and counts[rare]:
            more_common = common_first[: min(number, MAX_COMPARED)]
            far_more = (each for each in more_common if counts[rare] <= MAX_TYPO_SHARE * counts[each])
            name = next((each for each in far_more if _is_typo(each, rare)), rare)
            why = "differ by one or two letters"
        if name != rare:
            what = (
                f"classes {name!r} ({counted(counts[name], 'box')}) and {rare!r} ({counted(counts[rare], 'box')}) {why}"
            )
            todo = f"if they are the same class, replace {rare!r} by {name!r} in the annotations"
            findings.append(finding("similar_classes", where, what, todo))
    return findings


def _is_typo(name: str, other: str) -> bool:
    """Whether two words differ by one inserted, deleted or changed letter, or by two swapped neighbours."""
    one, two = sorted((name.casefold(), other.casefold()), key=len)
    if len(one) < 3 or len(two) - len(one) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    rest_one, rest_two = one[start:], two[start:]
    changed = rest_one[1:] == rest_two[1:]
    exchanged = rest_one[:2] == rest_two[:2][::-1] and rest_one[2:] == rest_two[2:]
    is_digit = (rest_one[:1] + rest_two[:1]).isdigit()  # class1 and class2
    return not is_digit and (rest_one == rest_two[1:] if len(one) < len(two) else changed or exchanged)


def check_classes(index: DatasetIndex, split: str) -> list[Finding]:
    """Classes that are rare or absent in the training split."""
    findings: list[Finding] = []
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    where = index.source.get("json") or index.source.get("root", index.name)
    if not index.num_boxes:
        return findings
    absent = [name for name, count in zip(index.class_names, counts, strict=True) if not count]
    if absent:
        what = f"no box of {some_names(absent)} ({len(absent)} of {len(counts)} classes)"
        findings.append(finding("class_without_boxes", where, what, "add some, or remove the class", split))
    few = [f"{name} ({count})" for name, count in zip(index.class_names, counts, strict=True) if 0 < count < FEW]
    if few:
        what = f"fewer than {FEW} boxes of {some_names(few)}"
        findings.append(finding("few_boxes", where, what, "they are unlikely to be learnt", split))
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    if counts[most] > IMBALANCE * counts[least]:
        names = index.class_names
        what = f"{names[most]} has {counted(counts[most], 'box')}, {names[least]} has {counts[least]}"
        findings.append(finding("class_imbalance", where, what, "add images of the rare classes", split))
    return findings


def _letters(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFC", name).casefold() if c.isalnum())


def check_sizes(index: DatasetIndex, split: str) -> list[Finding]:
    """Splits too small for a meaningful score, and images that were probably not labelled."""
    where = index.source.get("json") or index.source.get("root", index.name)
    findings: list[Finding] = []
    count = len(index)
    without = int((np.diff(index.offsets) == 0).sum())
    if 0 < count < SMALL_SPLIT or 0 < index.num_boxes < SMALL_SPLIT:
        what = f"{split} has {counted(count, 'image')} and {counted(index.num_boxes, 'box')}"
        is_scored = any(word in split.casefold() for word in ("val", "test"))
        what += ": too few for a reliable score" if is_scored else ": too few to learn from"
        todo = f"add images; at least {GOOD_SPLIT} are recommended"
        findings.append(finding("small_split", where, what, todo, split))
    if count >= 4 and without >= MOSTLY * count:
        missing = index.source.get("no_label", [])
        what = f"{without} of {count} images of {split} without a box"
        what += f", {len(missing)} of them without a label file" if missing else ""
        findings.append(finding("mostly_without_boxes", where, what, "label them, or remove them", split))
    return findings


def check_format(index: DatasetIndex, split: str) -> list[Finding]:
    """Evidence that all boxes have another format than the one used to read them."""
    kind, facts = index.source.get("format"), index.source.get("facts", {})
    where, findings = index.source.get("json") or index.source.get("root", index.name), []
    total = max(index.num_boxes + sum(skip.count for skip in index.skips if skip.kind == "box"), 1)
    misfits, otherwise = facts.get("misfits", 0), facts.get("misfits_otherwise", {})
    best = min(otherwise, key=otherwise.__getitem__, default="")
    if misfits > SUSPICIOUS * total and total >= FEW and otherwise[best] < misfits / 2:
        forms = {"xywh": "x, y, width, height", "corners": "x1, y1, x2, y2", "centre": "centre x, y, width, height"}
        here, other = forms[facts["numbers"]], forms[best]
        what = f"{misfits} of {total} boxes do not fit in their images as {here}; as {other}, {otherwise[best]} do not"
        code = {"corners": "looks_like_corners", "xywh": "looks_like_sizes", "centre": "looks_like_centres"}[best]
        findings.append(finding(code, where, what, f"the values are probably {other}; write {here}", split))
    fractions = (index.boxes.max(1) <= 1 if index.num_boxes else np.zeros(0, bool)).sum()
    if kind != "yolo" and fractions > SUSPICIOUS * total:
        what = f"{fractions} of {total} boxes are smaller than a pixel"
        findings.append(finding("looks_normalised", where, what, "write the boxes in pixels", split))
    if facts.get("begin_at_0"):
        what = (
            f"{counted(facts['begin_at_0'], 'box')} from 0 and {facts['begin_at_1']} from 1; VOC counts pixels from 1"
        )
        todo = "they probably count from 0: every box is read 1 pixel too far to the left and the top"
        if facts["begin_at_0"] < facts["begin_at_1"]:
            todo = "most count from 1; correct the others"
        findings.append(finding("zero_based_box", where, what, todo, split, facts["begin_at_0"]))
    if facts.get("decimal"):
        what = f"{counted(facts['decimal'], 'box')} with coordinates that are not integers; used unchanged"
        findings.append(finding("decimal_box", where, what, "", split))
    return findings


def check_overlap(indices: dict[str, DatasetIndex]) -> list[Finding]:
    """The same file in two splits; one finding where a split holds all of another."""
    findings = []
    paths = {name: {os.path.realpath(path) for path in index.paths()} for name, index in indices.items()}
    for first, second in itertools.combinations(indices, 2):
        both, splits = sorted(paths[first] & paths[second]), f"{first}+{second}"
        inner, outer = (second, first) if len(both) == len(paths[second]) else (first, second)
        if 1 < len(both) == len(paths[inner]):
            what = f"all {len(both)} images of {inner} are in {outer}, too: the score is meaningless"
            root = indices[first].source.get("root", first)
            findings.append(finding("same_image", root, what, "create a separate split", splits, len(both)))
            continue
        what, todo = f"is in {first} and in {second}", "keep it in only one of them"
        findings += [finding("same_image", path, what, todo, splits) for path in both]
    return findings
