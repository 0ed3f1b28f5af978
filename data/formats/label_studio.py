"""Read Label Studio JSON (full and JSON-MIN): rectangles and polygons in percent of the image.

Source: https://labelstud.io/guide/export
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from data.formats.folder import Folder
from data.formats.json_files import load_json
from data.formats.labels import Labels, number_of

_CLASS_KEYS = ("rectanglelabels", "polygonlabels", "labels")


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{os.path.basename(files[0])} has the tasks of Label Studio" if files else None


def _files(folder: Folder) -> list[str]:
    def is_tasks(path: str) -> bool:
        head = folder.head(path)
        return b"rectanglelabels" in head or b"polygonlabels" in head

    return [path for path in folder.having(".json") if is_tasks(path)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit, labels.normalised = ": region ", True
    for path in _files(folder):
        content, problem = load_json(path)
        if not isinstance(content, list):
            labels.refuse(path, problem or "is no list of tasks")
            continue
        number = 0
        for task in content:
            name = _picture(task)
            image = labels.image(name, path) if name else None
            for value in _values(task) if image is not None else ():
                number += 1
                box, kinds = _box(value), [value[key] for key in _CLASS_KEYS if value.get(key)]
                if box is None:
                    labels.drop("no_box", path, number, "is neither a rectangle nor a polygon")
                elif image is not None:
                    labels.box(image, kinds[0][0] if kinds and isinstance(kinds[0], list) else None, box, path, number)


def _picture(task: Any) -> str | None:
    if not isinstance(task, dict):
        return None
    data = task.get("data")
    texts = [(data if isinstance(data, dict) else task).get(key) for key in ("image", "img", "picture", "url")]
    return next((text for text in texts if isinstance(text, str)), None)


def _values(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values of all regions, from the full export or from JSON-MIN's `label` list."""
    for annotation in task.get("annotations") or []:
        for result in (annotation.get("result") or []) if isinstance(annotation, dict) else []:
            if isinstance(result, dict) and isinstance(result.get("value"), dict):
                yield result["value"]
    for key in ("label", "labels", "bbox"):
        values = task.get(key)
        yield from (value for value in (values if isinstance(values, list) else []) if isinstance(value, dict))


def _box(value: dict[str, Any]) -> list[float] | None:
    points = value.get("points")
    if isinstance(points, list) and len(points) > 2:
        xs, ys = [number_of(p[0]) for p in points], [number_of(p[1]) for p in points]
        if None in xs or None in ys:
            return None
        return [min(xs) / 100, min(ys) / 100, max(xs) / 100, max(ys) / 100]  # type: ignore[type-var,operator]
    numbers = [number_of(value.get(key)) for key in ("x", "y", "width", "height")]
    if None in numbers:
        return None
    x, y, width, height = (number / 100 for number in numbers if number is not None)
    return [x, y, x + width, y + height]
