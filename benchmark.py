"""Measure the speed of detectors by runtime, precision, batch, threads, size and stage, relative to other detectors."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from benchmarks.compare.entries import build_entries
from benchmarks.compare.formats_table import fill_markers
from benchmarks.compare.measure import Result, measure, measure_stages, score_entries
from benchmarks.compare.options import BenchmarkOptions
from benchmarks.compare.report import report
from nets.export.formats import FORMAT_OF_RUNTIME
from nets.model_config import input_size_option
from utils.config import parse_options
from utils.cpus import num_threads, set_num_threads
from utils.errors import UserError, run_command


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns 1 if an export failed (the others are still measured)."""
    options = parse_options(BenchmarkOptions, argv, description=__doc__ or "", prog="benchmark.py")
    if options.all_formats:
        options = dataclasses.replace(
            options, runtimes=("torch", *FORMAT_OF_RUNTIME), precisions=("fp32", "half", "int8"), reference=True
        )
    check_outputs(options)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = Result()
        usual = 1 if options.clock == "cpu" else num_threads()
        for threads in options.threads or (usual,):
            set_num_threads(threads)
            entries = build_entries(options, folder, result.failed)
            scores = score_entries(entries, options, folder) if options.data and not result.rows else {}
            for batch_size in options.batch_size:
                measure(result, entries, batch_size, threads, options, scores)
        if options.stages:
            measure_stages(result, options)
    report(result, options)
    if result.failed:
        print(f"failed, and not measured: {', '.join(result.failed)}")
    return 1 if result.failed else 0


def check_outputs(options: BenchmarkOptions) -> None:
    """Raises UserError, before any work, if an output cannot be written or a step cannot run."""
    for field_name in ("json", "plot", "table", "formats_table", "formats_plot"):
        name = getattr(options, field_name)
        if name is not None and not Path(name).resolve().parent.is_dir():
            flag = "--" + field_name.replace("_", "-")
            raise UserError(flag, f"{Path(name).parent} is not a folder", "create it first")
    if options.formats_table:
        fill_markers(Path(options.formats_table), "")
    if options.formats_plot and not options.data:
        raise UserError("--formats-plot", "needs a data set for mAP50", "add --data DATA")
    if options.clock == "cpu" and options.threads not in (None, (1,)):
        raise UserError("--clock", "CPU time equals latency only with one thread", "add --threads 1")
    if "int8" in options.precisions and not options.data:
        raise UserError("--precisions", "int8 needs calibration images", "add --data DATA")
    for size in options.input_size or ():
        input_size_option(size)


if __name__ == "__main__":
    run_command(main)
