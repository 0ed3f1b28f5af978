"""Plots of a report: curves and bars as inline SVG images."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.evaluator import EvaluationResult
from evaluation.metrics.calibration import Calibration
from evaluation.metrics.curves import ScoreCurve
from evaluation.metrics.errors import ERROR_TYPES, SIZES, ErrorAnalysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 300  # per curve; more are not visible and make the page large
MOST_CLASSES = 30  # of a figure with one row per class
NAMED_CURVES = 10  # classes with their own colour
INK, ACCENT, BAD, MUTED = "#1f2933", "#2563eb", "#c2410c", "#9aa5b1"
SIZE_COLOURS = ("#f59e0b", "#ea580c", "#7c2d12")


def data_uri(figure: Figure) -> str:
    """The figure as an SVG in a `data:` URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#e4e7eb", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _text(name: str) -> str:
    """Escape a class name so that matplotlib does not parse it as mathematics."""
    return name.replace("$", r"\$")


def _thinned(curve: ScoreCurve) -> np.ndarray:
    """Indices of at most 300 points, spread over the curve."""
    return np.unique(np.linspace(0, len(curve.scores) - 1, MOST_POINTS).astype(int)) if len(curve.scores) else _NONE


_NONE = np.zeros(0, np.int64)


def curves_figure(result: EvaluationResult) -> Figure:
    """Precision against recall, and precision, recall and F1 against the score."""
    figure, (left, middle, right) = _figure(13, 4.2, 3)
    names, classes = result.record.class_names, result.curves.per_class
    shown = [c for c in range(len(names)) if classes[c].num_gt and len(classes[c].scores)]
    few = len(shown) <= NAMED_CURVES
    for c in shown:
        points = _thinned(classes[c])
        style: dict[str, Any] = {"linewidth": 1.2} if few else {"linewidth": 0.7, "color": MUTED}
        left.plot(classes[c].recall[points], classes[c].precision[points], label=_text(names[c]), **style)
        right.plot(classes[c].scores[points], classes[c].f1[points], label=_text(names[c]), **style)
    overall = result.curves.overall
    points = _thinned(overall)
    left.plot(overall.recall[points], overall.precision[points], color=INK, linewidth=2.2, label="all objects")
    right.plot(overall.scores[points], overall.f1[points], color=INK, linewidth=2.2, label="all objects")
    for name, colour in (("precision", ACCENT), ("recall", BAD), ("f1", INK)):
        middle.plot(overall.scores[points], getattr(overall, name)[points], color=colour, label=name)
    if result.best_f1_threshold is not None:
        middle.axvline(result.best_f1_threshold, color=MUTED, linestyle="--", linewidth=1)
        middle.annotate(
            f"best F1 {result.curves.best_f1:.2f}\nat {result.best_f1_threshold:.2f}",
            (result.best_f1_threshold, 0.03),
            xytext=(4, 0),
            textcoords="offset points",
            color=INK,
            fontsize=8,
        )
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, IoU 0.5")
    middle.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02), title="All objects by threshold")
    right.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02), title="F1 by class")
    middle.legend(frameon=False, fontsize=8)
    if few:
        left.legend(frameon=False, fontsize=8, loc="lower left")
    else:
        left.legend(handles=left.lines[-1:], frameon=False, fontsize=8, loc="lower left")
    return figure


def class_figure(result: EvaluationResult) -> Figure:
    """AP50 of each class as bars, lowest first."""
    rows = [(n, row["voc10_AP50"]) for n, row in result.figures["per_class"].items() if row["voc10_AP50"] is not None]
    rows = sorted(rows, key=lambda row: row[1])[:MOST_CLASSES]
    figure, (axis,) = _figure(6, 1.2 + 0.24 * len(rows))
    axis.barh([_text(name) for name, _ in rows][::-1], [ap for _, ap in rows][::-1], color=ACCENT, height=0.7)
    for place, (_, ap) in enumerate(rows[::-1]):
        axis.text(ap + 0.01, place, f"{ap:.2f}", va="center", fontsize=8, color=INK)
    axis.grid(False, axis="y")
    axis.set(xlim=(0, 1.08), ylim=(-0.7, len(rows) - 0.3), xlabel="AP50 (VOC10)", title="Classes, lowest AP first")
    axis.tick_params(axis="y", labelsize=8)
    return figure


def errors_figure(result: EvaluationResult, errors: ErrorAnalysis) -> Figure:
    """mAP cost of each error type, by object size and by class."""
    num_gt = result.record.num_gt
    order = [c for c in np.argsort(-np.nan_to_num(errors.gain_by_class).sum(axis=0)) if num_gt[c]][:MOST_CLASSES]
    figure, (left, right) = _figure(13, max(3.6, 1.4 + 0.2 * len(order)), 2)
    start = np.zeros(len(ERROR_TYPES))
    names = list(ERROR_TYPES)[::-1]
    for size, label in enumerate(SIZES):
        width = 100 * np.clip(errors.gain_by_size[::-1, size], 0, None)
        left.barh(names, width, left=start, color=SIZE_COLOURS[size], label=label, height=0.65)
        start += width
    for place, total in enumerate(100 * errors.gain[::-1]):
        left.text(start[place], place, f" {total:.1f}", va="center", fontsize=9, color=INK)
    left.grid(False, axis="y")
    left.set(xlabel="gain in mAP50 without it, points", title="mAP lost, by object size")
    left.set_xlim(0, max(1.0, float(start.max()) * 1.15))
    left.legend(frameon=False, fontsize=8, title="object", title_fontsize=8)
    right.grid(False)
    if order:
        table = 100 * np.nan_to_num(errors.gain_by_class[:, order]).T
        right.imshow(np.clip(table, 0, None), cmap="Oranges", aspect="auto", vmin=0, vmax=max(5.0, float(table.max())))
        dark = max(5.0, float(table.max())) * 0.6
        for (row, column), value in np.ndenumerate(table):
            if abs(value) >= 0.5:
                colour = "white" if value > dark else INK
                right.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        right.set_yticks(range(len(order)), [_text(result.record.class_names[c]) for c in order], fontsize=8)
    right.set_xticks(range(len(ERROR_TYPES)), ERROR_TYPES, fontsize=8)
    right.set_title("AP50 lost by each class, points, largest first")
    return figure


def confusion_figure(matrix: np.ndarray, class_names: tuple[str, ...], threshold: float) -> Figure:
    """Rows: actual class; columns: predicted class; row fractions. Classes with the most objects come first."""
    totals = matrix[:-1].sum(axis=1)
    kept = [c for c in np.argsort(-totals, kind="stable") if totals[c] or matrix[-1, c]][:MOST_CLASSES]
    order = [*kept, len(class_names)]
    part = matrix[np.ix_(order, order)]
    shares = part / np.maximum(part.sum(axis=1, keepdims=True), 1)
    names = [_text(class_names[c]) for c in kept]
    side = 2.6 + 0.27 * len(order)
    figure, (axis,) = _figure(side + 0.6, side)
    axis.grid(False)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if part[row, column]:
            colour = "white" if share > 0.55 else INK
            axis.text(column, row, str(part[row, column]), ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(order)), [*names, "missed"], rotation=90, fontsize=8)
    axis.set_yticks(range(len(order)), [*names, "background"], fontsize=8)
    axis.set(xlabel="predicted", ylabel="actual", title=f"Confusion at score {threshold:.2f}, IoU 0.5")
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """Precision by score, and the number of detections per score bin."""
    figure, (axis,) = _figure(6, 4)
    centres = (calibration.edges[1:] + calibration.edges[:-1]) / 2
    axis.bar(centres, np.nan_to_num(calibration.precision), width=0.09, color=ACCENT, alpha=0.85, label="right")
    axis.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect calibration")
    for centre, precision, count in zip(centres, calibration.precision, calibration.counts, strict=True):
        if count:
            axis.text(centre, min(precision, 0.97) + 0.01, str(count), ha="center", fontsize=7, color=INK)
    error = "" if calibration.error is None else f", mean error {calibration.error:.2f}"
    axis.set(xlabel="score", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05), title=f"Calibration{error}")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return figure
