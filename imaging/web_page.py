"""Self-contained HTML pages: sections, tables, and images with boxes drawn on them."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imaging.draw import contrast_colour, line_width, put_text, text_height, text_size
from imaging.image_io import encode_image
from utils.errors import UserError, printable

TILE = 640  # longest side of an image in a page, pixels
CROP_TEXT = 1.5  # height of text in a crop, which has few boxes, for its small size in the page
JPEG_QUALITY = 80
Mark = tuple[np.ndarray, tuple[int, int, int], str]  # box (4,) image pixels, colour, text


CSS = """
:root { color-scheme: light; --back: #f5f7fa; --card: #fff; --text: #1f2933; --quiet: #52606d; --line: #e4e7eb;
  --stage: #e4e7eb; --focus: #2563eb; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --back: #15181b; --card: #1f2428; --text: #e7eaed; --quiet: #a3abb3; --line: #3d454c;
    --stage: #0c0e10; --focus: #7cb0ff; }
  img.plot { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 0 0 8px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px;
  margin: 16px 0; }
p.note { color: var(--quiet); margin: 4px 0 10px; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
.card { background: var(--back); border-radius: 6px; padding: 10px 14px; }
.card b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.card span { color: var(--quiet); font-size: 13px; }
ol { padding-left: 24px; overflow-wrap: anywhere; } ol li { margin: 6px 0; }
code { white-space: nowrap; background: var(--back); padding: 0 3px; border-radius: 3px; }
img { max-width: 100%; height: auto; display: block; }
img.plot { margin: 0 auto; } .stack { display: grid; gap: 16px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 20px;
  align-items: start; }
.side { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
.side > * { flex: 1 1 340px; min-width: 0; max-width: 100%; }
.side > .scroll { flex: 2 1 640px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; width: 100%; }
th, td { text-align: right; padding: 3px 6px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 14px; }
figure { margin: 0; } figcaption { font-size: 13px; margin-top: 4px; overflow-wrap: anywhere; }
.sheet img { width: 100%; height: 230px; object-fit: contain; background: var(--stage); border-radius: 4px; }
table.numbers { width: auto; margin: 0 0 12px; }
table.numbers th, table.numbers td { text-align: right; padding: 3px 12px; white-space: nowrap; }
.zoom { display: block; cursor: zoom-in; position: relative; } .zoom input { position: absolute; opacity: 0; }
.zoom input:focus-visible + img { outline: 3px solid var(--focus); }
.zoom input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; z-index: 1; cursor: zoom-out;
  background: rgba(17, 24, 39, 0.92); border-radius: 0; }
@media (max-width: 700px) { main { padding: 8px; } section { padding: 12px; }
  .scroll img.plot { max-width: none; }
  .side > *, .side > .scroll { flex: 1 1 100%; } }
.absent { height: 120px; background: var(--stage); border-radius: 4px; display: grid; place-items: center;
  color: var(--quiet); }
.error { color: light-dark(#b00020, #ffb4ab); } .warning { color: light-dark(#8f4f00, #ffb870); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin: 0 4px 0 12px; }
"""


@dataclass(frozen=True)
class Picture:
    """One image of the page: a `data:` URL (empty if the file is missing) and its caption."""

    source: str
    caption: str


def page_html(title: str, sections: list[str]) -> str:
    """A page of sections of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def escape(text: Any) -> str:
    """A value as one line of HTML text."""
    return html.escape(printable(text))


def section(title: str, content: str, note: str = "", raw: bool = False) -> str:
    """A section of HTML with a heading and a note, which is HTML itself with `raw`."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    remark = f"<p class=note>{note if raw else escape(note)}</p>" if note else ""
    return f"<section>{heading}{remark}{content}</section>"


def table_html(head: Sequence[Any], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """A table; the CSS class `numbers` is for narrow ones."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    rows_html = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{rows_html}</table></div>'


def sheet_html(pictures: Sequence[Picture]) -> str:
    """Images in a grid, with their captions."""
    if not pictures:
        return "<p>None.</p>"
    return f'<div class="sheet">{"".join(map(_tile, pictures))}</div>'


def _tile(picture: Picture) -> str:
    if picture.source:
        image = (
            f'<label class="zoom"><input type="checkbox" aria-label="enlarge">'
            f'<img alt="{escape(picture.caption)}" src="{picture.source}"></label>'
        )
    else:
        image = '<div class="absent">image not found</div>'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def jpeg_url(image: np.ndarray, quality: int = JPEG_QUALITY) -> str:
    """An (H, W, 3) uint8 RGB image as a JPEG in a `data:` URL."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(image, ".jpg", quality)).decode()


def crop(
    path: Path,
    marks: Sequence[Mark],
    around: np.ndarray | None,
    read: Callable[[Path], np.ndarray],
    tile: int = TILE,
    width: int | None = None,
) -> str:
    """An image, or a crop around a box, with marked boxes, as a JPEG in a `data:` URL.

    `width` is that of the full-size image, if `read` may return a reduced one; only for a whole image.
    """
    try:
        image = read(path)
    except (UserError, OSError, ValueError):
        return ""
    height, own_width = image.shape[:2]
    left, top, right, bottom = 0, 0, own_width, height
    if around is not None:
        margin = 0.5 * max(around[2] - around[0], around[3] - around[1], 0.2 * max(height, own_width))
        low, high = np.floor(around[:2] - margin).astype(int), np.ceil(around[2:] + margin).astype(int)
        left, top = np.clip(low, 0, [own_width - 1, height - 1]).tolist()
        right, bottom = np.clip(high, [left + 1, top + 1], [own_width, height]).tolist()
    part = image[top:bottom, left:right]
    scale = min(tile / max(part.shape[:2]), 4.0)
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    canvas = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    scale *= own_width / (width or own_width)  # of a box in the full-size image
    for box, colour, text in marks:
        _mark(canvas, (box - [left, top, left, top]) * scale, colour, text, 1.0 if around is None else CROP_TEXT)
    return jpeg_url(canvas)


def _mark(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], text: str, enlarged: float) -> None:
    """Draw one box, with its text inside the top edge so that it stays in the image."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.clip(np.rint(box), -1, [width, height, width, height]).astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, max(2, line_width(canvas)))
    if not text:
        return
    cap = round(enlarged * text_height(canvas))
    text_width, ascent, descent = text_size(text, cap)
    left = max(0, min(x1, width - text_width - 4))
    top = max(0, min(y1, height - ascent - descent - 4))
    cv2.rectangle(canvas, (left, top), (left + text_width + 4, top + ascent + descent + 3), colour, cv2.FILLED)
    put_text(canvas, text, left + 2, top + ascent + 2, cap, contrast_colour(colour))
