"""Read text files with one line per object: its class, then x1, y1, x2, y2 in pixels (OIDv4 ToolKit, mAP scripts).

Sources: https://github.com/EscVM/OIDv4_ToolKit, https://github.com/Cartucho/mAP (with a word `difficult` at the end)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.labels import Labels, Layout

_NUMBER = r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?"
_ROW = re.compile(
    rf"\s*(?P<name>(?:(?!{_NUMBER}\s)\S+\s+)+)(?P<box>{_NUMBER}(?:\s+{_NUMBER}){{3}})(?P<hard>\s+difficult)?\s*",
    re.IGNORECASE,
)


def is_annotation(path: str, head: bytes) -> bool:
    match = _ROW.fullmatch(head.decode("utf-8", "replace").split("\n")[0])
    return match is not None and max(map(float, match["box"].split())) > 1  # fractions are YOLO's, with names


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.numbers = "corners"
    for image, path, lines in labels.text_files(files):
        for number, line in enumerate(lines, 1):
            if match := _ROW.fullmatch(line):
                labels.box(
                    image, match["name"].strip(), match["box"].split(), path, number, difficult=bool(match["hard"])
                )
            elif line.strip():
                labels.drop("bad_columns", path, number, f"{line.strip()[:60]!r} is not a class and x1 y1 x2 y2")


LAYOUT = Layout((".txt",), is_annotation, "{files} with lines of a class name and four numbers", read)
