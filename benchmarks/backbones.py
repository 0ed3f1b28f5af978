"""Compare MobileNet backbones with the same neck, images, steps and recipe: accuracy, cost and time.

python -m benchmarks.backbones VOCdevkit OUT --weights WEIGHTS --limit 1000 --epochs 4 --input-size 192

WEIGHTS contains files such as mobilenet_v1_050.pth (backbone, and alpha in hundredths). A backbone with such a file is
trained twice, from these weights and from random weights. The others are trained from random weights only. Options of
train.py may follow. Times are CPU time of one thread on ONNX Runtime, all networks interleaved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import trained_scores
from benchmarks.pareto import runner
from data.open import open_dataset
from nets.export.form import Form
from nets.export.onnx_file import build_onnx
from nets.export.parity import read_photos
from nets.export.quantize import quantize_onnx
from nets.summary import summarize
from nets.timing import interleave, machine
from nets.weights.checkpoint import load_model
from utils.errors import run_command
from utils.files import write_file
from utils.text import markdown_table

BACKBONES = (
    "mobilenet_v1:0.5", "mobilenet_v1:0.75", "mobilenet_v1:1.0", "mobilenet_v2:0.5", "mobilenet_v2:0.75",
    "mobilenet_v2:1.0", "mobilenet_v3_small:1.0", "mobilenet_v3_large:1.0", "timm:mobilenetv4_conv_small:1.0",
)  # fmt: skip
PRETRAINED, SCRATCH = "pretrained", "scratch"
CALIBRATION_IMAGES = 16


@dataclass
class Row:
    """Results of one backbone. A score is None if that run does not exist. Times in ms, dead kernels as a fraction."""

    name: str
    multiply_adds: int = 0
    parameters: int = 0
    pretrained: tuple[float, float] | None = None
    scratch: tuple[float, float] | None = None
    fp32_ms: float = 0.0
    int8_ms: float = 0.0
    dead_kernels: float = 0.0


def main(argv: list[str] | None = None) -> int:
    """Run the missing trainings, measure, and write OUT/backbones.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="folder with pretrained backbones")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=list(BACKBONES),
        help="backbones to compare, as NAME:ALPHA (timm: needs the extra timm)",
    )
    parser.add_argument("--starts", nargs="+", choices=(PRETRAINED, SCRATCH), default=[PRETRAINED, SCRATCH])
    parser.add_argument("--neck", default="slim")
    parser.add_argument("--neck-width", default="0.5")
    parser.add_argument("--input-size", default="192")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=0, help="number of training images; 0 for all")
    parser.add_argument(
        "--backbone-rate", default="0.05", help="learning rate of a pretrained backbone, relative to the rest"
    )
    parser.add_argument("--repetitions", type=int, default=30)
    arguments, others = parser.parse_known_args(argv)
    rows, files = [], {}
    for name in arguments.backbones:
        row, checkpoint = _train_row(name, arguments, others)
        rows.append(row)
        if checkpoint is not None:
            files |= _describe(row, checkpoint, arguments)
    calls = {key: runner(path) for key, path in files.items()}
    samples = interleave(calls, arguments.repetitions, clock=time.thread_time)
    for row in rows:
        row.fp32_ms, row.int8_ms = (
            1e3 * samples[key].median if key in samples else float("nan") for key in (row.name, f"{row.name} int8")
        )
    report = {"machine": machine(), "arguments": vars(arguments) | {"others": others}}
    report["rows"] = [dataclasses.asdict(row) for row in rows]
    write_file(arguments.out / "backbones.json", json.dumps(report, indent=1, default=str).encode())
    table = results_table(rows)
    write_file(arguments.out / "backbones.md", (table + "\n").encode())
    draw(arguments.out / "backbones.png", rows)
    print(table)
    return 0


def weights_file(folder: Path | None, name: str) -> Path | None:
    """Path of the pretrained weights of NAME:ALPHA in a folder, or None."""
    if folder is None:
        return None
    backbone, _, alpha = name.rpartition(":")
    found = sorted(folder.glob(f"{backbone}_{round(100 * float(alpha)):03d}*.pth"))
    return found[0] if found else None


def _train_row(name: str, arguments: argparse.Namespace, others: list[str]) -> tuple[Row, Path | None]:
    backbone, _, alpha = name.rpartition(":")
    row, checkpoint = Row(name), None
    for start in arguments.starts:
        source = weights_file(arguments.weights, name)
        if start == PRETRAINED and source is None:
            continue
        folder = arguments.out / f"{name.replace(':', '_')}_{start}"
        command = ["--data", arguments.data, "--backbone", backbone, "--alpha", alpha]
        command += ["--neck", arguments.neck, "--neck-width", arguments.neck_width, "--no-tensorboard"]
        command += ["--input-size", arguments.input_size, "--epochs", str(arguments.epochs)]
        command += ["--eval-every", str(arguments.epochs), "--limit", str(arguments.limit)]
        if start == PRETRAINED:
            command += ["--pretrained", str(source), "--freeze-norms"]
            command += ["--backbone-rate-factor", arguments.backbone_rate]
        scores = trained_scores(folder, [*command, *others])
        setattr(row, start, scores)
        print(f"{name} {start}: VOC10 mAP50 {scores[0]:.3f}, COCO AP {scores[1]:.3f}", flush=True)
        checkpoint = checkpoint or folder / "best.pth"
    return row, checkpoint


def _describe(row: Row, checkpoint: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Fill in the cost of the network. Returns its ONNX files to measure, by name."""
    model = load_model(checkpoint)
    summary = summarize(model.config, model)
    row.multiply_adds, row.parameters = summary["multiply_adds"], summary["parameters"]
    layers = summary["dead_kernels"]
    row.dead_kernels = sum(d["empty"] + d["silent"] for d in layers) / max(sum(d["channels"] for d in layers), 1)
    folder = checkpoint.parent
    write_file(folder / "fp32.onnx", build_onnx(model, Form()).SerializeToString())
    index = open_dataset(arguments.data, "val")
    photos = read_photos([index.path(i) for i in index.spread(CALIBRATION_IMAGES)])
    quantize_onnx(model, folder / "int8.onnx", Form(precision="int8"), photos)
    return {row.name: folder / "fp32.onnx", f"{row.name} int8": folder / "int8.onnx"}


def results_table(rows: list[Row]) -> str:
    """A Markdown table with one row per backbone. Scores are VOC10 mAP50 / COCO AP."""
    head = ["backbone", "from pretrained", "from scratch", "M multiply-adds", "M parameters"]
    head += ["fp32 ms", "int8 ms", "dead kernels"]
    lines = []
    for row in rows:
        scores = ["-" if s is None else f"{s[0]:.3f} / {s[1]:.3f}" for s in (row.pretrained, row.scratch)]
        numbers = [f"{row.multiply_adds / 1e6:.0f}", f"{row.parameters / 1e6:.2f}", f"{row.fp32_ms:.1f}"]
        numbers += [f"{row.int8_ms:.1f}", f"{row.dead_kernels:.1%}"]
        lines.append([_label(row), *scores, *numbers])
    return markdown_table(head, lines)


def _label(row: Row) -> str:
    return row.name.replace("timm:", "").replace(":", " ")


def draw(path: Path, rows: list[Row]) -> None:
    """Plot COCO AP against the fp32 time. Filled markers: pretrained weights; hollow markers: random weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        for score, filled in ((row.pretrained, True), (row.scratch, False)):
            if score is not None:
                axes.plot(row.fp32_ms, score[1], "o", color="C0", fillstyle="full" if filled else "none")
                axes.annotate(_label(row).replace("mobilenet_", ""), (row.fp32_ms, score[1]),
                              textcoords="offset points", xytext=(5, 4), fontsize=8)  # fmt: skip
    axes.set(xlabel="ms per image, ONNX Runtime fp32, one thread", ylabel="COCO AP", xlim=(0, None), ylim=(0, None))
    axes.set_title("filled: pretrained backbone, hollow: random weights", fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_command(main)
