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
from utils.text import plot_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 300  # per curve; more are not visible and make the page large
MOST_CLASSES = 30  # of a figure with one row per class
CURVE_SIZE = (4.6, 4.4)  # inches; on a phone a plot is about 3.7 inches wide
NAMED_CURVES = 10  # classes with their own colour
INK, ACCENT, BAD, MUTED = "#1f2933", "#2563eb", "#c2410c", "#7b8794"
SIZE_COLOURS = ("#f59e0b", "#ea580c", "#7c2d12")


def data_uri(figure: Figure) -> str:
    """The figure as an SVG in a `data:` URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#cbd2d9", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _legend(figure: Figure, handles: list[Any]) -> None:
    """A legend below the axes, where it covers no curve, with as many columns as fit the width."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _thinned(curve: ScoreCurve) -> np.ndarray:
    """Indices of at most 300 points, spread over the curve."""
    return np.unique(np.linspace(0, len(curve.scores) - 1, MOST_POINTS).astype(int)) if len(curve.scores) else _NONE


_NONE = np.zeros(0, np.int64)


def curve_figures(result: EvaluationResult) -> list[Figure]:
    """Precision against recall; precision, recall and F1 against the score; F1 of each class against the score."""
    (precision, left), (scores, middle), (f1, right) = (_figure(*CURVE_SIZE) for _ in range(3))
    names, classes = result.record.class_names, result.curves.per_class
    shown = [c for c in range(len(names)) if classes[c].num_gt and len(classes[c].scores)]
    few = len(shown) <= NAMED_CURVES
    for c in shown:
        points = _thinned(classes[c])
        style: dict[str, Any] = {"linewidth": 1.2} if few else {"linewidth": 0.7, "color": MUTED}
        left.plot(classes[c].recall[points], classes[c].precision[points], label=plot_label(names[c]), **style)
        right.plot(classes[c].scores[points], classes[c].f1[points], label=plot_label(names[c]), **style)
    overall = result.curves.overall
    points = _thinned(overall)
    left.plot(overall.recall[points], overall.precision[points], color=INK, linewidth=2.2, label="all objects")
    right.plot(overall.scores[points], overall.f1[points], color=INK, linewidth=2.2, label="all objects")
    for name, label, colour in (("precision", "precision", ACCENT), ("recall", "recall", BAD), ("f1", "F1", INK)):
        middle.plot(overall.scores[points], getattr(overall, name)[points], color=colour, label=label)
    if result.best_f1_threshold is not None:
        best = f"best F1 {result.curves.best_f1:.2f} at {result.best_f1_threshold:.2f}"
        middle.axvline(result.best_f1_threshold, color=MUTED, linestyle="--", linewidth=1, label=best)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, IoU 0.5")
    middle.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02), title="All objects by threshold")
    right.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02), title="F1 by class")
    _legend(scores, middle.lines)
    for figure, axis in ((precision, left), (f1, right)):
        if few:
            _legend(figure, axis.lines)
        else:
            axis.lines[0].set_label("each class")
            _legend(figure, [axis.lines[-1], axis.lines[0]])
    return [precision, scores, f1]


def class_figure(result: EvaluationResult) -> Figure:
    """AP50 of each class as bars, lowest first."""
    rows = [(n, row["voc10_AP50"]) for n, row in result.figures["per_class"].items() if row["voc10_AP50"] is not None]
    rows = sorted(rows, key=lambda row: row[1])[:MOST_CLASSES]
    figure, axis = _figure(4.6, 1.2 + 0.24 * len(rows))
    axis.barh([plot_label(name) for name, _ in rows][::-1], [ap for _, ap in rows][::-1], color=ACCENT, height=0.7)
    for place, (_, ap) in enumerate(rows[::-1]):
        axis.text(ap + 0.01, place, f"{ap:.2f}", va="center", fontsize=8, color=INK)
    axis.grid(False, axis="y")
    axis.set(xlim=(0, 1.12), ylim=(-0.7, len(rows) - 0.3), xlabel="AP50 (VOC10)", title="Classes, lowest AP first")
    axis.tick_params(axis="y", labelsize=8)
    return figure


def error_figures(errors: ErrorAnalysis) -> list[Figure]:
    """mAP cost of each error type over all objects, and over the objects of each size alone.

    The costs of the sizes do not add up to that of all objects, so they are bars of their own, on the same scale.
    """
    places = np.arange(len(ERROR_TYPES))[::-1]
    total, by_size = 100 * errors.gain, 100 * errors.gain_by_size
    limit = max(1.0, 1.2 * float(total.max()), 1.2 * float(by_size.max()))
    figures = []
    for height, groups in (
        (2.8, [("all objects", ACCENT, total)]),
        (4.4, [(f"{name} objects", SIZE_COLOURS[size], by_size[:, size]) for size, name in enumerate(SIZES)]),
    ):
        figure, axis = _figure(4.6, height)
        thickness = 0.8 / len(groups)
        for row, (label, colour, points) in enumerate(groups):
            offsets = places + ((len(groups) - 1) / 2 - row) * thickness
            bars = axis.barh(offsets, points, color=colour, label=label, height=0.85 * thickness)
            axis.bar_label(bars, [f"{value:.1f}" for value in points], padding=3, fontsize=8, color=INK)
        axis.set_yticks(places, ERROR_TYPES)
        axis.grid(False, axis="y")
        axis.set(xlabel="gain in mAP50 if corrected, points", xlim=(min(0.0, float(by_size.min())), limit))
        if len(groups) > 1:
            axis.set_title("mAP50 lost, each object size alone")
            _legend(figure, axis.containers)
        else:
            axis.set_title("mAP50 lost, all objects")
        figures.append(figure)
    return figures


def class_errors_figure(result: EvaluationResult, errors: ErrorAnalysis) -> Figure:
    """AP50 cost of each error type by class."""
    num_gt = result.record.num_gt
    order = [c for c in np.argsort(-np.nan_to_num(errors.gain_by_class).sum(axis=0)) if num_gt[c]][:MOST_CLASSES]
    figure, axis = _figure(5.4, 1.8 + 0.25 * len(order))
    axis.grid(False)
    if order:
        table = 100 * np.nan_to_num(errors.gain_by_class[:, order]).T
        most = max(5.0, float(table.max()))
        axis.imshow(np.clip(table, 0, None), cmap="Oranges", aspect="auto", vmin=0, vmax=most)
        for (row, column), value in np.ndenumerate(table):
            if abs(value) >= 0.5:
                colour = "white" if value > 0.6 * most else INK
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(order)), [plot_label(result.record.class_names[c]) for c in order], fontsize=8)
    axis.set_xticks(range(len(ERROR_TYPES)), ERROR_TYPES, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_title("AP50 lost by each class, points, largest first")
    return figure


def confusion_figure(matrix: np.ndarray, class_names: tuple[str, ...], threshold: float) -> Figure:
    """Rows: actual class; columns: predicted class; row fractions. Classes with the most objects come first."""
    totals = matrix[:-1].sum(axis=1)
    kept = [c for c in np.argsort(-totals, kind="stable") if totals[c] or matrix[-1, c]][:MOST_CLASSES]
    order = [*kept, len(class_names)]
    part = matrix[np.ix_(order, order)]
    shares = part / np.maximum(part.sum(axis=1, keepdims=True), 1)
    names = [plot_label(class_names[c]) for c in kept]
    side = 2.6 + 0.27 * len(order)
    figure, axis = _figure(side + 0.6, side)
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
    figure, axis = _figure(*CURVE_SIZE)
    centres = (calibration.edges[1:] + calibration.edges[:-1]) / 2
    axis.bar(centres, np.nan_to_num(calibration.precision), width=0.09, color=ACCENT, alpha=0.85, label="correct")
    axis.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect calibration")
    for centre, precision, count in zip(centres, calibration.precision, calibration.counts, strict=True):
        if count:
            axis.text(centre, precision + 0.01, str(count), ha="center", fontsize=7, color=INK)
    error = "" if calibration.error is None else f", mean error {calibration.error:.2f}"
    axis.set(xlabel="score", ylabel="precision", xlim=(0, 1), ylim=(0, 1.08), title=f"Calibration{error}")
    _legend(figure, [*axis.containers, *axis.lines])
    return figure
