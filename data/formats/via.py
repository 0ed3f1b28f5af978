"""Read VGG Image Annotator JSON (export or project) and CSV, versions 1 and 2.

Source: https://www.robots.ox.ac.uk/~vgg/software/via/docs/
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.class_names import decode_text
from data.formats.folder import Folder
from data.formats.json_files import MAX_JSON_BYTES, load_json
from data.formats.labels import Labels, number_of
from utils.files import read_file

_CLASS_KEYS = ("class", "label", "name", "type", "object", "category")


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{os.path.basename(files[0])} has the regions of the VGG Image Annotator" if files else None


def _files(folder: Folder) -> list[str]:
    def is_via(path: str) -> bool:
        head = folder.head(path)
        return b"region_shape_attributes" in head or (
            b'"filename"' in head and (b'"regions"' in head or b"_via_" in head)
        )

    return [path for path in folder.having(".json", ".csv") if is_via(path)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": region "
    for path in _files(folder):
        number = 0
        for name, shape, attributes in _csv_rows(path) if path.endswith(".csv") else _json_rows(path, labels):
            image = labels.image(name, path)
            if image is None or shape is None:
                continue
            number += 1
            box = _box(shape)
            if box is None:
                labels.drop("no_box", path, number, f"a shape {str(shape.get('name'))[:40]!r} has no box")
            else:
                labels.box(image, _class(attributes), box, path, number)


def _json_rows(path: str, labels: Labels) -> Iterator[tuple[str, dict[str, Any] | None, Any]]:
    content, problem = load_json(path)
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        return labels.refuse(path, problem or "holds no pictures")
    for item in content.values():
        if not isinstance(item, dict) or not isinstance(item.get("filename"), str):
            continue
        regions = item.get("regions")
        each: Iterable[Any] = regions.values() if isinstance(regions, dict) else regions or []  # version 1 has a dict
        yield item["filename"], None, None
        for region in each:
            if isinstance(region, dict) and isinstance(region.get("shape_attributes"), dict):
                yield item["filename"], region["shape_attributes"], region.get("region_attributes")
    return None


def _csv_rows(path: str) -> Iterator[tuple[str, dict[str, Any] | None, Any]]:
    for row in csv.DictReader(decode_text(read_file(path, MAX_JSON_BYTES), path).splitlines()):
        shape, attributes = (_loads(row.get(f"region_{kind}attributes")) for kind in ("shape_", ""))
        yield row.get("filename") or row.get("#filename") or "", shape or None, attributes


def _loads(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _class(attributes: Any) -> Any:
    """The class of a region: the attribute of that name, else the only one; of a checkbox, the checked value."""
    if not isinstance(attributes, dict) or not attributes:
        return None
    by_name = {key.lower(): value for key, value in attributes.items()}
    value = next((by_name[key] for key in _CLASS_KEYS if key in by_name), None)
    value = next(iter(attributes.values())) if value is None else value
    if isinstance(value, dict):
        value = next((key for key, ticked in value.items() if ticked), None)
    return value


def _box(shape: dict[str, Any]) -> list[Any] | None:
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = (number_of(shape.get(key)) for key in ("x", "y", "width", "height"))
        return None if None in (x, y, width, height) else [x, y, x + width, y + height]  # type: ignore[operator]
    if kind in ("circle", "ellipse"):
        x, y, r = (number_of(shape.get(key)) for key in ("cx", "cy", "r"))
        rx, ry = (number_of(shape.get(key, r)) for key in ("rx", "ry"))
        return None if None in (x, y, rx, ry) else [x - rx, y - ry, x + rx, y + ry]  # type: ignore[operator]
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if kind in ("polygon", "polyline") and isinstance(xs, list) and isinstance(ys, list) and xs and ys:
        numbers = [number_of(value) for value in (*xs, *ys)]
        return None if None in numbers else [min(xs), min(ys), max(xs), max(ys)]
    return None
