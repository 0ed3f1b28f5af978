"""Read VisDrone: a text file per image with lines `left,top,width,height,score,category,truncation,occlusion`.

Source: https://github.com/VisDrone/VisDrone2018-DET-toolkit
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_sides
from data.formats.yolo_txt import names_of_folder
from data.skips import Skip

_ROW = re.compile(rb"^\s*-?\d+(,-?\d+){7},?\s*$")
NAMES = ("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
         "others")  # fmt: skip
_COLUMNS = 8


def is_annotation(path: str, head: bytes) -> bool:
    return bool(_ROW.match(head.split(b"\n")[0]))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.names = names = names_of_folder(labels.folder) or class_names or NAMES
    ignored = 0
    for image, path, lines in labels.text_files(files):
        for number, line in enumerate(lines, 1):
            cells = line.strip().rstrip(",").split(",")
            if cells == [""]:
                continue
            if len(cells) != _COLUMNS or not cells[5].isdigit():
                labels.drop("bad_columns", path, number, f"{line.strip()[:60]!r} is not a line of eight numbers")
            elif int(cells[5]) == 0 or cells[4] == "0":  # a region to ignore
                ignored += 1
            elif int(cells[5]) > len(names):
                labels.drop("unknown_class", path, number, f"class {cells[5]} is not one of 1 to {len(names)}")
            else:
                box = box_of_sides(dict(enumerate(cells)), range(4))
                labels.shape(image, names[int(cells[5]) - 1], box, path, number, "line without four numbers")
    if ignored:
        labels.skips.append(
            Skip("note", "ignored_regions", str(labels.folder.root), f"{ignored} ignored regions are skipped")
        )


LAYOUT = Layout((".txt",), is_annotation, "{files} with VisDrone's lines of eight numbers", read)
