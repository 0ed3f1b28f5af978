"""Read MOT Challenge: for each video a gt/gt.txt, `frame,id,left,top,width,height,used,class,visibility`, and img1/.

Sources: https://arxiv.org/abs/1603.00831, https://docs.cvat.ai/docs/manual/advanced/formats/format-mot/ (labels.txt)
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from data.formats.folder import plain_name, stem_of
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_sides, number_of
from data.formats.yolo_txt import names_of_folder
from utils.files import MEGABYTE, read_lines

NAMES = ("pedestrian", "person on vehicle", "car", "bicycle", "motorbike", "non motorized vehicle", "static person",
         "distractor", "occluder", "occluder on the ground", "occluder full", "reflection", "crowd")  # fmt: skip
_ROW = re.compile(rb"^\s*\d+(,\s*-?\d+(\.\d*)?){5,9},?\s*$")
_MAX_BYTES = 256 * MEGABYTE


def is_annotation(path: str, head: bytes) -> bool:
    return os.path.basename(path) == "gt.txt" and bool(_ROW.match(head.split(b"\n")[0]))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.names = names = names_of_folder(labels.folder) or class_names or NAMES
    for path in files:
        frames = _frames(labels, path)
        for number, line in read_lines(path, _MAX_BYTES):
            cells = [cell.strip() for cell in line.strip().rstrip(",").split(",")]
            if len(cells) < 6 or not cells[0].isdigit():
                if any(cells):
                    labels.drop("bad_columns", path, number, f"{line.strip()[:60]!r} is not a line of numbers")
                continue
            label = number_of(cells[7]) if len(cells) > 7 else 1
            if label is None or not 1 <= label <= len(names):
                labels.drop("unknown_class", path, number, f"class {cells[7]} is not one of 1 to {len(names)}")
                continue
            name = frames.get(int(cells[0]), f"{int(cells[0]):06d}.jpg")
            image = labels.image(name, path, number)
            if len(cells) < 7 or cells[6] != "0":  # 0: not used in the evaluation
                box = box_of_sides(dict(enumerate(cells)), range(2, 6))
                labels.shape(image, names[int(label) - 1], box, path, number, "line without four numbers")


def _frames(labels: Labels, path: str) -> dict[int, str]:
    """The path of each frame of the video of a gt.txt, by the number in its name."""
    home = os.path.dirname(os.path.dirname(path))
    frames = {}
    for picture in labels.folder.pictures:
        number = re.search(r"\d+$", stem_of(picture))
        if number and plain_name(picture).startswith(plain_name(home) + "/"):
            frames[int(number[0])] = picture
    return frames


LAYOUT = Layout((".txt",), is_annotation, "{files} with MOT's lines of frames and boxes", read)
