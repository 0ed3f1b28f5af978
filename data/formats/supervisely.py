"""Read Supervisely JSON: `img/a.jpg` with `ann/a.jpg.json`; its data sets (`ds0`, `train`) are the splits.

Source: https://docs.supervisely.com/customization-and-integration/00_ann_format_navi
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from data.formats.folder import Folder, suffix_of
from data.formats.json_files import load_json
from data.formats.labels import Labels, number_of
from imaging.image_io import IMAGE_SUFFIXES


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{len(files)} .json files named after pictures with Supervisely's `objects`" if files else None


def _files(folder: Folder) -> list[str]:
    def is_annotation(path: str) -> bool:
        parent = os.path.basename(os.path.dirname(path)).casefold()
        return (suffix_of(path[:-5]) in IMAGE_SUFFIXES or parent == "ann") and b'"objects"' in folder.head(path)

    return [path for path in folder.having(".json") if is_annotation(path)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": object "
    for path in _files(folder):
        content, problem = load_json(path)
        objects = content.get("objects") if isinstance(content, dict) else None
        if not isinstance(objects, list):
            labels.refuse(path, problem or "has no list `objects`")
            continue
        size = content.get("size")
        size = (size.get("height"), size.get("width")) if isinstance(size, dict) else (None, None)
        home = os.path.dirname(os.path.dirname(path))  # of img and ann
        image = labels.image(f"{home}/img/{os.path.basename(path)[:-5]}", path, size=size)
        for number, each in enumerate(objects if image is not None else [], 1):
            points = each.get("points", {}).get("exterior") if isinstance(each, dict) else None
            corners = [[number_of(value) for value in point] for point in points or [] if isinstance(point, list)]
            if len(corners) < 2 or any(len(point) != 2 or None in point for point in corners):
                kind = each.get("geometryType") if isinstance(each, dict) else each
                labels.drop("no_box", path, number, f"a {str(kind)[:40]!r} has no box")
            elif image is not None:
                xs, ys = ([point[k] or 0.0 for point in corners] for k in (0, 1))
                labels.box(image, each.get("classTitle"), [min(xs), min(ys), max(xs), max(ys)], path, number)
