"""Read LabelMe JSON files: rectangles, polygons and circles, one file per image.

Source: https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from data.formats.folder import Folder
from data.formats.json_files import load_json
from data.formats.labels import Labels, number_of

_WITH_BOX = ("rectangle", "polygon", "circle", "mask", "oriented_rectangle", "rotation", "linestrip")


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{len(folder.pictures)} pictures and {len(files)} .json files with LabelMe's `shapes`" if files else None


def _files(folder: Folder) -> list[str]:
    return [path for path in folder.having(".json") if b'"shapes"' in folder.head(path)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": shape "
    for path in _files(folder):
        content, problem = load_json(path)
        shapes = content.get("shapes") if isinstance(content, dict) else None
        if not isinstance(shapes, list):
            labels.refuse(path, problem or "has no list `shapes`")
            continue
        name = content.get("imagePath")
        beside, _ = folder.same_stem(path)
        known = isinstance(name, str) and folder.find(name, os.path.dirname(path))[0] is not None
        wanted = str(name) if known or beside is None else beside
        if not known and beside is None and content.get("imageData"):
            labels.refuse(path, "holds its picture inside, and there is no picture file", "save the picture beside it")
            continue
        image = labels.image(wanted, path, size=(content.get("imageHeight"), content.get("imageWidth")))
        for number, shape in enumerate(shapes if image is not None else [], 1):
            box = _box(shape) if isinstance(shape, dict) else None
            if box is None:
                kind = shape.get("shape_type") if isinstance(shape, dict) else shape
                labels.drop("no_box", path, number, f"a shape {str(kind)[:40]!r} has no box")
            elif image is not None:
                labels.box(image, shape.get("label"), box, path, number)


def _box(shape: dict[str, Any]) -> list[float] | None:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in _WITH_BOX or not isinstance(points, list) or len(points) < 2:
        return None
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        return None
    numbers = [(number_of(x), number_of(y)) for x, y in points]
    if any(x is None or y is None for x, y in numbers):
        return None
    xs, ys = [x for x, _ in numbers if x is not None], [y for _, y in numbers if y is not None]
    if kind == "circle":  # its centre, and a point on it
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return [xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius]
    return [min(xs), min(ys), max(xs), max(ys)]
