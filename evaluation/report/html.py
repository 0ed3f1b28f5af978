"""HTML report of an evaluation: one self-contained file."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.evaluator import STAGES, EvaluationResult
from evaluation.metrics.calibration import LEAST_SCORE, calibrate
from evaluation.metrics.coco import FIGURES
from evaluation.metrics.confusion import confusion_matrix
from evaluation.metrics.errors import analyse_errors
from evaluation.report.advice import UNKNOWN, Scored, advise
from evaluation.report.pictures import Picture, confident_mistakes, worst_images
from evaluation.report.plots import (
    MOST_CLASSES,
    calibration_figure,
    class_errors_figure,
    class_figure,
    confusion_figure,
    curve_figures,
    data_uri,
    error_figures,
)
from evaluation.report.text import noise_text, number, working_rows, working_threshold
from imaging.image_io import read_image
from utils.files import write_file
from utils.text import counted

_CSS = """
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
.key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin: 0 4px 0 12px; }
"""
_KEY = (
    '<span class="key" style="background:#16a34a"></span>correct'
    '<span class="key" style="background:#dc2626"></span>wrong'
    '<span class="key" style="background:#f59e0b"></span>ground truth (missed, or the object of an error)'
)


def write_report(
    path: Path,
    result: EvaluationResult,
    scored: Scored = UNKNOWN,
    model: str = "",
    read: Callable[[Path], np.ndarray] | None = None,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        result: the evaluation.
        scored: settings of the evaluation, for the recommendations.
        model: name of the model, as the user gave it.
        read: path to (H, W, 3) uint8 RGB; `imaging.image_io.read_image` by default. An image that cannot be read is
            left out, with a note on the page.
    """
    write_file(path, report_html(result, scored, model, read).encode("utf-8", "backslashreplace"))


def report_html(
    result: EvaluationResult,
    scored: Scored = UNKNOWN,
    model: str = "",
    read: Callable[[Path], np.ndarray] | None = None,
) -> str:
    """The report as text; see `write_report`."""
    read = read or read_image
    errors = analyse_errors(result.record, result.outcome)
    threshold = working_threshold(result)
    matrix = confusion_matrix(result.record, threshold)
    calibration = calibrate(result.record.det_scores, result.outcome)
    total, by_size = error_figures(errors)
    names = ("precision and recall", "precision, recall and F1 by score threshold", "F1 by class")
    curves = "".join(_plot(figure, name) for figure, name in zip(curve_figures(result), names, strict=True))
    title = f"Evaluation of {model or 'detections'} on {result.index.name}"
    sections = [
        f"<h1>{_escape(title)}</h1><p class=note>{_escape(result.protocol)}{_left_out(result)}</p>",
        _section("", _cards(result), noise_text(result)),
        _section("Recommendations", _advice_list(advise(result, errors, scored))),
        _section(
            "mAP lost by errors",
            f'<div class="side"><div class="stack">{_plot(total, "mAP lost by error type")}'
            f"{_plot(by_size, 'mAP lost by error type and object size')}</div>"
            f"{_plot(class_errors_figure(result, errors), 'AP lost by error type and class')}</div>",
            "Gain in mAP50 if all errors of one type were corrected, and no others (TIDE). The gains of the types do "
            "not add up, nor do those of the object sizes: each correction changes the effect of the others.",
        ),
        _section("Curves", f'<div class="plots">{curves}</div>'),
        _section(
            "Classes", f'<div class="side">{_class_table(result)}{_plot(class_figure(result), "AP by class")}</div>'
        ),
        _section(
            "Confusion and calibration",
            '<div class="side"><div class="scroll">'
            f"{_plot(confusion_figure(matrix, result.record.class_names, threshold), 'confusion')}</div>"
            f"{_plot(calibration_figure(calibration), 'calibration')}</div>",
            "Confusion: counts at the best-F1 threshold, shaded by fraction of the row, "
            f"at most {MOST_CLASSES} classes. Calibration: detections with a score of {LEAST_SCORE} or more, with "
            "their number on each bar.",
        ),
        _section("COCO metrics and time", _coco_and_time(result)),
        _section(
            "Worst images", _sheet(worst_images(result, threshold, read)), f"At score {threshold:.2f}:{_KEY}", raw=True
        ),
        _section(
            "Most confident errors",
            _sheet(confident_mistakes(result, errors, read)),
            f"Objects without a label appear here, too.{_KEY}",
            raw=True,
        ),
    ]
    return page_html(title, sections)


def page_html(title: str, sections: list[str]) -> str:
    """A separate page: sections of HTML in the style of the report."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _escape(text: Any) -> str:
    return html.escape(str(text))


def _section(title: str, content: str, note: str = "", raw: bool = False) -> str:
    heading = f"<h2>{_escape(title)}</h2>" if title else ""
    remark = f"<p class=note>{note if raw else _escape(note)}</p>" if note else ""
    return f"<section>{heading}{remark}{content}</section>"


def _plot(figure: Any, alt: str) -> str:
    return f'<div><img class="plot" alt="{_escape(alt)}" src="{data_uri(figure)}"></div>'


def _left_out(result: EvaluationResult) -> str:
    parts = []
    if result.skips:
        parts.append(f"{counted(len(result.skips), 'unreadable image')} not evaluated")
    if result.num_not_scored:
        parts.append(f"{counted(result.num_not_scored, 'object')} of classes unknown to the model not evaluated")
    return "".join(f"<br>{_escape(part)}" for part in parts)


def _cards(result: EvaluationResult) -> str:
    figures = result.figures
    values = [
        (number(figures["voc10_mAP50"]), "mAP50, VOC 2010"),
        (number(figures["voc07_mAP50"]), "mAP50, VOC 2007"),
        (number(figures.get("coco_AP")), "AP, COCO"),
        (number(figures.get("coco_AP75")), "AP75, COCO"),
        (number(result.curves.best_f1), f"best F1, at score {number(result.best_f1_threshold, 2)}"),
        (str(result.num_images), "images"),
        (str(int(result.record.num_gt.sum())), "objects"),
    ]
    if result.images_per_second:
        values.append((number(result.images_per_second, 1), "images per second"))
    cards = (f'<div class="card"><b>{_escape(v)}</b><span>{_escape(name)}</span></div>' for v, name in values)
    return f'<div class="cards">{"".join(cards)}</div>'


def _advice_list(advice: list[Any]) -> str:
    def item(text: str) -> str:
        parts = re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))
        return re.sub(r"(?<![\w>-])(--[a-z][a-z-]*(?: [\d.]+\d)*)(?![^<]*</code>)", r"<code>\1</code>", parts)

    return "<ol>" + "".join(f"<li>{item(each.text)}</li>" for each in advice) + "</ol>"


def _table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    heads = "".join(f"<th>{_escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _class_table(result: EvaluationResult) -> str:
    at = f"at score {working_threshold(result):.2f}"
    head = ["class", "objects", "AP50", "AP50, VOC07", "AP, COCO", f"found {at}", "wrong", "precision", "recall"]
    head += ["best F1", "at score"]
    rows = []
    for row, own in zip(working_rows(result), result.per_class().values(), strict=True):
        if row.objects or row.found + row.wrong:
            counts = [str(row.found), str(row.wrong), number(row.precision), number(row.recall)]
            figures = [number(row.ap50), number(own.get("voc07_AP50")), number(row.coco)]
            best = [number(own["f1"]), number(own["threshold"], 2)]
            rows.append([row.name, str(row.objects), *figures, *counts, *best])
    return _table(head, rows)


def _coco_and_time(result: EvaluationResult) -> str:
    parts = []
    if "coco_AP" in result.figures:
        parts.append(_table(list(FIGURES), [[number(result.figures[f"coco_{name}"]) for name in FIGURES]], "numbers"))
    if result.timing:
        head = [*(stage for stage in STAGES if stage in result.timing), "images per second"]
        row = [f"{share:.0%}" for share in result.timing.values()]
        parts.append(_table(head, [[*row, number(result.images_per_second, 1)]], "numbers"))
    return "".join(parts) or "<p>The detections are from a file, so no times were measured.</p>"


def _sheet(pictures: list[Picture]) -> str:
    if not pictures:
        return "<p>None.</p>"
    return f'<div class="sheet">{"".join(map(_tile, pictures))}</div>'


def _tile(picture: Picture) -> str:
    if picture.source:
        image = (
            f'<label class="zoom"><input type="checkbox" aria-label="enlarge">'
            f'<img alt="{_escape(picture.caption)}" src="{picture.source}"></label>'
        )
    else:
        image = '<div class="absent">image not found</div>'
    return f"<figure>{image}<figcaption>{_escape(picture.caption)}</figcaption></figure>"
