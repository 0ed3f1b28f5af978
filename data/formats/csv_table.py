"""Read CSV tables of boxes: TensorFlow, Kaggle (any column order), Open Images, RetinaNet, AutoML.

Sources: https://storage.googleapis.com/openimages/web/download_v7.html (Open Images),
https://github.com/fizyr/keras-retinanet#csv-datasets, https://cloud.google.com/vertex-ai/docs (AutoML).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence

from data.class_names import decode_text
from data.formats.folder import Folder, suffix_of
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_points, box_of_sides, number_of
from data.skips import Skip
from imaging.image_io import IMAGE_SUFFIXES
from utils.errors import UserError
from utils.files import MEGABYTE, read_file

MAX_CSV_BYTES = 1024 * MEGABYTE
_COLUMNS = {  # column meaning: possible headers, in lower case without punctuation
    "file": ("filename", "file", "image", "imagename", "imagepath", "imageid", "img", "imgname", "imgpath", "filepath",
             "path", "externalid", "imagefilename", "imagefile"),
    "class": ("class", "label", "labelname", "classname", "category", "categoryname", "name", "tag", "objectclass",
              "object", "species", "type"),
    "x1": ("xmin", "x1", "xtl", "left", "bboxxmin", "boxxmin", "minx", "xminimum", "x0"),
    "y1": ("ymin", "y1", "ytl", "top", "bboxymin", "boxymin", "miny", "yminimum", "y0", "upper"),
    "x2": ("xmax", "x2", "xbr", "right", "bboxxmax", "boxxmax", "maxx", "xmaximum"),
    "y2": ("ymax", "y2", "ybr", "bottom", "bboxymax", "boxymax", "maxy", "ymaximum", "lower"),
    "x": ("x", "bboxx", "boxx", "bbx"),
    "y": ("y", "bboxy", "boxy", "bby"),
    "cx": ("xcenter", "xcentre", "centerx", "centrex", "cx"),
    "cy": ("ycenter", "ycentre", "centery", "centrey", "cy"),
    "w": ("w", "bboxwidth", "boxwidth", "bboxw", "boxw", "bbw"),
    "h": ("h", "bboxheight", "boxheight", "bboxh", "boxh", "bbh"),
    "box": ("bbox", "box", "boundingbox"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "split": ("split", "set", "subset", "dataset", "usage"),
    "crowd": ("isgroupof",),
}  # fmt: skip
_AUTOML_SETS = ("TRAIN", "VALIDATION", "TEST", "UNASSIGNED")
ONE_CLASS = "object"


def is_annotation(path: str, head: bytes) -> bool:
    return _columns(head) is not None


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.numbers = "corners"
    descriptions = _descriptions(labels.folder)
    largest, is_whole, has_class = 0.0, True, False
    for path in files:
        columns = _columns(labels.folder.head(path)) or {}
        has_header = "header" in columns
        for number, row in _rows(path):
            if (has_header and number == 1) or not any(row):
                continue
            cell = {key: row[at].strip() if at < len(row) else "" for key, at in columns.items() if key != "header"}
            size = (cell.get("height"), cell.get("width"))
            image = labels.image(cell["file"], path, number, size, cell.get("split", "").lower() or None)
            box = _box(cell, labels)
            if image is None or not any(box):
                continue  # an image without objects
            has_class = has_class or "class" in cell
            name = descriptions.get(cell.get("class", ONE_CLASS), cell.get("class", ONE_CLASS))
            numbers = [abs(value) for each in box if (value := number_of(each)) is not None]
            largest = max([largest, *numbers])
            is_whole = is_whole and all(value % 1 == 0 for value in numbers)
            labels.box(image, name, box, path, number, crowd=cell.get("crowd") == "1")
    if not has_class:
        what = f"there is no class column: all boxes get the class {ONE_CLASS!r}"
        labels.skips.append(Skip("note", "one_class", files[0], what, "add a column `class` if there are several"))
    if largest <= 1.0 and not is_whole:
        labels.normalised = True
        what = "no coordinate is above 1: they are read as fractions of width and height"
        labels.skips.append(Skip("note", "fractions", files[0], what))


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    text = decode_text(read_file(path, MAX_CSV_BYTES), path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}", f"is not CSV ({error})", "correct the line") from None


def _columns(head: bytes) -> dict[str, int] | None:
    """The position of each column, and `header` if the first line names them; None if it is not a table of boxes."""
    lines = head.decode("utf-8", "replace")
    rows = list(csv.reader(lines.splitlines()[:2], delimiter=max(",;\t|", key=lines.split("\n")[0].count)))
    if not rows or not rows[0]:
        return None
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in rows[0]]
    columns = {}
    for key, aliases in _COLUMNS.items():
        column = next((names.index(alias) for alias in aliases if alias in names), None)
        if column is not None:
            columns[key] = column
    has_point = {"x", "y"} <= columns.keys() or {"cx", "cy"} <= columns.keys()
    if has_point and "w" not in columns and "x1" not in columns:  # x, y, width, height of the box
        columns |= {"w": columns.pop("width", -1), "h": columns.pop("height", -1)}
        columns = columns if min(columns["w"], columns["h"]) >= 0 else {}
    forms = ({"x1", "y1", "x2", "y2"}, {"x", "y", "w", "h"}, {"cx", "cy", "w", "h"}, {"box"})
    has_box = any(form <= columns.keys() for form in forms)
    if "file" in columns and has_box:
        return columns | {"header": 0}
    return _without_header(rows[0])


def _without_header(row: Sequence[str]) -> dict[str, int] | None:
    """RetinaNet's `path,x1,y1,x2,y2,class`, AutoML's `SET,path,label,x1,y1,,,x2,y2,,`, Make Sense's first columns."""
    has_box = not any(row[1:5]) or all(number_of(value) is not None for value in row[1:5])
    if len(row) == 6 and suffix_of(row[0].strip()) in IMAGE_SUFFIXES and has_box:
        return {"file": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
    if len(row) == 8 and suffix_of(row[5].strip()) in IMAGE_SUFFIXES and None not in map(number_of, row[1:5]):
        return {"class": 0, "x": 1, "y": 2, "w": 3, "h": 4, "file": 5, "width": 6, "height": 7}
    if len(row) >= 9 and row[0].strip().upper() in _AUTOML_SETS and suffix_of(row[1].strip()) in IMAGE_SUFFIXES:
        corners = {"x1": 3, "y1": 4, "x2": 7, "y2": 8, "xa": 5, "ya": 6, "xb": 9, "yb": 10}  # a and b may be empty
        return {"split": 0, "file": 1, "class": 2, **corners}
    return None


def _box(cell: dict[str, str], labels: Labels) -> list[object]:
    """xyxy of a row; as text where a value is not a number."""
    if "x1" in cell:
        has_four = cell.get("xa") and cell.get("xb")  # corners
        box = box_of_points([(cell[f"x{k}"], cell[f"y{k}"]) for k in "1a2b"]) if has_four else None
        return [*box] if box else [cell[key] for key in ("x1", "y1", "x2", "y2")]
    if "box" in cell:  # Kaggle's "[834.0, 222.0, 56.0, 36.0]" is x, y, width, height
        labels.numbers = "xywh"
        values: list[object] = list(re.findall(r"-?[\d.]+(?:e-?\d+)?", cell["box"]))
    else:
        values = [cell.get(key, cell.get(f"c{key}")) for key in ("x", "y", "w", "h")]
    box = box_of_sides(dict(enumerate(values)), range(4)) if len(values) == 4 else None
    if box and "x" not in cell and "cx" in cell:
        half = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
        box = [value - side for value, side in zip(box, half * 2, strict=True)]
    return [*box] if box else values


def _descriptions(folder: Folder) -> dict[str, str]:
    """Open Images' `/m/0jbk,Animal` lines."""
    names: dict[str, str] = {}
    for path in folder.files:
        if re.search(r"class.?descriptions", os.path.basename(path)) and suffix_of(path) == ".csv":
            names |= {row[0]: row[1].strip() for _, row in _rows(path) if len(row) == 2}
    return names


LAYOUT = Layout((".csv", ".tsv"), is_annotation, "{pictures} and {first} with columns of boxes", read)
