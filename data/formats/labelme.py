"""Read LabelMe JSON files: rectangles, polygons and circles, one file per image.

Source: https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from data.formats.json_files import json_lists
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_ellipse, box_of_points, number_of

_ROTATED = ("rotation", "oriented_rectangle")  # X-AnyLabeling and others, by their four corners
_WITH_BOX = ("rectangle", "polygon", "circle", "mask", "linestrip", *_ROTATED)


def is_annotation(path: str, head: bytes) -> bool:
    return b'"shapes"' in head


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": shape "
    for path, content, shapes in json_lists(labels, files, "shapes", "shapes"):
        name = content.get("imagePath")
        beside, _ = labels.folder.same_stem(path)
        known = isinstance(name, str) and labels.folder.find(name, os.path.dirname(path))[0] is not None
        if not known and beside is None and content.get("imageData"):
            labels.refuse(path, "contains its image, and there is no image file", "save the image in the same folder")
            continue
        wanted = str(name) if known or beside is None else beside
        image = labels.image(wanted, path, size=(content.get("imageHeight"), content.get("imageWidth")))
        for number, shape in enumerate(shapes, 1):
            shape = shape if isinstance(shape, dict) else {}
            kind = shape.get("shape_type") or "polygon"
            is_hard = shape.get("difficult") is True  # X-AnyLabeling
            labels.shape(image, shape.get("label"), _box(kind, shape.get("points")), path, number, kind,
                         kind in _ROTATED, difficult=is_hard)  # fmt: skip


def _box(kind: str, points: Any) -> list[float] | None:
    box = box_of_points(points) if kind in _WITH_BOX else None
    if kind == "circle" and box is not None:  # its centre, and a point on it
        x, y, x1, y1 = (number_of(value) or 0.0 for point in points[:2] for value in point)
        return box_of_ellipse([x, y, *[math.hypot(x1 - x, y1 - y)] * 2])
    return box


LAYOUT = Layout((".json",), is_annotation, "{pictures} and {files} with LabelMe's `shapes`", read)
