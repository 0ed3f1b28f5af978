"""Read Apple CreateML JSON: a list of images with box centres and sizes in pixels.

Source: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source
"""

from __future__ import annotations

from collections.abc import Sequence

from data.formats.json_files import json_lists
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_sides


def is_annotation(path: str, head: bytes) -> bool:
    return all(key in head for key in (b'"image', b'"annotation', b'"coordinates"'))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": box "
    for path, _, items in json_lists(labels, files, None, "pictures"):
        number = 0
        for item in items:
            name = (item.get("image") or item.get("imagefilename")) if isinstance(item, dict) else None
            image = labels.image(name, path) if isinstance(name, str) else None
            for each in (item.get("annotations") or item.get("annotation") or []) if image is not None else []:
                number += 1
                each = each if isinstance(each, dict) else {}
                box = box_of_sides(each.get("coordinates"))
                if box is not None:  # x and y are the centre
                    half = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
                    box = [value - side for value, side in zip(box, half * 2, strict=True)]
                labels.shape(image, each.get("label"), box, path, number, "box without x, y, width and height")


LAYOUT = Layout((".json",), is_annotation, "{first} has CreateML's `coordinates`", read)
