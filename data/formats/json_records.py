"""Read JSON and JSON Lines with one record per image, as BDD100K, Labelbox, SageMaker, V7 and others write it.

Sources: https://doc.bdd100k.com/format.html, https://docs.labelbox.com/reference/export-image-annotations,
https://docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html (object detection),
https://cloud.google.com/vertex-ai/docs/image-data/object-detection/prepare-data,
https://huggingface.co/docs/datasets/image_dataset (metadata.jsonl), https://docs.v7labs.com/reference/darwin-json,
https://doc.superannotate.com/docs/image-annotation-format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.formats.folder import suffix_of
from data.formats.json_files import MAX_JSON_BYTES, load_json
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_points, box_of_sides
from data.formats.yolo_txt import names_needed, names_of_folder
from utils.files import read_lines

_LINES = (".jsonl", ".ndjson", ".manifest")
_MARKS = (  # a file with all of the words of one group is read
    (b'"box2d"',),
    (b'"data_row"', b'"projects"'),
    (b'"Labeled Data"', b'"Label"'),
    (b'"source-ref"',),
    (b'"imageGcsUri"', b'"boundingBoxAnnotations"'),
    (b'"bounding_box"', b'"annotations"', b'"name"'),
    (b'"instances"', b'"className"'),
)
_SIDES = ("left", "top", "width", "height")
_CORNERS = ("x1", "y1", "x2", "y2")
_Object = tuple[Any, list[Any] | None, Any]  # class, xyxy or None, kind of shape


@dataclass
class _Record:
    """An image: its name, (height, width), split, and objects."""

    name: Any
    size: tuple[Any, Any] = (None, None)
    split: Any = None
    objects: list[_Object] = field(default_factory=list)
    normalised: bool = False


def is_annotation(path: str, head: bytes) -> bool:
    if suffix_of(path) in _LINES and b'"file_name"' in head and b'"objects"' in head:
        return True
    return any(all(word in head for word in words) for words in _MARKS)


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": box "
    names = class_names
    for path in files:
        number = 0
        for content in _records(path, labels):
            record = next(filter(None, (read_one(content) for read_one in _READERS)), None)
            if record is None or not isinstance(record.name, str):
                continue
            split = record.split if isinstance(record.split, str) else None
            image = labels.image(record.name, path, size=record.size, split=split)
            labels.normalised = labels.normalised or record.normalised
            for name, box, kind in record.objects:
                number += 1
                if isinstance(name, int):
                    names = names or names_of_folder(labels.folder)
                    if names is None:
                        raise names_needed(labels.folder)
                    labels.names = names
                    name = names[name] if 0 <= name < len(names) else str(name)
                labels.shape(image, name, box, path, number, kind)


def _records(path: str, labels: Labels) -> Iterator[Any]:
    """The records of a file: those of a list or of `frames`, the file itself, or one in each line."""
    if suffix_of(path) in _LINES or labels.folder.head(path).split(b"\n", 1)[0].rstrip().endswith(b"}"):
        for number, line in read_lines(path, MAX_JSON_BYTES):
            try:
                yield json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                labels.refuse(f"{path}:{number}", "is not JSON", "correct or remove the line")
        return
    content, problem = load_json(path)
    if problem:
        labels.refuse(path, problem)
    frames = _at(content, "frames") if _at(content, "name") is None else None  # with a name: one image of a video
    yield from content if isinstance(content, list) else frames if isinstance(frames, list) else [content]


def _at(value: Any, *keys: str | int) -> Any:
    """The value under nested keys; None if one of them is missing."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        else:
            value = value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None
    return value


def _items(value: Any, *keys: str | int) -> list[Any]:
    """The elements of the list, or the values of the table, under nested keys."""
    found = _at(value, *keys)
    return list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []


def _corners(value: Any) -> list[Any] | None:
    return [_at(value, key) for key in _CORNERS] if isinstance(value, dict) else None


def _outline(value: Any) -> list[float] | None:
    """The box around points, which are tables of x and y or a flat list."""
    points = value if isinstance(value, list) else []
    if points and isinstance(points[0], dict):
        return box_of_points([(_at(each, "x"), _at(each, "y")) for each in points])
    return box_of_points(list(zip(points[::2], points[1::2], strict=False)))


def _bdd100k(item: Any) -> _Record | None:
    if not isinstance(_at(item, "name"), str) or not (_at(item, "frames") or "labels" in item):
        return None
    objects = _items(item, "labels") or _items(item, "frames", 0, "objects")
    boxes = [(_at(each, "category"), _corners(_at(each, "box2d")), "box") for each in objects if _at(each, "box2d")]
    return _Record(item["name"], objects=boxes)  # lanes and areas have no box


def _labelbox(item: Any) -> _Record | None:
    row, old = _at(item, "data_row"), _at(item, "Label")
    if row is None and old is None:
        return None
    name = _at(row, "external_id") or _at(row, "row_data") or _at(item, "External ID") or _at(item, "Labeled Data")
    record = _Record(name, tuple(_at(item, "media_attributes", side) for side in ("height", "width")))
    found = _items(old, "objects")
    for project in _items(item, "projects"):
        found += _items(project, "labels", 0, "annotations", "objects")
    for each in found:
        box = box_of_sides(_at(each, "bounding_box") or _at(each, "bbox"), _SIDES) or _outline(_at(each, "polygon"))
        name = _at(each, "name") or _at(each, "title") or _at(each, "value")
        record.objects.append((name, box, _at(each, "annotation_kind") or "shape"))
    return record


def _sagemaker(item: Any) -> _Record | None:
    name = _at(item, "source-ref")
    job = next((key for key in item if f"{key}-metadata" in item), "") if name else None
    if job is None:
        return None
    classes = _at(item, f"{job}-metadata", "class-map") or {}
    boxes = [(_at(classes, str(_at(each, "class_id"))), box_of_sides(each, _SIDES), "box")
             for each in _items(item, job, "annotations")]  # fmt: skip
    return _Record(name, tuple(_at(item, job, "image_size", 0, side) for side in ("height", "width")), None, boxes)


def _vertex_ai(item: Any) -> _Record | None:
    name = _at(item, "imageGcsUri")
    boxes: list[_Object] = []
    for each in _items(item, "boundingBoxAnnotations"):
        boxes.append(
            (_at(each, "displayName"), [_at(each, key) or 0 for key in ("xMin", "yMin", "xMax", "yMax")], "box")
        )
    split = _at(item, "dataItemResourceLabels", "aiplatform.googleapis.com/ml_use")
    return _Record(name, split=split, objects=boxes, normalised=True) if name else None


def _hugging_face(item: Any) -> _Record | None:
    name, objects = _at(item, "file_name"), _at(item, "objects")
    if name is None or not isinstance(objects, dict):
        return None
    boxes = _items(objects, "bbox") or _items(objects, "bboxes")
    classes = next(filter(None, (_items(objects, k) for k in ("categories", "category", "labels", "label"))), [])
    sides = [box_of_sides(dict(enumerate(box)), range(4)) if isinstance(box, list) else None for box in boxes]
    return _Record(name, objects=[(label, box, "box") for label, box in zip(classes, sides, strict=False)])


def _v7(item: Any) -> _Record | None:
    name = _at(item, "item", "name") or _at(item, "image", "filename")
    if name is None or "annotations" not in item:
        return None
    image = _at(item, "item", "slots", 0) or _at(item, "image")
    boxes = [(_at(each, "name"), box_of_sides(_at(each, "bounding_box"), "xywh"), "shape")
             for each in _items(item, "annotations") if _at(each, "tag") is None]  # fmt: skip
    return _Record(name, (_at(image, "height"), _at(image, "width")), None, boxes)


def _superannotate(item: Any) -> _Record | None:
    name = _at(item, "metadata", "name")
    if name is None or "instances" not in item:
        return None
    objects = []
    for each in _items(item, "instances"):
        points = _at(each, "points")
        objects.append((_at(each, "className"), _corners(points) or _outline(points), _at(each, "type")))
    return _Record(name, (_at(item, "metadata", "height"), _at(item, "metadata", "width")), None, objects)


_READERS = (_labelbox, _sagemaker, _vertex_ai, _hugging_face, _v7, _superannotate, _bdd100k)
LAYOUT = Layout((".json", *_LINES), is_annotation, "{first} has one record per image, with its boxes", read)
