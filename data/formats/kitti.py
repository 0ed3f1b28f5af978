"""Read KITTI label files: one line per object, with its type, three numbers, and the box in pixels.

Source: https://www.cvlibs.net/datasets/kitti/eval_object.php
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.formats.labels import Labels, Layout
from data.skips import Skip

_ROW = re.compile(rb"^\s*[^\s\d,]\S*(\s+-?\d+\.?\d*(e-?\d+)?){14,15}\s*$", re.IGNORECASE)
IGNORED = "DontCare"


def is_annotation(path: str, head: bytes) -> bool:
    return bool(_ROW.match(head.split(b"\n")[0]))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.numbers = "corners"
    ignored = 0
    for image, path, lines in labels.text_files(files):
        for number, line in enumerate(lines, 1):
            words = line.split()
            name, values = "".join(words[:1]), words[4:8]
            if name == IGNORED:
                ignored += 1
            elif words:
                labels.box(image, name, values, path, number)
    if ignored:
        what = f"{ignored} regions {IGNORED} are skipped"
        labels.skips.append(Skip("note", "ignored_regions", str(labels.folder.root), what))


LAYOUT = Layout((".txt",), is_annotation, "{files} with KITTI's lines of 15 columns", read)
