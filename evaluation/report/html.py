"""HTML report of an evaluation: one self-contained file."""

from __future__ import annotations

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
from evaluation.report.pictures import confident_mistakes, worst_images
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
from evaluation.report.text import left_out, noise_text, number, working_rows, working_threshold
from imaging.image_io import read_image
from imaging.web_page import escape, page_html, section, sheet_html, table_html

_KEY = (
    '<span class="key" style="background:#16a34a"></span>correct'
    '<span class="key" style="background:#dc2626"></span>wrong'
    '<span class="key" style="background:#f59e0b"></span>ground truth (missed, or the object of an error)'
)


def report_html(
    result: EvaluationResult, scored: Scored = UNKNOWN, model: str = "", read: Callable[[Path], np.ndarray] = read_image
) -> str:
    """The report as text.

    Args:
        scored: settings of the evaluation, for the recommendations.
        model: name of the model, as the user gave it.
        read: path to (H, W, 3) uint8 RGB. An image that cannot be read is left out, with a note on the page.
    """
    errors = analyse_errors(result.record, result.outcome)
    threshold = working_threshold(result)
    matrix = confusion_matrix(result.record, threshold)
    calibration = calibrate(result.record.det_scores, result.outcome)
    total, by_size = error_figures(errors)
    names = ("precision and recall", "precision, recall and F1 by score threshold", "F1 by class")
    curves = "".join(_plot(figure, name) for figure, name in zip(curve_figures(result), names, strict=True))
    classes = _plot(class_figure(result), "AP by class")
    worst, mistakes = worst_images(result, threshold, read), confident_mistakes(result, errors, read)
    title = f"Evaluation of {model or 'detections'} on {result.index.name}"
    sections = [
        f"<h1>{escape(title)}</h1><p class=note>{'<br>'.join(map(escape, [result.protocol, *left_out(result)]))}</p>",
        section("", _cards(result), noise_text(result)),
        section("Recommendations", _advice_list(advise(result, errors, scored))),
        section(
            "mAP lost by errors",
            f'<div class="side"><div class="stack">{_plot(total, "mAP lost by error type")}'
            f"{_plot(by_size, 'mAP lost by error type and object size')}</div>"
            f"{_plot(class_errors_figure(result, errors), 'AP lost by error type and class')}</div>",
            "Gain in mAP50 if all errors of one type were corrected, and no others (TIDE). The gains of the types do "
            "not add up, nor do those of the object sizes: each correction changes the effect of the others.",
        ),
        section("Curves", f'<div class="plots">{curves}</div>'),
        section("Classes", f'<div class="side">{_class_table(result)}{classes}</div>'),
        section(
            "Confusion and calibration",
            '<div class="side"><div class="scroll">'
            f"{_plot(confusion_figure(matrix, result.record.class_names, threshold), 'confusion')}</div>"
            f"{_plot(calibration_figure(calibration), 'calibration')}</div>",
            "Confusion: counts at the best-F1 threshold, shaded by fraction of the row, "
            f"at most {MOST_CLASSES} classes. Calibration: detections with a score of {LEAST_SCORE} or more, with "
            "their number on each bar.",
        ),
        section("COCO metrics and time", _coco_and_time(result)),
        section("Worst images", sheet_html(worst), f"At score {threshold:.2f}:{_KEY}", raw=True),
        section("Most confident errors", sheet_html(mistakes), f"Some may be unlabelled objects.{_KEY}", raw=True),
    ]
    return page_html(title, sections)


def _plot(figure: Any, alt: str) -> str:
    return f'<div><img class="plot" alt="{escape(alt)}" src="{data_uri(figure)}"></div>'


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
    cards = (f'<div class="card"><b>{escape(v)}</b><span>{escape(name)}</span></div>' for v, name in values)
    return f'<div class="cards">{"".join(cards)}</div>'


def _advice_list(advice: list[Any]) -> str:
    def item(text: str) -> str:
        parts = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
        return re.sub(r"(?<![\w>-])(--[a-z][a-z-]*(?: [\d.]+\d)*)(?![^<]*</code>)", r"<code>\1</code>", parts)

    return "<ol>" + "".join(f"<li>{item(each.text)}</li>" for each in advice) + "</ol>"


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
    return table_html(head, rows)


def _coco_and_time(result: EvaluationResult) -> str:
    parts = []
    if "coco_AP" in result.figures:
        figures = [number(result.figures[f"coco_{name}"]) for name in FIGURES]
        parts.append(table_html(FIGURES, [figures], "numbers"))
    if result.timing:
        head = [*(stage for stage in STAGES if stage in result.timing), "images per second"]
        row = [f"{share:.0%}" for share in result.timing.values()]
        parts.append(table_html(head, [[*row, number(result.images_per_second, 1)]], "numbers"))
    return "".join(parts) or "<p>The detections are from a file, so no times were measured.</p>"
