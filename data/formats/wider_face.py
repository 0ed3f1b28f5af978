"""Read WIDER FACE: a list of image names, each followed by the number of its faces and a line for each of them.

Source: http://shuoyang1213.me/WIDERFACE/
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_sides
from utils.files import MEGABYTE, read_lines

CLASS = "face"
_HEAD = re.compile(rb"\s*\S.*\.(jpe?g|png)\s*\r?\n\s*\d+\s*\r?\n\s*-?\d+( -?\d+){3,}", re.IGNORECASE)
_INVALID = 7  # column: 1 for a face that cannot be recognised as one
_MAX_BYTES = 256 * MEGABYTE


def is_annotation(path: str, head: bytes) -> bool:
    return bool(_HEAD.match(head))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.numbers = "xywh"
    for path in files:
        image = None
        for number, line in read_lines(path, _MAX_BYTES):
            words = line.split()
            if re.search(r"\.(jpe?g|png)\s*$", line, re.IGNORECASE):
                image = labels.image(line.strip(), path, number)
            elif len(words) < 4 or words[_INVALID : _INVALID + 1] == ["1"] or not any(word != "0" for word in words):
                continue  # the number of faces; an invalid face; the line of zeros of an image without faces
            else:
                box = box_of_sides(dict(enumerate(words)), range(4))
                labels.shape(image, CLASS, box, path, number, "line without four numbers")


LAYOUT = Layout((".txt",), is_annotation, "{first} has WIDER FACE's names, numbers and lines of faces", read)
