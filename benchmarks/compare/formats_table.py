"""Markdown table and plot of the speed and accuracy of runtimes and precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import save_plot
from nets.export.formats import FORMATS
from utils.errors import UserError
from utils.files import read_file
from utils.text import markdown_table

START, END = "<!-- formats: benchmark.py --all-formats -->", "<!-- end of formats -->"
MAX_TEXT_BYTES = 10_000_000
# runtime -> displayed name
NAMES = {"torch": "PyTorch, fused", **{each.runtime: each.title for each in FORMATS.values() if each.runtime}}
MARKERS = {"fp32": "o", "half": "s", "int8": "^"}

Row = Mapping[str, Any]


def formats_table(rows: Sequence[Row], baseline: str) -> str:
    """Markdown table with one row per network, runtime and precision at batch size 1.

    Args:
        rows: rows of `benchmark.py` as dicts. Rows without a model are the baseline and the peers.
        baseline: name of the network that the ratios refer to.
    """
    head = ["network", "runtime", "precision", "time", "mAP50", "change", "MB", "MB in RAM", "parity"]
    lines = []
    scores = checkpoint_scores(rows)
    for row in single(rows):
        score, base = row["map50"], scores.get(row["model"])
        change = "" if score is None or base is None or row["runtime"] == "torch" else f"{score - base:+.2f}"
        shown = "" if score is None else f"{score:.2f}"
        runtime = NAMES.get(row["runtime"], row["runtime"])
        precision = {"half": "16 bits"}.get(row["precision"], row["precision"])
        cells = [row["model"] or row["name"], runtime, precision, f"{row['ratio']:.2f}", shown, change]
        cells += ["" if row["file_mb"] is None else f"{row['file_mb']:.1f}"]
        cells += ["" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"]
        parity = row["parity"]
        cells.append("" if parity is None else f"{parity['detections'] - parity['changed']}/{parity['detections']}")
        lines.append(cells)
    note = (
        f"time: time per image divided by that of {baseline} in the same run; parity: detections equal to the "
        "checkpoint's; MB in RAM: peak memory of a Python process that loads the file and runs it once"
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def _color(runtime: str) -> str:
    return f"C{list(NAMES).index(runtime)}"  # Matplotlib's default color cycle


def checkpoint_scores(rows: Sequence[Row]) -> dict[str, float]:
    """mAP50 in points of each model's checkpoint, by model name."""
    return {row["model"]: row["map50"] for row in rows if row["runtime"] == "torch" and row["map50"] is not None}


def single(rows: Sequence[Row]) -> list[Row]:
    """Rows with batch size 1 and the first number of threads."""
    return [row for row in rows if row["batch_size"] == 1 and row["threads"] == rows[0]["threads"]]


def fill_markers(path: Path, text: str) -> str:
    """Content to write to a file: the text, or the existing content with the text between its markers.

    Raises:
        UserError: if the file exists and does not contain both markers, because its content would be lost.
    """
    if not path.exists():
        return text + "\n"
    content = read_file(path, MAX_TEXT_BYTES).decode("utf-8")
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(path, "exists and has no markers for the table", f"insert {START} and {END}")
    return f"{before}{START}\n{text}\n{END}{after}"


def draw_formats(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """Plot mAP50 against time: one point per runtime and precision, one line per network."""
    from matplotlib.figure import Figure  # no window, no global state

    points = [row for row in single(rows) if row["map50"] is not None]
    if not points:
        raise UserError("--formats-plot", "no entry has a score", "add --data DATA")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for model in dict.fromkeys(row["model"] for row in points):
        own = sorted((row["ratio"], row["map50"]) for row in points if row["model"] == model)
        axes.plot(*zip(*own, strict=True), color="#cccccc", linewidth=1, zorder=1)
        axes.annotate(model, own[-1], textcoords="offset points", xytext=(8, -3), fontsize=9)
    for row in points:
        axes.plot(row["ratio"], row["map50"], MARKERS[row["precision"]], color=_color(row["runtime"]))
    shown = dict.fromkeys((row["runtime"], row["precision"]) for row in points)
    for runtime, precision in shown:
        label = f"{NAMES[runtime]}, {'16 bits' if precision == 'half' else precision}"
        axes.plot([], [], MARKERS[precision], color=_color(runtime), label=label)
    axes.legend(fontsize=8)
    axes.set_xlabel(f"time per image relative to {baseline} in the same run")
    axes.set_ylabel("mAP50 (VOC2010), points")
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    save_plot(figure, "--formats-plot", path)
