"""HTML page of a check: contact sheets of suspicious images, with boxes drawn."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.formats.places import annotation_file
from data.index import DatasetIndex
from data.tools.findings import CODES, CheckReport, Finding
from imaging.image_io import read_image
from utils.errors import UserError, printable
from utils.files import write_file

SHOWN = 12  # images of a kind
SIDE = 240  # pixels of a thumbnail
_USUAL, _CULPRIT = (40, 170, 80), (230, 30, 30)  # colours of boxes, RGB
_STYLE = """:root{color-scheme:light dark}
body{font:15px/1.4 system-ui,sans-serif;margin:0 auto;padding:1em;max-width:1200px;
background:light-dark(#fff,#15181b);color:light-dark(#222,#e7eaed)}
h1,h2,p,li,td,figcaption{overflow-wrap:anywhere} h1{font-size:24px} h2{margin-top:2em;font-size:18px}
.error{color:light-dark(#b00020,#ffb4ab)} .warning{color:light-dark(#8f4f00,#ffb870)}
.info{color:light-dark(#445566,#a9bccf)}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,240px));gap:12px} figure{margin:0}
img{max-width:100%;height:auto;box-sizing:border-box;border:1px solid light-dark(#ccc,#3d454c)}
figcaption{font-size:13px} ul{padding-left:1.4em} table{border-collapse:collapse}
td,th{padding:2px 12px 2px 0;text-align:left}"""


def write_check_page(path: str | Path, report: CheckReport, indices: dict[str, DatasetIndex]) -> None:
    """Write the findings by kind, most severe first, with thumbnails of their images.

    Args:
        path: the HTML file.
        report: of `check_dataset`.
        indices: the splits that were checked.
    """
    pictures = _Pictures(indices)
    parts = [f"<h1>{_text(report.data)}</h1><p>Format: {_text(report.kind)}. {_text(report.why)}</p>{_splits(report)}"]
    for severity, codes in report.by_severity():
        for code, findings in codes:
            count = sum(each.count for each in findings)
            parts.append(f'<h2 class="{severity}">{severity}: {_text(CODES[code][1])} ({count})</h2>')
            parts.append(pictures.sheet(findings))
    body = "\n".join(parts)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{_text(report.data)}</title>'
    )
    write_file(path, f"{page}<style>{_STYLE}</style><body>{body}</body></html>\n".encode("utf-8", "backslashreplace"))


def _splits(report: CheckReport) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{facts['images']}</td><td>{facts['images_without_boxes']}</td>"
        f"<td>{facts['boxes']}</td></tr>"
        for name, facts in report.splits.items()
    )
    return f"<table><tr><th>split</th><th>images</th><th>without boxes</th><th>boxes</th></tr>{rows}</table>"


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
        figures: list[str] = []
        words: list[str] = []
        for each in findings:
            paths = [path for path in (each.pictures or self._pictures_of(each.where)) if Path(path).is_file()]
            shown = (
                [figure for path in paths[:4] if (figure := self._figure(path, each))] if len(figures) < SHOWN else []
            )
            figures += shown
            if not shown and len(words) < SHOWN:
                words.append(f"<li>{_text(str(each))}</li>")
        left = len(findings) - len(words) - len(figures)
        more = f"<p>and {left} more (all are in --json)</p>" if left > 0 else ""
        return f'<div class="sheet">{"".join(figures)}</div><ul>{"".join(words)}</ul>{more}'

    def _pictures_of(self, where: str) -> list[str]:
        if where in self.place:
            return [where]
        file = where if where in self.by_annotation else where.rsplit(":", 1)[0]
        return [self.by_annotation[file]] if file in self.by_annotation else []

    def _figure(self, path: str, found: Finding) -> str:
        try:
            image = read_image(path, min_size=(SIDE, SIDE))
        except (UserError, OSError):
            return ""
        scale = SIDE / max(image.shape[:2])
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if path in self.place:
            index, i = self.place[path]
            factor = np.array([size[0], size[1]] * 2) / np.maximum(index.sizes[i][[1, 0, 1, 0]], 1)
            for box in index.boxes[index.offsets[i] : index.offsets[i + 1]]:
                _draw(small, box * factor, _USUAL, 2)
            if found.box is not None:
                _draw(small, np.asarray(found.box) * factor, _CULPRIT, 3)
        _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
        source = base64.b64encode(data.tobytes()).decode()
        caption = f"{Path(path).parent.name}/{Path(path).name}"
        if found.box is not None or not found.pictures:  # else it is about several
            caption += f": {found.what}"
        picture = f'<img src="data:image/jpeg;base64,{source}" alt="">'
        return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _draw(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(image, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), colour, width)


def _text(text: str) -> str:
    return html.escape(printable(text))
