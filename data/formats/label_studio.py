"""Read Label Studio JSON (full and JSON-MIN) and CSV: rectangles, polygons and ellipses in percent of the image.

Source: https://labelstud.io/guide/export
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

from data.class_names import decode_text
from data.formats.folder import suffix_of
from data.formats.json_files import MAX_JSON_BYTES, json_lists
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_ellipse, box_of_points, box_of_sides, number_of, numbers_of, rotated_box
from data.skips import Skip
from imaging.image_io import IMAGE_SUFFIXES
from utils.errors import brief
from utils.files import read_file
from utils.text import counted

_CLASS_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")


def is_annotation(path: str, head: bytes) -> bool:
    return any(key.encode() in head for key in _CLASS_KEYS[:3])


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit, labels.normalised = ": region ", True
    tables = [path for path in files if path.lower().endswith(".csv")]
    exports = json_lists(labels, [path for path in files if path not in tables], None, "tasks")
    for path, tasks in [*((path, tasks) for path, _, tasks in exports), *((path, _table(path)) for path in tables)]:
        number = 0
        for task in tasks:
            name = _picture(task)
            if name is None:
                labels.refuse(path, f"task {brief(task.get('id') if isinstance(task, dict) else task)} names no image")
            image = labels.image(name, path) if name else None
            for value, size in _regions(task, path, labels) if image is not None else ():
                number += 1
                kinds = next((value[key] for key in _CLASS_KEYS if value.get(key)), None)
                name = kinds[0] if isinstance(kinds, list) else kinds
                angle = number_of(value.get("rotation")) or 0.0
                is_known = not angle or None not in size
                kind = _kind(value) if is_known else "rotated region without original_width and original_height"
                box = _box(value, angle, size[0] / size[1] if None not in size else 1.0) if is_known else None
                labels.shape(image, name, box, path, number, kind, angle != 0)


def _table(path: str) -> list[dict[str, Any]]:
    """The rows of a CSV export, whose regions are JSON in a column."""

    def value(text: Any) -> Any:
        try:
            return json.loads(text) if isinstance(text, str) and text.startswith("[") else text
        except ValueError:
            return text

    rows = csv.DictReader(decode_text(read_file(path, MAX_JSON_BYTES), path).splitlines())
    return [{key: value(text) for key, text in row.items()} for row in rows]


def _picture(task: Any) -> str | None:
    if not isinstance(task, dict):
        return None
    data = task.get("data")
    fields = data if isinstance(data, dict) else task
    texts = [fields.get(key) for key in ("image", "img", "picture", "url")]
    texts += [text for text in fields.values() if suffix_of(str(text).split("?")[0]) in IMAGE_SUFFIXES]  # another key
    return next((text for text in texts if isinstance(text, str)), None)


def _regions(task: dict[str, Any], path: str, labels: Labels) -> Iterator[tuple[dict[str, Any], tuple[Any, Any]]]:
    """The value of each region, from the full export or from JSON-MIN's `label` list, and the image's size."""
    done = [each for each in task.get("annotations") or [] if isinstance(each, dict) and not each.get("was_cancelled")]
    if len(done) > 1:
        what = f"task {task.get('id')} has {counted(len(done), 'annotation')}; the last is used"
        labels.skips.append(Skip("note", "two_annotations", path, what, "remove the others"))
    results = (done[-1].get("result") or []) if done else []
    pairs = [(each.get("value"), each) for each in results if isinstance(each, dict)]
    for key in ("label", "labels", "bbox"):
        pairs += [(each, each) for each in task.get(key) or [] if isinstance(task.get(key), list)]
    for value, holder in pairs:
        if isinstance(value, dict):
            width, height = (number_of(holder.get(f"original_{side}")) for side in ("width", "height"))
            yield value, (width or None, height or None)


def _kind(value: dict[str, Any]) -> str:
    return next((key.removesuffix("labels") for key in value if key.endswith("labels")), "region")


def _box(value: dict[str, Any], degrees: float, aspect: float) -> list[float] | None:
    """The box as fractions of the image; `aspect` is its width by its height."""
    if "points" in value:
        box = box_of_points(value["points"])
    elif "radiusX" in value:
        sides = numbers_of(value.get(key) for key in ("x", "y", "radiusX", "radiusY"))
        scale = (aspect, 1.0, aspect, 1.0)
        box = box_of_ellipse([a * b for a, b in zip(sides, scale, strict=True)], degrees) if sides else None
        box = [a / b for a, b in zip(box, scale, strict=True)] if box else None
    else:
        box = box_of_sides(value)
        box = rotated_box(box, degrees, box[:2], aspect) if box else None  # about the upper left corner
    return None if box is None else [number / 100 for number in box]


LAYOUT = Layout((".json", ".csv"), is_annotation, "{first} has the tasks of Label Studio", read)
