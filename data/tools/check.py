"""Check a data set for errors before training."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.data_options import DataOptions
from data.formats.folder import Folder
from data.formats.places import annotation_file, box_where
from data.formats.voc import ALL, MAX_SPLIT_BYTES, VocFolder, find_voc_years, list_voc_splits
from data.formats.yolo_rows import label_path
from data.index import DatasetIndex
from data.open import check_image_folder, list_splits, match_split, open_dataset, recognise
from data.quick_check import check_class_names, check_classes, check_format, check_overlap, check_sizes
from data.tools.check_page import write_check_page
from data.tools.decoding import DecodedImage, decode_images
from data.tools.duplicates import check_duplicates
from data.tools.findings import CODES, ERROR, INFO, WARNING, CheckReport, Finding, finding
from data.tools.fix import write_fixed_copy
from data.tools.new_folder import check_new_folder
from imaging.image_io import IMAGE_SUFFIXES, MAX_MEGAPIXELS
from utils.config import option, parse_options
from utils.errors import UserError, printable
from utils.files import FileError, StrPath, read_lines, write_file
from utils.output_rules import check_output_file
from utils.text import counted, quoted, some_names

TINY = 4.0  # pixels of the shorter side at the training size: half a cell of the finest stride
LARGEST_INPUT = 1280  # above it, tiles are cheaper


# --- boxes -----------------------------------------------------------------------------------------------------------


def check_boxes(index: DatasetIndex, split: str, input_size: int) -> list[Finding]:
    """Find duplicate boxes, boxes that are tiny at the training size, and boxes of another format."""
    owner = index.image_of_box
    findings = _check_duplicate_boxes(index, owner, split)
    if index.num_boxes:
        scale = input_size / index.sizes.max(1)[owner]
        sides = (index.boxes[:, 2:] - index.boxes[:, :2]).min(1) * scale
        for m in np.flatnonzero((sides < TINY) & ~index.crowd):
            what = f"the {index.class_names[index.labels[m]]} is {sides[m]:.1f} pixels at input size {input_size}"
            enough = int(np.ceil(input_size * TINY / max(sides[m], 1e-3) / 32)) * 32
            todo = f"it has {TINY:g} at --input-size {enough}" if enough <= LARGEST_INPUT else "train on tiles (--tile)"
            where, picture = box_where(index, int(owner[m]), int(m)), str(index.path(int(owner[m])))
            findings.append(finding("tiny_box", where, what, todo, split, 1, [picture], index.boxes[m]))
    return findings + check_format(index, split)


def _check_duplicate_boxes(index: DatasetIndex, owner: np.ndarray, split: str) -> list[Finding]:
    findings = []
    keys = np.column_stack([owner, index.boxes]) if index.num_boxes else np.zeros((0, 5))
    order = np.lexsort(keys.T[::-1])
    same = (keys[order][1:] == keys[order][:-1]).all(1)
    for first, second in zip(order[:-1][same], order[1:][same], strict=True):
        first, second = min(first, second), max(first, second)
        one, other = (index.class_names[index.labels[m]] for m in (first, second))
        where, before = (box_where(index, int(owner[m]), int(m)) for m in (second, first))
        before = before.rsplit(os.sep, 1)[-1]
        code, what, todo = "duplicate_box", f"the {one} is the same as at {before}", "remove one"
        if one != other:
            code, what = "conflicting_box", f"the {other} has the box of the {one} at {before}"
            todo = "remove the wrong one"
        picture = str(index.path(int(owner[first])))
        findings.append(finding(code, where, what, todo, split, 1, [picture], index.boxes[second]))
    return findings


# --- the images themselves -----------------------------------------------------------------------------------------


def check_images(indices: dict[str, DatasetIndex], decoded: dict[str, list[DecodedImage]]) -> list[Finding]:
    """Findings from decoding every image: damage, and duplicate images."""
    findings = [
        finding(facts.code, index.path(i), facts.what, facts.todo, split)
        for split, index in indices.items()
        for i, facts in enumerate(decoded[split])
        if facts.code
    ]
    return findings + check_duplicates(indices, decoded)


# --- files that nothing uses -----------------------------------------------------------------------------------------


def check_unused_files(indices: dict[str, DatasetIndex]) -> list[Finding]:
    """Annotations without an image, and images that nothing uses."""
    kinds = {index.source.get("format") for index in indices.values()}
    if kinds == {"voc"}:
        return _unused_voc_files(next(iter(indices.values())).source["root"])
    if kinds == {"yolo"}:
        return _unused_yolo_files(indices)
    if kinds == {"coco"}:
        return _unused_coco_files(indices)
    todo = "annotate them if they should be used"
    return _spare_pictures(indices, "image_without_annotation", "without annotation", todo)


def _unused_voc_files(root: str) -> list[Finding]:
    findings = []
    splits = list_voc_splits(root)
    for year, path in find_voc_years(root).items():
        folder = VocFolder(path, os.path.realpath(root))
        for name in sorted(folder.annotations.keys() - folder.images.keys() - folder.outside):
            what = "belongs to no image in JPEGImages"
            where, todo = folder.annotations[name], "add it or remove this"
            findings.append(finding("annotation_without_image", where, what, todo))
        used: set[str | None] = set()
        for name in splits[year]:
            with contextlib.suppress(FileError):  # an unreadable split was already reported
                lines = read_lines(path / "ImageSets/Main" / f"{name}.txt", MAX_SPLIT_BYTES)
                used |= {folder.identify(line) for _, line in lines}
        spare = folder.images.keys() - used
        plain, annotated = sorted(spare - folder.annotations.keys()), sorted(spare & folder.annotations.keys())
        if plain:
            what = f"{counted(len(plain), 'image')} without annotation in no split: {some_names(plain, 5)}"
            findings.append(finding("image_without_annotation", path / "JPEGImages", what))
        if annotated and splits[year] != [ALL]:
            what = f"{counted(len(annotated), 'annotated image')} in no split: {some_names(annotated, 5)}"
            findings.append(finding("not_in_a_split", path / "JPEGImages", what, "add them to a split"))
    return findings


def _unused_yolo_files(indices: dict[str, DatasetIndex]) -> list[Finding]:
    findings = []
    split_of: dict[str, str] = {}  # the first split that uses each folder of labels, for the message
    labels: set[str] = set()  # of all splits: list files let several share one folder
    for split, index in indices.items():
        own = {os.path.abspath(annotation_file(index, str(index.path(i)))) for i in range(len(index))}
        own |= {label_path(os.path.abspath(skip.where)) for skip in index.skips if skip.kind == "image"}
        labels |= own
        for path in own:
            split_of.setdefault(os.path.dirname(path), split)
    for folder, split in sorted(split_of.items()):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            path = os.path.join(folder, name)
            is_label = name.endswith(".txt") and name != "classes.txt" and f"{os.sep}labels" in folder.casefold()
            if is_label and path not in labels:
                findings.append(finding("annotation_without_image", path, "belongs to no image", "", split))
    return findings + _spare_pictures(indices, "not_in_a_split", "in no split", "add them to a split")


def _spare_pictures(indices: dict[str, DatasetIndex], code: str, fault: str, todo: str) -> list[Finding]:
    """Images below the folder of a data set that no split names, neither used nor skipped."""
    if not indices:
        return []
    source = next(iter(indices.values())).source
    root = source["root"] if os.path.isdir(source["root"]) else os.path.dirname(source["root"])
    folder = Folder(root, source.get("image_folder"))
    used = {os.path.realpath(path) for index in indices.values() for path in index.paths()}
    used |= {os.path.realpath(skip.where.rsplit(":", 1)[0]) for each in indices.values() for skip in each.skips}
    spare = [path for path in folder.pictures if os.path.realpath(path) not in used]
    if not spare:
        return []
    shown = some_names([folder.relative(path) for path in spare], 5)
    what = f"{len(spare)} of {len(folder.pictures)} images {fault}: {shown}"
    return [finding(code, folder.root, what, todo, "", len(spare), spare)]


def _unused_coco_files(indices: dict[str, DatasetIndex]) -> list[Finding]:
    used = {os.path.abspath(path) for index in indices.values() for path in index.paths()}
    used |= {os.path.abspath(skip.where) for index in indices.values() for skip in index.skips}
    folders = {folder for index in indices.values() for folder in index.source["dependencies"]["folders"]}
    findings = []
    for folder in sorted(folders):
        names = [e.path for e in os.scandir(folder)] if os.path.isdir(folder) else []
        spare = sorted(p for p in names if os.path.splitext(p)[1].lower() in IMAGE_SUFFIXES and p not in used)
        if spare:
            shown = some_names([os.path.basename(path) for path in spare], 5)
            what = f"{counted(len(spare), 'image is', 'images are')} not in the JSON: {shown}"
            findings.append(finding("image_without_annotation", folder, what))
    return findings


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckOptions(DataOptions):
    """The options of `dataset.py check`."""

    split: tuple[str, ...] = option(  # type: ignore[assignment]
        (), "splits to check (default: all used for training and evaluation)", metavar="NAME"
    )
    input_size: int = option(416, "input size of training, pixels, for the check for tiny boxes", low=32, high=4096)
    json: str | None = option(None, "write the whole report to this file", metavar="FILE")
    report: str | None = option(None, "write a page with the suspicious images", metavar="FILE.html")
    fix: str | None = option(None, "write a corrected copy into this new folder", metavar="DIR")
    images: bool = option(True, "decode every image, and find duplicates between splits")
    show: int = option(3, "number of findings of each kind to print; --json contains all", low=0)
    workers: int | None = option(None, "number of decoder processes (default: one per core)", low=0, high=256)
    max_megapixels: float = option(MAX_MEGAPIXELS, "reject images with more megapixels", above=0)
    cache: bool = option(True, "use the cache of indices in the user's cache folder")
    overwrite: bool = option(False, "replace an existing --json or --report file")


def check_dataset(
    data: StrPath,
    splits: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    input_size: int = 416,
    images: bool = True,
    workers: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    use_cache: bool = True,
    image_folder: str | None = None,
) -> tuple[CheckReport, dict[str, DatasetIndex], dict[str, list[DecodedImage]]]:
    """Check splits of a data set.

    Args:
        data, class_names, max_megapixels, use_cache, image_folder: as in `open_dataset`.
        splits: split names; empty checks all splits used for training and evaluation.
        input_size: pixels; the reference for tiny boxes.
        images: also decode every image, in `workers` processes.

    Returns:
        The report, the readable splits, and the result of decoding each image (empty without `images`).

    Raises:
        UserError: if the data set or a split does not exist.
    """
    start = time.perf_counter()
    found = recognise(data)
    image_folder = check_image_folder(found, image_folder)
    report = CheckReport(os.fspath(data), found.format.name, f"{found.format.title}: {found.why}")
    names = list(splits) or _splits_to_check(data, report, image_folder)
    if splits and report.kind != "voc":
        names = [match_split(data, name, image_folder) for name in splits]
    indices: dict[str, DatasetIndex] = {}
    for name in names:
        classes = class_names or (next(iter(indices.values())).class_names if indices else None)
        try:
            indices[name] = open_dataset(data, name, classes, use_cache, max_megapixels, True, True, image_folder)
        except UserError as error:
            if splits and "no split" in error.what:
                raise
            report.findings.append(finding("unreadable_split", error.where, error.what, error.todo, name))
    for number, (name, index) in enumerate(indices.items()):
        report.findings += _check_split(index, name, input_size, is_training=number == 0)
        report.splits[name] = _describe(index)
    report.findings = list(dict.fromkeys(report.findings))  # skips of the whole data set are repeated in every split
    report.findings += check_class_names(indices) + check_overlap(indices) + check_unused_files(indices)
    decoded: dict[str, list[DecodedImage]] = {}
    if images:
        decoded = _decode(indices, max_megapixels, workers)
        report.findings += check_images(indices, decoded)
    report.seconds = time.perf_counter() - start
    return report, indices, decoded


def _splits_to_check(data: StrPath, report: CheckReport, image_folder: str | None) -> list[str]:
    """All splits except unions of others (trainval with train and val) and single years."""
    names = [name for name in list_splits(data, image_folder) if ":" not in name]
    if "train" in names and "val" in names:
        names = [name for name in names if name != "trainval"]
    if not names:
        todo = f"create them: python dataset.py split {quoted(data)}"
        report.findings.append(finding("empty_split", data, "has no splits", todo))
    ranks = {"train": 0, "trainval": 1}
    return sorted(names, key=lambda name: ranks.get(name.rstrip("0123456789"), 2))


def _check_split(index: DatasetIndex, name: str, input_size: int, is_training: bool) -> list[Finding]:
    shared = index.source.get("split_of") is not None  # a format that is read as a whole reports it for all splits
    own = "" if shared else name
    findings = [finding(each.code, each.where, each.what, each.todo, own, each.count) for each in index.skips]
    where = index.source.get("json") or index.source.get("root", index.name)
    if not len(index):
        findings.append(finding("empty_split", where, f"split {name} has no usable image", "", name))
    elif not index.num_boxes:
        found = index.source.get("found_classes", {})
        what = f"split {name} has no box of any class; found {some_names(list(found)) or 'no objects'}"
        todo = "give the class file of this data set" if found else "see the errors, or label the images"
        findings.append(finding("no_boxes", where, what, todo, name))
    findings += check_boxes(index, name, input_size) + check_sizes(index, name)
    return findings + (check_classes(index, name) if is_training else [])


def _describe(index: DatasetIndex) -> dict[str, object]:
    counts = np.bincount(index.labels, minlength=len(index.class_names)).tolist()
    return {
        "images": len(index),
        "images_without_boxes": int((np.diff(index.offsets) == 0).sum()),
        "boxes": index.num_boxes,
        "difficult": int(index.difficult.sum()),
        "crowd": int(index.crowd.sum()),
        "images_skipped": sum(skip.count for skip in index.skips if skip.kind == "image"),
        "boxes_dropped": sum(skip.count for skip in index.skips if skip.kind == "box"),
        "without_labels": index.source.get("no_label", []),
        "classes": dict(zip(index.class_names, counts, strict=True)),
    }


def _decode(
    indices: dict[str, DatasetIndex], max_megapixels: float, workers: int | None
) -> dict[str, list[DecodedImage]]:
    paths = {name: [str(path) for path in index.paths()] for name, index in indices.items()}
    unique = list(dict.fromkeys(path for each in paths.values() for path in each))
    seen = dict(zip(unique, decode_images(unique, max_megapixels, workers), strict=True))
    return {name: [seen[path] for path in each] for name, each in paths.items()}


def print_report(report: CheckReport, shown: int) -> None:
    """The kinds of findings, most severe first: one line per kind, and `shown` examples of each."""
    print(f"{printable(report.data)}: {printable(report.why)}")
    for name, facts in report.splits.items():
        words = f"{counted(facts['images'], 'image')} ({facts['images_without_boxes']} without a box)"
        print(
            f"{name}: {words}, {counted(facts['boxes'], 'box')}, {counted(facts['images_skipped'], 'image')} skipped, "
            f"{counted(facts['boxes_dropped'], 'box')} dropped"
        )
    for severity, codes in report.by_severity():
        for code, findings in codes:
            print(f"\n{severity} {code} ({sum(each.count for each in findings)}): {CODES[code][1]}")
            for each in findings[:shown]:
                print(f"  {each}")
            if len(findings) > shown:
                print(f"  ... and {len(findings) - shown} more")
    counts = ", ".join(counted(report.count(severity), word) for severity, word in _NOUNS.items())
    print(f"\n{printable(report.data)}: {counts}, in {report.seconds:.1f} s")


_NOUNS = {ERROR: "error", WARNING: "warning", INFO: "note"}


def main(argv: list[str] | None = None) -> int:
    """Run `dataset.py check`: returns 0 without errors, else 1."""
    options = parse_options(CheckOptions, argv, description=__doc__ or "", prog="dataset.py check")
    for name, file in (("--json", options.json), ("--report", options.report)):
        if file:
            check_output_file(name, file, options.overwrite)
    if options.fix:
        check_new_folder("--fix", Path(options.fix), Path(options.data))
    if options.fix and not options.images:
        raise UserError("--fix", "needs to decode the images", "leave out --no-images")
    names = options.class_names()
    arguments = (options.data, options.split, names, options.input_size, options.images, options.workers)
    report, indices, decoded = check_dataset(*arguments, options.max_megapixels, options.cache, options.image_folder)
    print_report(report, options.show)
    if options.json:
        write_file(options.json, report.to_json().encode("utf-8", "backslashreplace"))
    if options.report:
        write_check_page(options.report, report, indices)
        print(f"page with images: {options.report}")
    if options.fix:
        for line in write_fixed_copy(Path(options.fix), indices, decoded):
            print(line)
        again, _, _ = check_dataset(options.fix, options.split, names, options.input_size, False, use_cache=False)
        print(f"checked again: {counted(again.count(ERROR), 'error')}, {counted(again.count(WARNING), 'warning')}")
    return 0 if report.is_clean else 1
