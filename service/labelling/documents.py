"""Edit the labels of one image in its annotation file, and keep all other content of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, tostring

import numpy as np
from defusedxml.ElementTree import DefusedXMLParser

from data.formats.voc import parse_voc_xml, recode_xml
from data.formats.writers import coco_annotation, coco_number, voc_number, voc_xml, yolo_number
from imaging.image_io import ImageHeader, turn_boxes
from utils.errors import UserError

MOVED = 1e-3  # pixels; a box that the page returns within this distance counts as unchanged
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_INVERSE = {6: 8, 8: 6}  # inverse EXIF orientations; each of the others is its own inverse


@dataclass(frozen=True)
class Box:
    """One labelled object.

    Args:
        class_name: its class.
        box: x1, y1, x2, y2 in 0-based pixels of the upright image.
        difficult: VOC's flag for objects that are not evaluated.
        ref: position of the object in the file; None for a new object.
    """

    class_name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    ref: int | None = None


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Args:
        boxes: the objects that can be shown and edited.
        hidden: number of objects that cannot be shown (no box, unknown class); they are kept in the file.
        declared: (height, width) of the image according to the file; 0 if missing.
    """

    boxes: tuple[Box, ...] = ()
    hidden: int = 0
    declared: tuple[int, int] = (0, 0)

    def turned(self, header: ImageHeader, back: bool = False) -> Labels:
        """Convert boxes to the upright image, if the file was written for the image without its EXIF rotation
        (as data/formats/clean decides). `back` is the inverse."""
        if header.orientation < 5 or header.height == header.width or self.declared != (header.height, header.width):
            return self
        orientation, size = header.orientation, (header.height, header.width)
        if back:
            orientation, size = _INVERSE.get(orientation, orientation), header.size
        boxes = (replace(box, box=_plain(turn_boxes(np.array([box.box]), orientation, *size)[0])) for box in self.boxes)
        return replace(self, boxes=tuple(boxes))


@dataclass(frozen=True)
class PictureFacts:
    """Properties of an image that a format needs: its file name, its folder's name and its upright (height, width)."""

    file_name: str
    folder: str
    size: tuple[int, int]


def _is_moved(old: Sequence[float], new: Sequence[float]) -> bool:
    return bool(np.abs(np.asarray(old, float) - np.asarray(new, float)).max() > MOVED)


def _edits(labels: Labels, boxes: Sequence[Box]) -> tuple[dict[int, tuple[Box, Box]], set[int], list[Box]]:
    """(old and new box of each kept object by ref, deleted refs, new objects).

    Raises:
        UserError: if a `ref` does not exist in the file, or appears twice.
    """
    old = {box.ref: box for box in labels.boxes if box.ref is not None}
    kept: dict[int, tuple[Box, Box]] = {}
    for box in boxes:
        if box.ref is None:
            continue
        if box.ref not in old or box.ref in kept:
            raise UserError("boxes", f"ref {box.ref} is not an object of this image, or appears twice", "reload it")
        kept[box.ref] = (old[box.ref], box)
    return kept, set(old) - set(kept), [box for box in boxes if box.ref is None]


# --- Pascal VOC XML --------------------------------------------------------------------------------------------------


def read_voc_labels(data: bytes, where: object) -> Labels:
    """Read the objects of a VOC annotation. Raises FileError like `parse_voc_xml`."""
    annotation = parse_voc_xml(data, where)
    boxes, hidden = [], 0
    for ref, each in enumerate(annotation.objects):
        try:
            corners = [float(each.edges[edge]) for edge in _EDGES]
            name = each.fields["name"]
        except (KeyError, ValueError):
            hidden += 1
            continue
        box = np.array([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
        if not name or not np.isfinite(box).all():
            hidden += 1
            continue
        difficult = each.fields.get("difficult", "0").lower() in ("1", "true", "yes", "1.0")
        boxes.append(Box(name, _plain(box), difficult, ref))
    sides = (annotation.size.get(side, "") for side in ("height", "width"))
    height, width = (int(side) if side.isdecimal() else 0 for side in sides)
    return Labels(tuple(boxes), hidden, (height, width))


def write_voc_labels(data: bytes | None, boxes: Sequence[Box], facts: PictureFacts, where: object) -> bytes:
    """Write these objects into an annotation; other elements, attributes and comments are unchanged."""
    if data is None:
        data = voc_xml(facts.file_name, facts.size, np.zeros((0, 4)), [], folder=facts.folder).encode()
    kept, deleted, new = _edits(read_voc_labels(data, where), boxes)
    root = _tree(recode_xml(data))
    for ref, element in enumerate(root.findall("object")):
        if ref in deleted:
            _remove(root, element)
        elif ref in kept:
            _change_object(element, *kept[ref])
    corners = np.array([box.box for box in new]).reshape(-1, 4).round()
    drawn = voc_xml("", facts.size, corners, [box.class_name for box in new], [box.difficult for box in new])
    for element in _tree(drawn).findall("object"):
        if len(root):
            root[-1].tail = "\n\t"
        root.append(element)
    text = tostring(root, encoding="unicode")
    head = '<?xml version="1.0" encoding="utf-8"?>\n' if data.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml") else ""
    return f"{head}{text}\n".encode()


def _tree(text: str | bytes) -> Element:
    parser = DefusedXMLParser(target=TreeBuilder(insert_comments=True), forbid_dtd=True)
    parser.feed(text)
    return parser.close()


def _change_object(element: Element, old: Box, new: Box) -> None:
    if new.class_name != old.class_name:
        _set_text(element, "name", new.class_name)
    if new.difficult != old.difficult:
        _set_text(element, "difficult", str(int(new.difficult)))
    if _is_moved(old.box, new.box):
        bndbox = element.find("bndbox")
        assert bndbox is not None  # it was read
        for edge, value, first in zip(_EDGES, new.box, (1, 1, 0, 0), strict=True):
            _set_text(bndbox, edge, voc_number(round(value) + first))  # 1-based, inclusive


def _set_text(element: Element, tag: str, text: str) -> None:
    child = element.find(tag)
    (SubElement(element, tag) if child is None else child).text = _xml_safe(text)


def _remove(root: Element, element: Element) -> None:
    """Remove an element and the whitespace after it, so that the indentation is kept."""
    position = list(root).index(element)
    if position == len(root) - 1 and position > 0:
        root[position - 1].tail = element.tail
    root.remove(element)


def _xml_safe(text: str) -> str:
    return "".join(c if c in "\t\n" or c >= " " else "\ufffd" for c in text)


def _plain(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2


# --- YOLO txt --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A valid line of a label file: class number, box in pixels, and its words."""

    label: int
    box: tuple[float, float, float, float]
    words: list[str]
    is_polygon: bool


def read_yolo_labels(data: bytes, names: Sequence[str], facts: PictureFacts, keypoints: int = 0) -> Labels:
    """Read the objects of a YOLO label file.

    Args:
        data: content of the file.
        names: class names.
        facts: properties of the image.
        keypoints: number of keypoint values after each box (data.yaml's `kpt_shape`); with 0, longer rows are polygons.
    """
    boxes, hidden = [], 0
    for ref, line in enumerate(_lines(data)):
        row = _row(line, facts, keypoints)
        if row is None:
            hidden += bool(line.strip())
        elif 0 <= row.label < len(names):
            boxes.append(Box(names[row.label], row.box, False, ref))
        else:
            hidden += 1
    return Labels(tuple(boxes), hidden)


def write_yolo_labels(
    data: bytes | None, boxes: Sequence[Box], names: Sequence[str], facts: PictureFacts, keypoints: int = 0
) -> bytes:
    """Write these objects into a label file; unchanged lines stay identical, byte for byte."""
    data = data or b""
    kept, deleted, new = _edits(read_yolo_labels(data, names, facts, keypoints), boxes)
    number_of = {name: number for number, name in enumerate(names)}
    lines = []
    for ref, line in enumerate(_lines(data)):
        if ref in deleted:
            continue
        row = _row(line, facts, keypoints) if ref in kept else None
        if row is not None:
            line = _changed_row(row, line, *kept[ref], number_of, facts)
        lines.append(line)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += "\n"
    zeros = ["0"] * keypoints
    lines += [" ".join([str(number_of[box.class_name]), *_fractions(box.box, facts), *zeros]) + "\n" for box in new]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _lines(data: bytes) -> list[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+$", data.decode("utf-8", "surrogateescape"))


def _row(line: str, facts: PictureFacts, keypoints: int) -> _Row | None:
    words = line.strip("\ufeff \t\r\n").split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    polygon = not keypoints and len(values) >= 7 and len(values) % 2 == 1
    if not (polygon or len(values) in (5, 5 + keypoints)) or values[0] % 1 or not np.isfinite(values).all():
        return None
    height, width = facts.size
    if polygon:
        xs, ys = values[1::2], values[2::2]
        box = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
    else:
        _, cx, cy, w, h = values[:5]
        box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    return _Row(int(values[0]), box, words, polygon)


def _changed_row(row: _Row, line: str, old: Box, new: Box, number_of: dict[str, int], facts: PictureFacts) -> str:
    if new.class_name == old.class_name and not _is_moved(old.box, new.box):
        return line
    words = [str(number_of[new.class_name]), *row.words[1:]]
    if _is_moved(old.box, new.box):
        height, width = facts.size
        if row.is_polygon:  # the polygon is moved and scaled with its box
            points = np.array(row.words[1:], np.float64).reshape(-1, 2) * [width, height]
            words[1:] = [yolo_number(round(v, 6)) for v in (_follow(points, old.box, new.box) / [width, height]).flat]
        else:
            words[1:5] = _fractions(new.box, facts)
    ending = line[len(line.rstrip("\r\n")) :]
    return " ".join(words) + ending


def _fractions(box: Sequence[float], facts: PictureFacts) -> list[str]:
    height, width = facts.size
    x1, y1, x2, y2 = box
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return [yolo_number(round(value, 6)) for value in values]


def _follow(points: np.ndarray, old: Sequence[float], new: Sequence[float]) -> np.ndarray:
    """(N, 2) points of a polygon, moved and scaled like its box."""
    before, after = np.array(old).reshape(2, 2), np.array(new).reshape(2, 2)
    scale = (after[1] - after[0]) / np.maximum(before[1] - before[0], 1e-9)
    return (points - before[0]) * scale + after[0]


# --- COCO JSON -------------------------------------------------------------------------------------------------------


def read_coco_labels(annotations: Sequence[dict[str, Any]], names: dict[int, str]) -> Labels:
    """Read the objects of an image's annotations in a COCO file; `names` are the categories by id."""
    boxes, hidden = [], 0
    for ref, each in enumerate(annotations):
        box, name = each.get("bbox"), names.get(each.get("category_id", -1))
        is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not is_box or name is None or each.get("iscrowd") == 1:
            hidden += 1  # a crowd is a region, not an object
            continue
        x, y, width, height = (float(v) for v in box)  # type: ignore[union-attr]
        difficult = 1 in (each.get("difficult"), each.get("ignore"))
        boxes.append(Box(name, (x, y, x + width, y + height), difficult, ref))
    return Labels(tuple(boxes), hidden)


def write_coco_labels(
    annotations: Sequence[dict[str, Any]], boxes: Sequence[Box], ids: dict[str, int], image_id: Any, next_id: int
) -> list[dict[str, Any]]:
    """Write these objects into an image's annotations; unknown keys are unchanged.

    Args:
        annotations: annotations of the image.
        boxes: the new objects.
        ids: category id of each class.
        image_id: id of the image.
        next_id: first free annotation id.
    """
    kept, deleted, new = _edits(read_coco_labels(annotations, {number: name for name, number in ids.items()}), boxes)
    result = []
    for ref, each in enumerate(annotations):
        if ref in deleted:
            continue
        result.append(_changed_entry(each, *kept[ref], ids) if ref in kept else each)
    for number, box in enumerate(new, next_id):
        entry = coco_annotation(number, image_id, ids[box.class_name], np.array([round(v, 2) for v in box.box]))
        result.append(entry | ({"difficult": 1} if box.difficult else {}))
    return result


def _changed_entry(entry: dict[str, Any], old: Box, new: Box, ids: dict[str, int]) -> dict[str, Any]:
    entry = dict(entry)
    if new.class_name != old.class_name:
        entry["category_id"] = ids[new.class_name]
    if new.difficult != old.difficult:
        entry["difficult"] = int(new.difficult)
        entry.pop("ignore", None)
    if _is_moved(old.box, new.box):
        x1, y1, x2, y2 = (round(v, 2) for v in new.box)
        entry["bbox"] = [coco_number(v) for v in (x1, y1, x2 - x1, y2 - y1)]
        stretch = (x2 - x1) * (y2 - y1) / max((old.box[2] - old.box[0]) * (old.box[3] - old.box[1]), 1e-9)
        if isinstance(entry.get("area"), int | float):
            entry["area"] = coco_number(entry["area"] * stretch)
        outline = entry.get("segmentation")
        if outline is not None:
            try:
                points = [np.array(part, np.float64).reshape(-1, 2) for part in outline]
            except (TypeError, ValueError):  # an RLE mask cannot be moved with its box
                points = []
            entry["segmentation"] = [_follow(part, old.box, new.box).round(2).flatten().tolist() for part in points]
    return entry


def entry_text(value: Any) -> str:
    """Format one entry of a COCO file as one line."""
    return json.dumps(value, ensure_ascii=False)
