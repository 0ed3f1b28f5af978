"""Read VGG Image Annotator: JSON (export or project) and CSV of versions 1 and 2, projects of version 3.

Source: https://www.robots.ox.ac.uk/~vgg/software/via/docs/
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.class_names import decode_text
from data.formats.json_files import MAX_JSON_BYTES, load_json
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_ellipse, box_of_points, box_of_sides, number_of
from utils.errors import brief
from utils.files import read_file

_SHAPES = ("", "point", "rect", "circle", "ellipse", "line", "polyline", "polygon", "extreme_rect", "extreme_circle")
_IMAGE_FILE = 2  # type of a file in version 3
_CLASS_KEYS = ("class", "label", "name", "type", "object", "category")


def is_annotation(path: str, head: bytes) -> bool:
    is_table = b"region_shape_attributes" in head
    is_3 = b'"vid_list"' in head or (b'"fid_list"' in head and b'"metadata"' in head)
    return is_table or is_3 or (b'"filename"' in head and (b'"regions"' in head or b"_via_" in head))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": region "
    for path in files:
        number = 0
        for name, shape, attributes in _csv_rows(path) if path.endswith(".csv") else _json_rows(path, labels):
            image = labels.image(name, path)
            if shape is not None:
                number += 1
                labels.shape(image, _class(attributes), _box(shape), path, number, shape.get("name"))


def _json_rows(path: str, labels: Labels) -> Iterator[tuple[str, dict[str, Any] | None, Any]]:
    content, problem = load_json(path)
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        return labels.refuse(path, problem or "contains no images")
    if "metadata" in content and "file" in content:
        yield from _rows_of_version_3(content, path, labels)
        return None
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


def _rows_of_version_3(
    content: dict[str, Any], path: str, labels: Labels
) -> Iterator[tuple[str, dict[str, Any] | None, Any]]:
    """Rows of a project of version 3, whose regions are `[shape, numbers ...]` and belong to views of files."""

    def table(key: str) -> dict[str, dict[str, Any]]:
        items = content.get(key)
        return {k: v for k, v in items.items() if isinstance(v, dict)} if isinstance(items, dict) else {}

    files, attributes = table("file"), table("attribute")
    names = {}
    for key, view in table("view").items():
        file = files.get(str(next(iter(view.get("fid_list") or []), None)), {})
        name = file.get("fname") or file.get("src")
        if file.get("type", _IMAGE_FILE) != _IMAGE_FILE or not isinstance(name, str):
            labels.refuse(path, f"view {key} shows {brief(name)}, which is not an image", "export the video's frames")
            continue
        names[key] = name
        yield name, None, None
    for region in table("metadata").values():
        name, xy, values = names.get(str(region.get("vid"))), region.get("xy"), region.get("av")
        if name is not None and isinstance(xy, list) and xy:
            yield name, _shape_of_version_3(xy), _attributes_of_version_3(values, attributes)


def _shape_of_version_3(xy: list[Any]) -> dict[str, Any]:
    kind, *values = xy
    name = _SHAPES[kind] if isinstance(kind, int) and 0 <= kind < len(_SHAPES) else str(kind)
    keys = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    if name in keys:
        return {"name": name, **dict(zip(keys[name], values, strict=False))}
    return {"name": name, "all_points_x": values[::2], "all_points_y": values[1::2]}


def _attributes_of_version_3(values: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """The values of a region by attribute name; one that was chosen from a list is stored by its number."""
    named = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        attribute = attributes.get(str(key), {})
        options = attribute.get("options")
        chosen = str(value).split(",")[0]  # of a checkbox, several
        is_chosen = isinstance(options, dict) and chosen in options
        named[str(attribute.get("aname") or key)] = options[chosen] if is_chosen and options else value
    return named


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


def _box(shape: dict[str, Any]) -> list[float] | None:
    kind, radius = shape.get("name"), shape.get("r")
    if kind == "rect":
        return box_of_sides(shape)
    if kind in ("circle", "ellipse"):
        values = (shape.get("cx"), shape.get("cy"), shape.get("rx", radius), shape.get("ry", radius))
        return box_of_ellipse(values, math.degrees(number_of(shape.get("theta")) or 0.0))
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if kind not in ("polygon", "polyline", "extreme_rect") or not isinstance(xs, list) or not isinstance(ys, list):
        return None
    return box_of_points(list(zip(xs, ys, strict=False)))


LAYOUT = Layout((".json", ".csv"), is_annotation, "{first} has the regions of the VGG Image Annotator", read)
