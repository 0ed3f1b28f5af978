"""Read Datumaro JSON, which CVAT exports too: one file per subset in `annotations/`, images in `images/`.

Source: https://openvinotoolkit.github.io/datumaro/latest/docs/data-formats/formats/datumaro.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.formats.json_files import json_lists
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_ellipse, box_of_points, box_of_sides, number_of, numbers_of, rotated_box


def is_annotation(path: str, head: bytes) -> bool:
    return all(key in head for key in (b'"items"', b'"categories"', b'"label"')) and b'"images"' not in head


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": annotation "
    for path, content, items in json_lists(labels, files, "items", "items"):
        names = _names(content.get("categories"))
        number = 0
        for item in items:
            item = item if isinstance(item, dict) else {}
            image: Any = item.get("image") if isinstance(item.get("image"), dict) else {}
            name, size = image.get("path") or item.get("id"), image.get("size")
            if not isinstance(name, str):
                labels.refuse(path, f"item {str(item.get('id'))[:80]} names no image")
                continue
            stated = (size[0], size[1]) if isinstance(size, list) and len(size) == 2 else (None, None)
            place = labels.image(name, path, size=stated)
            for each in item.get("annotations") or []:
                number += 1
                each = each if isinstance(each, dict) else {}
                kind, label = each.get("type"), each.get("label_id")
                if kind in ("label", "caption"):  # of the whole image
                    continue
                angle = number_of((each.get("attributes") or {}).get("rotation")) or 0.0
                called = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
                labels.shape(place, called, _box(kind, each, angle), path, number, kind,
                             angle != 0, crowd=each.get("is_crowd") is True)  # fmt: skip


def _names(categories: Any) -> list[Any]:
    label = categories.get("label") if isinstance(categories, dict) else None
    items = label.get("labels") if isinstance(label, dict) else None
    return [each.get("name") if isinstance(each, dict) else None for each in items or []]


def _box(kind: Any, values: dict[str, Any], degrees: float) -> list[float] | None:
    sides = numbers_of(values.get("bbox") or []) or []
    if len(sides) == 4 and kind in ("bbox", "mask", "cuboid_2d"):
        return rotated_box(box_of_sides(dict(enumerate(sides)), range(4)) or [], degrees)
    points = values.get("points")
    if not isinstance(points, list):
        return None
    if kind == "ellipse" and len(points) == 4:  # the corners of its box
        x1, y1, x2, y2 = numbers_of(points) or [0.0] * 4
        return box_of_ellipse([(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2], degrees)
    is_outline = kind in ("polygon", "polyline")
    return box_of_points(list(zip(points[::2], points[1::2], strict=False))) if is_outline else None


LAYOUT = Layout((".json",), is_annotation, "{first} has Datumaro's items and categories", read)
