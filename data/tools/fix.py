"""Write a corrected copy of a data set: faults found by `dataset.py check` are removed or corrected."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.formats.voc import VocObject, annotation_path, parse_voc_xml, split_files
from data.formats.writers import coco_annotation, voc_xml, write_coco_json, write_lines, write_yolo_yaml, yolo_txt
from data.index import DatasetIndex
from data.skips import Skip, write_skips_csv
from data.tools.findings import CODES, ERROR
from data.tools.look import Look
from data.tools.new_folder import new_folder
from utils.errors import UserError
from utils.files import MEGABYTE, FileError, read_file


@dataclass(frozen=True)
class _Part:
    """A split to write: only the images and boxes that are kept."""

    split: str
    index: DatasetIndex


def check_target(target: Path, data: Path) -> None:
    """Refuse to overwrite files, or to write into the data set itself.

    Raises:
        UserError: if `target` is not empty, is not a folder, or lies within `data`.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError("--fix", f"{target} is not a folder", "name a new one")
    if target.is_dir() and any(target.iterdir()):
        raise UserError("--fix", f"{target} is not empty", "name a new folder")
    home = data.resolve() if data.is_dir() else data.resolve().parent
    if target.resolve() == home or home in target.resolve().parents:
        raise UserError("--fix", f"{target} lies within the data set", "name a folder outside of it")


def write_fixed_copy(target: Path, indices: dict[str, DatasetIndex], looks: dict[str, list[Look]]) -> list[str]:
    """Copy images and rewrite annotations in the original format; the original is not changed.

    Removed: images that cannot be decoded, invalid boxes, duplicate boxes, and all but one copy of
    an image (the later split keeps it, so that evaluation splits stay complete). Corrected: boxes that exceed
    the image or ignore its orientation, sizes, `difficult`, annotation numbers.

    Args:
        target: a folder that does not exist or is empty; it appears only when the copy is complete.
        indices: the splits, by name.
        looks: results of decoding their images.

    Returns:
        One line of text per change; everything left out is listed in `fixed.csv` in the copy.
    """
    removed: list[Skip] = []
    parts = _choose(indices, looks, removed)
    kind = next(iter(indices.values())).source.get("format") if indices else None
    with new_folder(target) as temporary:
        writers = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}
        writers.get(str(kind), _write_yolo)(temporary, parts)
        skips = [skip for index in indices.values() for skip in index.skips]
        write_skips_csv(temporary / "fixed.csv", [*skips, *removed])
    lines = []
    for part in parts:
        before = indices[part.split]
        images, boxes = len(before) - len(part.index), before.num_boxes - part.index.num_boxes
        words = f"{len(part.index)} images and {part.index.num_boxes} boxes written"
        lines.append(f"{part.split}: {words}; left out besides what was unreadable: {images} images, {boxes} boxes")
    return [*lines, f"{target}: the corrected copy; fixed.csv in it lists what was left out or changed"]


def _choose(indices: dict[str, DatasetIndex], looks: dict[str, list[Look]], removed: list[Skip]) -> list[_Part]:
    """The images and boxes to keep; later splits have priority."""
    taken: dict[Any, str] = {}
    parts = []
    for split, index in reversed(indices.items()):
        keep = []
        for i, look in enumerate(looks[split]):
            path = os.path.realpath(index.path(i))
            twin = taken.get(path) or taken.get(look.digest)
            if look.code and CODES[look.code][0] == ERROR:
                removed.append(Skip("image", look.code, path, f"{look.what}; left out of {split}"))
            elif twin is not None:
                removed.append(Skip("image", "same_image", path, f"is also {twin}; left out of {split}"))
            else:
                keep.append(i)
                taken[path] = f"in {split}"
                taken[look.digest] = f"{path} in {split}"
        parts.append(_Part(split, _without_twins(index.subset(keep), removed)))
    return parts[::-1]


def _without_twins(index: DatasetIndex, removed: list[Skip]) -> DatasetIndex:
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    keys = np.column_stack([owner, index.labels, index.boxes]) if index.num_boxes else np.zeros((0, 6))
    _, first = np.unique(keys, axis=0, return_index=True)
    keep = np.zeros(index.num_boxes, bool)
    keep[first] = True
    for m in np.flatnonzero(~keep):
        what = f"a {index.class_names[index.labels[m]]} is there twice; one is left out"
        removed.append(Skip("box", "duplicate_box", str(index.path(int(owner[m]))), what))
    return index.keep_boxes(keep)


def _copy(source: Path, target: Path) -> None:
    """Copy a file instead of linking it, so that changes to one do not affect the other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


# --- VOC -------------------------------------------------------------------------------------------------------------


def _write_voc(target: Path, parts: Sequence[_Part]) -> None:
    for part in parts:
        index = part.index
        lists = {year: file.stem for year, file in split_files(index.source["root"], index.source["split"])}
        ids: dict[str, list[str]] = {year: [] for year in lists}
        for i in tqdm(range(len(index)), desc=f"write {part.split}", delay=2, leave=False):
            path = index.path(i)
            place = len(path.parts) - 1 - path.parts[::-1].index("JPEGImages")
            year = path.parts[place - 1] if place and path.parts[place - 1] in lists else next(iter(lists))
            name = os.path.join(*path.parts[place + 1 :])
            stem = os.path.splitext(name)[0]
            _copy(path, target / year / "JPEGImages" / name)
            xml = target / year / "Annotations" / f"{stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(_voc_annotation(index, i, year), encoding="utf-8", errors="backslashreplace")
            ids[year].append(stem)
        for year, stems in ids.items():
            write_lines(target / year / "ImageSets" / "Main" / f"{lists[year]}.txt", stems)


def _voc_annotation(index: DatasetIndex, i: int, year: str) -> str:
    part = slice(index.offsets[i], index.offsets[i + 1])
    names = [index.class_names[label] for label in index.labels[part]]
    size = (int(index.sizes[i, 0]), int(index.sizes[i, 1]))
    fields = _other_fields(index, i, names)
    return voc_xml(index.path(i).name, size, index.boxes[part], names, index.difficult[part], fields, year)


def _other_fields(index: DatasetIndex, i: int, names: Sequence[str]) -> list[dict[str, str]]:
    """Pose, truncated and what else the original says in plain text of each object that stays."""
    path = annotation_path(index.path(i))
    try:
        objects = parse_voc_xml(read_file(path, 10 * MEGABYTE), path).objects
    except FileError:
        return [{} for _ in names]
    part = slice(index.offsets[i], index.offsets[i + 1])
    lines: list[int] = index.box_refs[part].tolist() if index.box_refs is not None else []
    fields = []
    at: dict[tuple[int, str | None], list[VocObject]] = {}
    for each in reversed(objects):
        at.setdefault((each.line, each.fields.get("name")), []).append(each)
    for line, name in zip(lines, names, strict=True):
        own = at.get((line, name), [])
        texts = own.pop().fields if own else {}
        plain = {key: text for key, text in texts.items() if text and re.fullmatch(r"[A-Za-z_][\w.-]*", key)}
        fields.append({key: text for key, text in plain.items() if key not in ("name", "difficult", "bndbox")})
    return fields


# --- COCO ------------------------------------------------------------------------------------------------------------


def _write_coco(target: Path, parts: Sequence[_Part]) -> None:
    (target / "annotations").mkdir()
    for part in parts:
        index = part.index
        folders = [str(index.path(i).parent) for i in range(len(index))]
        home = os.path.commonpath(folders) if folders else ""
        images = []
        for i in tqdm(range(len(index)), desc=f"write {part.split}", delay=2, leave=False):
            name = os.path.relpath(index.path(i), home)
            _copy(index.path(i), target / part.split / name)
            height, width = (int(side) for side in index.sizes[i])
            images.append({"id": _coco_id(index, i), "file_name": name, "height": height, "width": width})
        categories = index.category_ids or tuple(range(1, len(index.class_names) + 1))
        classes = [{"id": n, "name": name} for n, name in zip(categories, index.class_names, strict=True)]
        path = target / "annotations" / f"instances_{part.split}.json"
        write_coco_json(path, classes, images, _coco_annotations(index, categories))


def _coco_id(index: DatasetIndex, i: int) -> int:
    identity = index.image_ids[i].item()
    return identity if isinstance(identity, int) else i + 1


def _coco_annotations(index: DatasetIndex, categories: Sequence[int]) -> list[dict[str, Any]]:
    """Renumber annotations if a number is missing, duplicated, or 0, which pycocotools counts as a miss."""
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    ids = index.box_refs if index.box_refs is not None else np.zeros(index.num_boxes, np.int64)
    times = Counter(ids.tolist())
    fine = all(number > 0 and count == 1 for number, count in times.items())
    annotations = []
    for m in range(index.num_boxes):
        area = None if index.areas is None else float(index.areas[m])
        numbers = (int(ids[m]) if fine else m + 1, _coco_id(index, int(owner[m])), categories[index.labels[m]])
        annotation = coco_annotation(*numbers, index.boxes[m], bool(index.crowd[m]), area)
        annotations.append(annotation | ({"difficult": 1} if index.difficult[m] else {}))
    return annotations


# --- YOLO ------------------------------------------------------------------------------------------------------------


def _write_yolo(target: Path, parts: Sequence[_Part]) -> None:
    for part in parts:
        index = part.index
        folders = [str(index.path(i).parent) for i in range(len(index))]
        home = os.path.commonpath(folders) if folders else ""
        (target / "images" / part.split).mkdir(parents=True)
        for i in tqdm(range(len(index)), desc=f"write {part.split}", delay=2, leave=False):
            name = os.path.relpath(index.path(i), home)
            _copy(index.path(i), target / "images" / part.split / name)
            boxes = slice(index.offsets[i], index.offsets[i + 1])
            label = target / "labels" / part.split / (os.path.splitext(name)[0] + ".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            size = (int(index.sizes[i, 0]), int(index.sizes[i, 1]))
            label.write_text(yolo_txt(index.boxes[boxes], index.labels[boxes], size), encoding="utf-8")
    names = parts[0].index.class_names if parts else ()
    write_yolo_yaml(target / "data.yaml", names, {part.split: f"images/{part.split}" for part in parts})
