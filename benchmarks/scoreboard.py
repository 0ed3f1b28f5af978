"""Compare scores of several detectors on the same images, with bootstrap confidence intervals.

python -m benchmarks.scoreboard small=small.json yolox_nano=yolox_nano.json --table scores.md

The files are written by `eval.py --json`, for other detectors by `eval.py --detections FILE --json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.metrics.compare import CONFIDENCE, REPETITIONS, score_interval
from utils.errors import UserError, run_command
from utils.files import write_file
from utils.json_file import read_json
from utils.text import markdown_table


def main(argv: list[str] | None = None) -> None:
    """Print the table, best COCO AP first, and write it to --table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="NAME=FILE.json")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="bootstrap repetitions")
    parser.add_argument("--table", type=Path, help="write the Markdown table to this file")
    options = parser.parse_args(argv)
    rows = []
    for text in options.results:
        name, _, file = text.rpartition("=")
        if not name:
            raise UserError(text, "is not NAME=FILE.json", "give each file with a name")
        figures = read_json(Path(file), "a file of eval.py --json")
        rows.append((name, figures["num_images"], figures["coco_AP"], *score_interval(Path(file), options.repetitions)))
    cells = [
        (name, images, f"{score:.3f} ({low:.3f} to {high:.3f})", f"{ap:.3f}")
        for name, images, ap, score, low, high in sorted(rows, key=lambda row: -row[2])
    ]
    table = markdown_table(("detector", "images", f"VOC10 mAP50 ({CONFIDENCE:.0%} interval)", "COCO AP"), cells)
    print(table)
    if options.table:
        write_file(options.table, (table + "\n").encode())


if __name__ == "__main__":
    run_command(main)
