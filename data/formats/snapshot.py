"""Write subsets of any data set as a COCO folder with linked images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.writers import coco_annotation, write_coco_json
from data.index import DatasetIndex
from utils.errors import UserError

Part = tuple[DatasetIndex, np.ndarray]  # an index, and the positions of some of its images


def write_snapshot(folder: Path, splits: Mapping[str, Sequence[Part]]) -> dict[str, int]:
    """Write `annotations/instances_SPLIT.json` and a link `images` to the common image folder.

    Args:
        folder: the output folder.
        splits: images of each split, by name; all indices have the same classes. An image may be in several splits,
            and has the same id in all of them.

    Returns:
        Number of images of each split.
    """
    indices = [index for parts in splits.values() for index, _ in parts]
    class_names = indices[0].class_names
    paths = {index.path(int(i)) for parts in splits.values() for index, chosen in parts for i in chosen}
    if not paths:
        raise UserError(folder, "would contain no image", "give a data set with images")
    common = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    link_folder(common, folder / "images", paths)
    number = {path: n for n, path in enumerate(sorted(paths), 1)}
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, 1)]
    counts = {}
    for name, parts in splits.items():
        images = list(_images(parts, number, common))
        counts[name] = len(images)
        path = folder / "annotations" / f"instances_{name}.json"
        write_coco_json(path, categories, images, _annotations(parts, number))
    return counts


def _images(parts: Iterable[Part], number: Mapping[Path, int], common: Path) -> Iterator[dict[str, Any]]:
    for index, chosen in parts:
        for i in chosen.tolist():
            path = index.path(i)
            name = Path(os.path.abspath(path)).relative_to(common).as_posix()
            height, width = index.sizes[i].tolist()
            yield {"id": number[path], "file_name": name, "height": height, "width": width}


def _annotations(parts: Iterable[Part], number: Mapping[Path, int]) -> Iterator[dict[str, Any]]:
    count = 0
    for index, chosen in parts:
        for i in chosen.tolist():
            for m in range(int(index.offsets[i]), int(index.offsets[i + 1])):
                count += 1
                area = None if index.areas is None else float(index.areas[m])
                label = int(index.labels[m]) + 1
                entry = coco_annotation(count, number[index.path(i)], label, index.boxes[m], bool(index.crowd[m]), area)
                yield entry | ({"difficult": 1} if index.difficult[m] else {})


def link_folder(source: Path, link: Path, pictures: Iterable[Path] | None = None) -> None:
    """Make a folder available as `link`: by a link, or by a copy if the system does not support links.

    `pictures` are the files to copy; None copies all.
    """
    if os.path.lexists(link):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:
        for picture in source.rglob("*") if pictures is None else pictures:
            target = link / Path(os.path.abspath(picture)).relative_to(os.path.abspath(source))
            target.parent.mkdir(parents=True, exist_ok=True)
            if picture.is_file():
                shutil.copyfile(picture, target)
