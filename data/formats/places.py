"""Locations of annotations, for messages."""

from __future__ import annotations

from data.formats.voc import annotation_path
from data.formats.yolo_rows import label_path
from data.index import DatasetIndex


def annotation_file(index: DatasetIndex, picture: str) -> str:
    """The annotation file of an image of an index."""
    listed = index.source.get("label_files", {}).get(picture)
    if listed is not None:
        return listed
    kind = index.source.get("format")
    if kind == "voc":
        return str(annotation_path(picture))
    return label_path(picture) if kind == "yolo" else index.source.get("json", picture)


def box_where(index: DatasetIndex, image: int, box: int) -> str:
    """The location of a box in its annotation: `file:line`, `file: annotation id`, or the box number of the format."""
    picture = str(index.path(image))
    file = annotation_file(index, picture)
    if file == picture or index.box_refs is None:
        return f"{picture}: box {box - index.offsets[image]}"
    unit = ": annotation id " if index.source.get("format") == "coco" else index.source.get("unit", ":")
    return f"{file}{unit}{index.box_refs[box]}"
