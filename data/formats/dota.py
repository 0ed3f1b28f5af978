"""Read DOTA label files: one line per object, with the four corners of a rotated box, its class and difficulty.

Source: https://captain-whu.github.io/DOTA/dataset.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.folder import Folder
from data.formats.labels import Labels
from data.formats.shapes import box_of_points

_HEADER = re.compile(r"\s*(imagesource|gsd)\s*:.*|\s*", re.IGNORECASE)
_ROW = re.compile(r"\s*(-?\d+\.?\d*\s+){8}[^\s\d]\S*(\s+\d)?\s*")


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{len(files)} .txt files with DOTA's lines of four corners and a class" if files else None


def _files(folder: Folder) -> list[str]:
    def is_dota(path: str) -> bool:
        lines = folder.head(path).decode("utf-8-sig", "replace").splitlines()
        first = next((line for line in lines if not _HEADER.fullmatch(line)), "")
        return bool(_ROW.fullmatch(first))

    return [path for path in folder.having(".txt") if is_dota(path)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    for image, path, lines in labels.text_files(_files(folder)):
        for number, line in enumerate(lines, 1):
            if _HEADER.fullmatch(line):
                continue
            words = line.split()
            box = box_of_points(list(zip(words[:8:2], words[1:8:2], strict=False))) if len(words) >= 9 else None
            is_hard = len(words) > 9 and words[9] != "0"
            name = words[8] if len(words) > 8 else None
            labels.shape(
                image, name, box, path, number, "line without four corners and a class", True, difficult=is_hard
            )
