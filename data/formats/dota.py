"""Read DOTA label files: one line per object, with the four corners of a rotated box, its class and difficulty.

Source: https://captain-whu.github.io/DOTA/dataset.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_points

_HEADER = re.compile(r"\s*(imagesource|gsd)\s*:.*|\s*", re.IGNORECASE)
_ROW = re.compile(r"\s*(-?\d+\.?\d*\s+){8}[^\s\d]\S*(\s+\d)?\s*")


def is_annotation(path: str, head: bytes) -> bool:
    lines = head.decode("utf-8-sig", "replace").splitlines()
    return bool(_ROW.fullmatch(next((line for line in lines if not _HEADER.fullmatch(line)), "")))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    for image, path, lines in labels.text_files(files):
        for number, line in enumerate(lines, 1):
            if _HEADER.fullmatch(line):
                continue
            words = line.split()
            box = box_of_points(list(zip(words[:8:2], words[1:8:2], strict=False))) if len(words) >= 9 else None
            is_hard = len(words) > 9 and words[9] != "0"
            name = words[8] if len(words) > 8 else None
            kind = "line without four corners and a class"
            labels.shape(image, name, box, path, number, kind, rotated=True, difficult=is_hard)


LAYOUT = Layout((".txt",), is_annotation, "{files} with DOTA's lines of four corners and a class", read)
