"""mAP against the number of training images, for different initial weights and recipes with the same number of steps.

python -m benchmarks.small_data_curve VOCdevkit OUT --pretrained mobilenet_v1_075.pth --images 20 50 100 300 --steps 300

Options of train.py may follow. They apply to every run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import trained_scores
from utils.errors import UserError, run_command
from utils.files import write_file
from utils.text import counted

BATCH = 8  # batch size of the reference
REFERENCE_FREEZE = 50 / 300  # share of the reference's epochs with a frozen backbone
# All runs train the network of the bundled `small`, so that only the initial weights or the recipe differ.
NETWORK = ("--backbone", "mobilenet_v1", "--alpha", "0.75", "--neck", "slim", "--neck-width", "0.5")
RUNS = {
    "bundled": "--preset auto, from the bundled detector",
    "backbone": "--preset auto, from a pretrained backbone",
    "scratch": "--preset auto, from random weights",
    "reference": "the reference's recipe, from a pretrained backbone",
}


def main(argv: list[str] | None = None) -> int:
    """Run the missing trainings and write OUT/curve.json and OUT/curve.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrained", default="none", help="pretrained weights of MobileNetV1 0.75")
    parser.add_argument("--bundled", default="small", help="bundled detector to start from")
    parser.add_argument("--runs", nargs="+", choices=tuple(RUNS), default=["bundled", "backbone", "scratch"])
    parser.add_argument("--images", type=int, nargs="+", default=[20, 50, 100, 300])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--input-size", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments, others = parser.parse_known_args(argv)
    if min(arguments.images) < 1 or arguments.steps < 1:
        raise UserError("--images, --steps", "must be at least 1", "give positive numbers")
    results = []
    for count in arguments.images:
        for run in arguments.runs:
            folder = arguments.out / f"{run}_{count}"
            started = time.perf_counter()
            score, ap = trained_scores(folder, [*command(run, count, arguments), *others])
            results.append({"images": count, "run": run, "voc10_mAP50": score, "coco_AP": ap})
            words = f"VOC10 mAP50 {score:.3f}, COCO AP {ap:.3f} ({time.perf_counter() - started:.0f} s)"
            print(f"{counted(count, 'image'):>12}, {run:9s}: {words}", flush=True)
    report = {"steps": arguments.steps, "input_size": arguments.input_size, "seed": arguments.seed, "results": results}
    write_file(arguments.out / "curve.json", json.dumps(report, indent=1).encode())
    draw(arguments.out / "curve.png", report)
    return 0


def command(run: str, count: int, arguments: argparse.Namespace) -> list[str]:
    """The options of train.py for one run. Only the last epoch is evaluated."""
    epochs = max(round(arguments.steps / -(-count // BATCH)), 1)
    options = ["--data", arguments.data, "--limit", str(count), "--epochs", str(epochs)]
    options += ["--input-size", str(arguments.input_size), "--batch-size", str(BATCH), "--eval-every", str(epochs)]
    options += ["--seed", str(arguments.seed), "--threads", str(arguments.threads), "--workers", "0"]
    options += ["--cache", "ram", "--no-tensorboard"]
    if run == "bundled":
        return ["--preset", "auto", *options, "--weights", arguments.bundled]
    options += NETWORK
    if run == "scratch":
        return ["--preset", "auto", *options]
    options += ["--pretrained", arguments.pretrained]
    if run == "backbone":
        return ["--preset", "auto", *options]
    return ["--preset", "reference", *options, "--freeze-epochs", str(round(epochs * REFERENCE_FREEZE))]


def draw(path: Path, report: dict[str, Any]) -> None:
    """Plot one curve per run, with the number of images on a logarithmic axis."""
    from matplotlib.figure import Figure  # no window, no global state

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for run in dict.fromkeys(row["run"] for row in report["results"]):
        rows = [row for row in report["results"] if row["run"] == run]
        axes.plot([row["images"] for row in rows], [row["voc10_mAP50"] for row in rows], "o-", label=RUNS[run])
    axes.set(xscale="log", xlabel="training images", ylabel="VOC10 mAP50", ylim=(0, None))
    axes.set_xticks(sorted({row["images"] for row in report["results"]}), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{report['steps']} steps of {BATCH}, {report['input_size']} pixels, the same network")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_command(main)
