"""Read Supervisely JSON: `img/a.jpg` with `ann/a.jpg.json`; its data sets (`ds0`, `train`) are the splits.

Source: https://docs.supervisely.com/customization-and-integration/00_ann_format_navi
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from data.formats.folder import suffix_of
from data.formats.json_files import json_lists
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_points, number_of, rotated_box
from imaging.image_io import IMAGE_SUFFIXES


def is_annotation(path: str, head: bytes) -> bool:
    parent = os.path.basename(os.path.dirname(path)).casefold()
    return (suffix_of(path[:-5]) in IMAGE_SUFFIXES or parent == "ann") and b'"objects"' in head


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": object "
    for path, content, objects in json_lists(labels, files, "objects", "objects"):
        size = content.get("size")
        size = (size.get("height"), size.get("width")) if isinstance(size, dict) else (None, None)
        home = os.path.dirname(os.path.dirname(path))  # of img and ann
        image = labels.image(f"{home}/img/{os.path.basename(path)[:-5]}", path, size=size)
        for number, each in enumerate(objects, 1):
            each = each if isinstance(each, dict) else {}
            points, angle = each.get("points"), number_of(each.get("angle")) or 0.0  # oriented_bbox: radians
            box = box_of_points(points.get("exterior")) if isinstance(points, dict) else None
            box = rotated_box(box, math.degrees(angle)) if box else None
            labels.shape(image, each.get("classTitle"), box, path, number, each.get("geometryType"), angle != 0)


LAYOUT = Layout((".json",), is_annotation, "{files} named after images with Supervisely's `objects`", read)
