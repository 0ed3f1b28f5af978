"""Print and write the results of benchmark.py as Markdown, JSON and plots."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.compare.formats_table import draw_formats, fill_markers, formats_table
from benchmarks.compare.measure import Result
from benchmarks.compare.options import BenchmarkOptions
from benchmarks.harness import save_plot
from nets.timing import machine
from utils.errors import warn
from utils.files import write_atomically
from utils.text import markdown_table


def report(result: Result, options: BenchmarkOptions) -> None:
    """Print the results and write the files given in the options."""
    table = result_table(result)
    print(table)
    for stage in result.stages:
        parts = ", ".join(f"{n} {stage[n]:.2f}" for n in ("decode", "preprocess", "network", "postprocess", "draw"))
        print(
            f"stages of {stage['image']} ({stage['size']}), one thread, CPU ms, score >= {stage['threshold']:g}, "
            f"{stage['detections']} detections: {parts}; sum without network and drawing {stage['all_but_network']:.2f}"
        )
    for reason in result.noise:
        warn("noise", reason)
    if result.noise:
        print("the times are unreliable; the ratios are less affected, because they are medians over neighbouring runs")
    if options.table:
        write_atomically(Path(options.table), (table + "\n").encode())
    if options.json:
        write_atomically(Path(options.json), json.dumps(to_json(result, options), indent=1).encode())
    if options.plot:
        draw_plot(result, Path(options.plot))
    rows = [dataclasses.asdict(row) for row in result.rows]
    if options.formats_table:
        path = Path(options.formats_table)
        text = formats_table(rows, result.baseline)
        write_atomically(path, fill_markers(path, text).encode())
    if options.formats_plot:
        draw_formats(rows, result.baseline, Path(options.formats_plot))


def result_table(result: Result) -> str:
    """All rows as a Markdown table. Ratios are relative to the baseline, the first row."""
    head = ["network", "runtime", "precision", "batch", "threads", "ms", "quartiles", "images/s", "ratio", "mAP50"]
    head += ["MB", "MB in RAM", *(["J"] if any(row.joules is not None for row in result.rows) else [])]
    lines = []
    for row in result.rows:
        low, high = row.quartiles_ms
        cells = [row.name, row.runtime, row.precision, row.batch_size, row.threads, f"{row.median_ms:.1f}"]
        cells += [f"{low:.1f} to {high:.1f}", f"{row.images_per_second:.1f}", f"{row.ratio:.2f}"]
        cells += ["" if row.map50 is None else f"{row.map50:.1f}"]
        cells += ["" if mb is None else f"{mb:.1f}" for mb in (row.file_mb, row.memory_mb)]
        cells += [f"{row.joules:.3f}"] if row.joules is not None else []
        lines.append(cells)
    note = f"ratio: relative to {result.baseline}, median over the repetitions of the same run"
    return f"{markdown_table(head, lines)}\n\n{note}"


def to_json(result: Result, options: BenchmarkOptions) -> dict[str, Any]:
    """Convert the result to plain types for JSON."""
    return {
        "machine": machine(),
        "options": dataclasses.asdict(options),
        "baseline": result.baseline,
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "stages": result.stages,
        "noise": result.noise,
        "trusted": not result.noise,
    }


def draw_plot(result: Result, path: Path) -> None:
    """Plot the medians as bars with their quartiles."""
    from matplotlib.figure import Figure  # no window, no global state

    rows = result.rows[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row.name}, batch {row.batch_size}, {row.threads} threads" for row in rows]
    medians = [row.median_ms for row in rows]
    errors = [[m - r.quartiles_ms[0] for m, r in zip(medians, rows, strict=True)]]
    errors.append([r.quartiles_ms[1] - m for m, r in zip(medians, rows, strict=True)])
    axes.barh(range(len(rows)), medians, xerr=errors, color="#4c78a8", ecolor="#333333")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    for place, row in enumerate(rows):
        axes.text(row.quartiles_ms[1], place, f" {row.median_ms:.1f} ms, x {row.ratio:.2f}", va="center", fontsize=8)
    axes.set_xlabel("milliseconds per batch: median and quartiles")
    axes.set_title("unreliable: the machine was busy" if result.noise else f"relative to {result.baseline}")
    axes.margins(x=0.25)
    save_plot(figure, "--plot", path)
