"""Read lists of `path x1,y1,x2,y2,class ...`: keras-yolo3's, and Roboflow's `_annotations.txt`.

Source: https://github.com/qqwweee/keras-yolo3#training; bubbliiiing/mobilenet-yolov4-pytorch writes 2007_train.txt in
this format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tqdm import tqdm

from data.class_names import numbers_from_one
from data.formats.labels import Labels, Layout
from data.formats.yolo_txt import names_needed, names_of_folder
from utils.files import MEGABYTE, read_lines

MAX_LIST_BYTES = 512 * MEGABYTE
_BOX = r"-?\d+\.?\d*(?:,-?\d+\.?\d*){3},\d+"
_LINE = re.compile(rf"^\s*(?P<path>.*?\.\w{{2,5}})(?P<boxes>(?:\s+{_BOX})*)\s*$")


def is_annotation(path: str, head: bytes) -> bool:
    lines = head.decode("utf-8", "replace").splitlines()[:20]
    return any((match := _LINE.match(line)) and match["boxes"] for line in lines)


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    names = names_of_folder(labels.folder) or class_names
    if names is None:
        raise names_needed(labels.folder)
    labels.names, labels.numbers = names, "corners"
    rows = []
    for path in files:
        for number, line in tqdm(read_lines(path, MAX_LIST_BYTES), desc=os.path.basename(path), delay=2, leave=False):
            match = _LINE.match(line)
            if match is None:
                labels.drop("bad_columns", path, number, f"{line.strip()[:60]!r} is not `path x1,y1,x2,y2,class ...`")
            elif (image := labels.image(match["path"], path, number)) is not None:
                rows += [(image, box.split(","), path, number) for box in match["boxes"].split()]
    used = {int(values[4]) for _, values, _, _ in rows}
    first = int(bool(used) and 0 not in used and max(used) == len(names))
    if first:
        labels.skips.append(numbers_from_one(names, rows[0][2]))
    for image, values, path, number in rows:
        label = int(values[4]) - first
        if label < len(names):
            labels.box(image, names[label], values[:4], path, number)
        else:
            labels.drop("unknown_class", path, number, f"class {values[4]} is not one of 0 to {len(names) - 1}")


LAYOUT = Layout((".txt",), is_annotation, "{first} has lines of `path x1,y1,x2,y2,class`", read)
