"""Ground truth alone, as it stands in the files: what scoring ready detections needs, with or without pictures."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.index import DatasetIndex
from data.skips import Skip
from utils.errors import UserError, brief
from utils.files import FileError, read_file, read_lines
from utils.json_file import read_json


def open_truth(data: str | os.PathLike[str], split: str) -> DatasetIndex:
    """One split without a look at its pictures, which may be absent.

    Boxes are neither clipped nor dropped, so that the figures are those of the data set's own tools on its own files.

    Args:
        data: a VOCdevkit, a COCO JSON or folder, or another data set (whose pictures are then needed).
        split: its name; a COCO JSON file is a split by itself.

    Raises:
        UserError: if it is not there or not of that form.
    """
    from data.open import match_split, open_dataset, recognise_format

    kind = recognise_format(data)
    if kind == "voc":
        return _read_voc_truth(data, split)
    if kind == "coco":
        if Path(data).is_file():
            return read_coco_truth(Path(data))
        from data.formats.coco import find_coco_files

        return read_coco_truth(Path(find_coco_files(data)[match_split(data, split)]))
    return open_dataset(data, split)


def read_coco_truth(path: Path) -> DatasetIndex:
    """A COCO instances JSON as an index; categories keep the file's order, images are sorted by id."""
    values = read_json(path, "a COCO JSON file with images, annotations and categories")
    if not isinstance(values, dict) or not all(isinstance(values.get(key), list) for key in ("images", "categories")):
        raise UserError(path, "has no lists `images` and `categories`", "give a COCO JSON file of ground truth")
    images, skips = _by_id(path, values["images"])
    categories = {_whole(path, row, "id"): str(row.get("name")) for row in values["categories"]}
    ids = sorted(images)
    position = {image_id: i for i, image_id in enumerate(ids)}
    label = {category: c for c, category in enumerate(categories)}
    rows, owners = [], []
    annotations = values.get("annotations") or []
    if not isinstance(annotations, list):
        raise UserError(path, "`annotations` is not a list", "give a COCO JSON file of ground truth")
    for number, row in enumerate(annotations):
        where = f"{path}, annotation {number}"
        try:
            image, category = _whole(where, row, "image_id"), _whole(where, row, "category_id")
            x, y, width, height = _box(where, row.get("bbox"))
            if image not in position or category not in label:
                raise UserError(where, f"image {image} or category {category} is not in the file", "correct the file")
        except UserError as error:
            skips.append(Skip("box", "bad_annotation", error.where, error.what, error.todo))
            continue
        area = row.get("area")
        if not _finite(area):
            area = width * height
        rows.append((x, y, x + width, y + height, area, label[category], bool(row.get("iscrowd", 0))))
        owners.append(position[image])
    table = np.array(rows, np.float64).reshape(-1, 7)
    order = np.argsort(np.array(owners, np.int64), kind="stable")
    table = table[order]
    counts = np.bincount(np.array(owners, np.int64), minlength=len(ids))
    names = [_file_name(images[image_id]) for image_id in ids]
    sizes = [(_side(images[image_id].get("height")), _side(images[image_id].get("width"))) for image_id in ids]
    empty = DatasetIndex.build(path.stem, list(categories.values()), _picture_paths(path, names), ids, sizes, [], [])
    empty = replace(empty, skips=tuple(skips))
    return _filled(
        empty,
        counts,
        table[:, :4],
        table[:, 5],
        np.zeros(len(table), bool),
        table[:, 6],
        table[:, 4],
        tuple(categories),
    )


def _by_id(path: Path, rows: list[Any]) -> tuple[dict[int, dict[str, Any]], list[Skip]]:
    """The entries of `images` by id, and those that have none."""
    images: dict[int, dict[str, Any]] = {}
    skips = []
    for number, row in enumerate(rows):
        try:
            images.setdefault(_whole(f"{path}, image {number}", row, "id"), row)
        except UserError as error:
            skips.append(Skip("image", "bad_image_entry", error.where, error.what, error.todo))
    return images, skips


def _read_voc_truth(root: str | os.PathLike[str], split: str) -> DatasetIndex:
    from data.class_names import VOC_CLASS_NAMES
    from data.formats.voc import (
        MAX_SPLIT_BYTES,
        MAX_XML_BYTES,
        VocFolder,
        find_voc_years,
        leads_outside,
        parse_voc_xml,
        split_files,
    )

    files = split_files(root, split)
    years = find_voc_years(root)
    home = os.path.realpath(root)
    folders = {year: VocFolder(years[year], home) for year in {year for year, _ in files}}
    joined = len(folders) > 1
    seen: set[str] = set()
    ids, paths, sizes, counts, rows, names, skips = [], [], [], [], [], [], []
    for year, list_file in files:
        folder = folders[year]
        for number, line in read_lines(list_file, MAX_SPLIT_BYTES):
            identity = folder.identify(line, folder.annotations)
            if identity is None or identity in folder.strangers:
                is_outside = identity is not None or leads_outside(line)
                code, what = ("leads_outside", "leads out of") if is_outside else ("missing_annotation", "is not in")
                what = f"id {line.strip()[:80]!r} {what} {folder.folder / 'Annotations'}"
                skips.append(Skip("image", code, f"{list_file}:{number}", what, "remove the line"))
                continue
            image_id = f"{year}/{identity}" if joined else identity
            if image_id in seen:
                continue
            seen.add(image_id)
            xml = folder.annotations[identity]
            try:
                annotation = parse_voc_xml(read_file(xml, MAX_XML_BYTES), xml)
            except FileError as error:
                skips.append(Skip("image", error.code, error.where, error.what, error.todo))
                continue
            ids.append(image_id)
            paths.append(folder.images.get(identity) or folder.folder / "JPEGImages" / f"{identity}.jpg")
            sizes.append((_side(annotation.size.get("height")), _side(annotation.size.get("width"))))
            counts.append(0)
            for each in annotation.objects:
                box = _voc_box([each.edges.get(edge) for edge in ("xmin", "ymin", "xmax", "ymax")])
                if box is None or not each.fields.get("name"):
                    where = f"{xml}:{each.line}"
                    skips.append(Skip("box", "no_box", where, "an object has no name, or no box of 4 numbers"))
                    continue
                counts[-1] += 1
                rows.append(box)
                names.append((each.fields["name"], each.fields.get("difficult", "").lower() in ("1", "true", "yes")))
    found = {name for name, _ in names}
    class_names = VOC_CLASS_NAMES if found <= set(VOC_CLASS_NAMES) else tuple(sorted(found))
    label = {name: c for c, name in enumerate(class_names)}
    title = " + ".join(f"{year} {path.stem}" for year, path in files)
    empty = DatasetIndex.build(title, class_names, paths, ids, sizes, [], [], skips=tuple(skips))
    labels = np.array([label[name] for name, _ in names], np.int64)
    difficult = np.array([hard for _, hard in names], bool)
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    return _filled(empty, np.array(counts, np.int64), boxes, labels, difficult, np.zeros(len(boxes)), None, None)


def _filled(
    empty: DatasetIndex,
    counts: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    difficult: np.ndarray,
    crowd: np.ndarray,
    areas: np.ndarray | None,
    category_ids: tuple[int, ...] | None,
) -> DatasetIndex:
    """The index with its boxes, `counts` of which belong to each image in turn."""
    return replace(
        empty,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=labels.astype(np.int32),
        difficult=difficult.astype(bool),
        crowd=crowd.astype(bool),
        areas=areas,
        category_ids=category_ids,
    )


def _picture_paths(path: Path, names: list[str]) -> list[Path]:
    """Where the pictures of a COCO JSON lie, as far as the first one tells; beside the file otherwise."""
    parent = path.parent
    split = path.stem.removeprefix("instances_")
    folders = [parent, parent.parent, *(base / name for base in (parent, parent.parent) for name in (split, "images"))]
    folders += [parent.parent / "images" / split]
    home = next((folder for folder in folders if names and (folder / names[0]).is_file()), parent)
    return [home / name for name in names]


def _file_name(row: dict[str, Any]) -> str:
    """The picture's name as a file can have it; pictures are not needed here, so a bad name costs nothing."""
    name = row.get("file_name")
    try:
        os.fsencode(name if isinstance(name, str) else "")
    except UnicodeEncodeError:
        name = None
    return name if isinstance(name, str) and "\0" not in name else str(row["id"])


def _whole(where: object, row: Any, key: str) -> int:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise UserError(where, f"`{key}` is {brief(value)}, not a whole number", "correct the file")
    return value


def _box(where: object, value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 4 or not all(_finite(v) for v in value):
        raise UserError(where, "`bbox` is not 4 finite numbers", "correct the file")
    return [float(v) for v in value]


def _voc_box(edges: list[str | None]) -> list[float] | None:
    try:
        xmin, ymin, xmax, ymax = (float(edge or "") for edge in edges)
    except ValueError:
        return None
    return [xmin - 1, ymin - 1, xmax, ymax] if math.isfinite(xmin + ymin + xmax + ymax) else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15  # NaN is not below


def _side(value: Any) -> int:
    try:
        return max(0, min(int(float(value)), 1 << 20))
    except (TypeError, ValueError, OverflowError):
        return 0
