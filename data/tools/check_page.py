"""HTML page of a check: contact sheets of suspicious images, with boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.formats.places import annotation_file
from data.index import DatasetIndex
from data.tools.findings import CODES, CheckReport, Finding
from imaging.image_io import read_image
from imaging.web_page import Mark, Picture, crop, escape, page_html, section, sheet_html, table_html
from utils.errors import printable
from utils.files import write_file

SHOWN = 12  # images of a kind
SIDE = 240  # pixels of a thumbnail
_USUAL, _CULPRIT = (40, 170, 80), (230, 30, 30)  # colours of boxes, RGB


def write_check_page(path: str | Path, report: CheckReport, indices: dict[str, DatasetIndex]) -> None:
    """Write the findings by kind, most severe first, with thumbnails of their images.

    Args:
        path: the HTML file.
        report: of `check_dataset`.
        indices: the splits that were checked.
    """
    pictures = _Pictures(indices)
    columns = ("images", "images_without_boxes", "boxes")
    splits = [[name, *(facts[column] for column in columns)] for name, facts in report.splits.items()]
    table = table_html(["split", "images", "without boxes", "boxes"], splits, "numbers")
    parts = [f"<h1>{escape(report.data)}</h1>", section("", table, f"Format: {report.kind}. {report.why}")]
    for severity, codes in report.by_severity():
        for code, findings in codes:
            title = f"{CODES[code][1]} ({sum(each.count for each in findings)})"
            heading = f'<h2><span class="{severity}">{severity}</span>: {escape(title)}</h2>'
            parts.append(section("", heading + pictures.sheet(findings)))
    write_file(path, page_html(report.data, parts).encode("utf-8", "backslashreplace"))


_read_reduced = partial(read_image, min_size=(SIDE, SIDE))


class _Pictures:
    """Draws the images that findings are about."""

    def __init__(self, indices: dict[str, DatasetIndex]) -> None:
        self.place: dict[str, tuple[DatasetIndex, int]] = {}
        self.by_annotation: dict[str, str] = {}
        for index in indices.values():
            for i in range(len(index)):
                path = str(index.path(i))
                self.place.setdefault(path, (index, i))
                if "json" not in index.source:
                    self.by_annotation[annotation_file(index, path)] = path

    def sheet(self, findings: Sequence[Finding]) -> str:
        shown: list[Picture] = []
        words: list[str] = []
        for each in findings:
            paths = [path for path in (each.pictures or self._pictures_of(each.where)) if Path(path).is_file()]
            found = [self._picture(path, each) for path in paths[:4]] if len(shown) < SHOWN else []
            shown += (found := [picture for picture in found if picture.source])
            if not found and len(words) < SHOWN:
                words.append(f"<li>{escape(each)}</li>")
        left = len(findings) - len(words) - len(shown)
        more = f"<p>and {left} more (all are in --json)</p>" if left > 0 else ""
        return (sheet_html(shown) if shown else "") + f"<ul>{''.join(words)}</ul>{more}"

    def _pictures_of(self, where: str) -> list[str]:
        if where in self.place:
            return [where]
        file = where if where in self.by_annotation else where.rsplit(":", 1)[0]
        return [self.by_annotation[file]] if file in self.by_annotation else []

    def _picture(self, path: str, found: Finding) -> Picture:
        """The image with its boxes; that of the finding in another colour."""
        marks: list[Mark] = []
        width = None
        if path in self.place:
            index, i = self.place[path]
            width = int(index.sizes[i, 1])
            marks = [(box, _USUAL, "") for box in index.boxes[index.boxes_of(i)]]
            if found.box is not None:
                marks.append((np.array(found.box), _CULPRIT, ""))
        caption = f"{Path(path).parent.name}/{Path(path).name}"
        if found.box is not None or not found.pictures:  # else it is about several
            caption += f": {found.what}"
        return Picture(crop(Path(path), marks, None, _read_reduced, SIDE, width), printable(caption))
