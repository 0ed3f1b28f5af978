"""Speed and accuracy of runtimes and precisions: a README table and a plot, from a benchmark's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nets.export.formats import FORMATS
from utils.errors import UserError
from utils.files import read_file

START, END = "<!-- formats: benchmark.py --all-formats -->", "<!-- end of formats -->"
MAX_TEXT_BYTES = 10_000_000
# runtime -> displayed name
NAMES = {"torch": "PyTorch, fused", **{each.runtime: each.title for each in FORMATS.values() if each.runtime}}
MARKERS = {"fp32": "o", "half": "s", "int8": "^"}

Row = Mapping[str, Any]


def formats_table(rows: Sequence[Row], baseline: str) -> str:
    """Markdown: one line for each network, runtime and precision at batch 1.

    Args:
        rows: of `benchmark.py`, as dicts; those without a model are the baseline and peers.
        baseline: what ratios are to.
    """
    head = ["network", "runtime", "precision", "time", "mAP50", "change", "MB", "MB in RAM", "parity"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
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
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"time: of one image as a ratio to {baseline}'s in the same run; parity: detections that are the checkpoint's; "
        "MB in RAM: the most of a Python process that loads the file and runs it once"
    )
    return "\n".join([*lines, "", note])


def _color(runtime: str) -> str:
    return f"C{list(NAMES).index(runtime)}"  # of Matplotlib's cycle of ten


def checkpoint_scores(rows: Sequence[Row]) -> dict[str, float]:
    """mAP50 in points of each model as its checkpoint gives it."""
    return {row["model"]: row["map50"] for row in rows if row["runtime"] == "torch" and row["map50"] is not None}


def single(rows: Sequence[Row]) -> list[Row]:
    """Rows of one image at a time and the first number of threads."""
    return [row for row in rows if row["batch_size"] == 1 and row["threads"] == rows[0]["threads"]]


def fill_markers(path: Path, text: str) -> str:
    """What to write to a file: the text alone, or the file with the text between its markers, if it has them.

    Raises:
        UserError: if the file is there without both markers, which would be lost.
    """
    if not path.exists():
        return text + "\n"
    content = read_file(path, MAX_TEXT_BYTES).decode("utf-8")
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(path, "is there and has no place for the table", f"put {START} and {END} into it")
    return f"{before}{START}\n{text}\n{END}{after}"


def draw_formats(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """mAP50 over the time, a point for each runtime and precision, a line through those of one network."""
    from matplotlib.figure import Figure  # no window, no global state

    points = [row for row in single(rows) if row["map50"] is not None]
    if not points:
        raise UserError("--formats-plot", "nothing was scored", "add --data DATA")
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
    axes.set_xlabel(f"time of one image as a ratio to {baseline}'s in the same run")
    axes.set_ylabel("mAP50 (VOC2010), points")
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UserError("--formats-plot", str(error)[:100], "name it .png, .svg or .pdf") from error
