"""Write a corrected copy of a data set: faults found by `dataset.py check` are removed or corrected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.dataset_writer import NATIVE, Losses, write_dataset
from data.index import DatasetIndex
from data.skips import Skip, write_skips_csv
from data.tools.decoding import DecodedImage
from data.tools.findings import CODES, ERROR
from data.tools.new_folder import new_folder
from utils.text import counted


def write_fixed_copy(
    target: Path, indices: dict[str, DatasetIndex], decoded: dict[str, list[DecodedImage]]
) -> list[str]:
    """Copy images and rewrite annotations; the original is not changed.

    The format is the original one, with all that it says of an object; COCO for one that is only read.

    Removed: images that cannot be decoded, invalid boxes, duplicate boxes, and all but one copy of an image (the later
    split keeps it, so that evaluation splits stay complete). Corrected: boxes that exceed the image or ignore its
    orientation, sizes, `difficult`, annotation numbers. `fixed.csv` in the copy lists everything left out.

    Args:
        target: a folder that does not exist or is empty; it appears only when the copy is complete.
        indices: the splits, by name.
        decoded: results of decoding their images.

    Returns:
        One line of text per change.
    """
    removed: list[Skip] = []
    parts = _choose(indices, decoded, removed)
    losses = Losses()
    with new_folder(target) as temporary:
        if parts:
            kind = NATIVE.get(next(iter(parts.values())).source["format"], "coco")  # COCO has most flags
            write_dataset(parts, temporary, kind, losses, keep_folders=True)
        skips = [skip for index in indices.values() for skip in index.skips]
        write_skips_csv(temporary / "fixed.csv", [*skips, *removed])
    lines = []
    for split, part in parts.items():
        images, boxes = len(indices[split]) - len(part), indices[split].num_boxes - part.num_boxes
        words = f"{counted(len(part), 'image')} and {counted(part.num_boxes, 'box')} written"
        lines.append(
            f"{split}: {words}; left out besides what was unreadable: "
            f"{counted(images, 'image')}, {counted(boxes, 'box')}"
        )
    lines += [f"cannot be stored in the copy: {count} x {what}" for what, count in losses.lost.items()]
    return [*lines, f"{target}: the corrected copy; fixed.csv in it lists what was left out or changed"]


def _choose(
    indices: dict[str, DatasetIndex], decoded: dict[str, list[DecodedImage]], removed: list[Skip]
) -> dict[str, DatasetIndex]:
    """The images and boxes to keep; later splits have priority."""
    taken: dict[Any, str] = {}
    parts = {}
    for split, index in reversed(indices.items()):
        keep = []
        for i, facts in enumerate(decoded[split]):
            path = os.path.realpath(index.path(i))
            twin = taken.get(path) or taken.get(facts.digest)
            if facts.code and CODES[facts.code][0] == ERROR:
                removed.append(Skip("image", facts.code, path, f"{facts.what}; left out of {split}"))
            elif twin is not None:
                removed.append(Skip("image", "same_image", path, f"is also {twin}; left out of {split}"))
            else:
                keep.append(i)
                taken[path] = f"in {split}"
                taken[facts.digest] = f"{path} in {split}"
        parts[split] = _without_duplicate_boxes(index.subset(keep), removed)
    return dict(reversed(parts.items()))


def _without_duplicate_boxes(index: DatasetIndex, removed: list[Skip]) -> DatasetIndex:
    owner = index.image_of_box
    keys = np.column_stack([owner, index.labels, index.boxes]) if index.num_boxes else np.zeros((0, 6))
    _, first = np.unique(keys, axis=0, return_index=True)
    keep = np.zeros(index.num_boxes, bool)
    keep[first] = True
    for m in np.flatnonzero(~keep):
        what = f"a {index.class_names[index.labels[m]]} is there twice; one is left out"
        removed.append(Skip("box", "duplicate_box", str(index.path(int(owner[m]))), what))
    return index.keep_boxes(keep)
