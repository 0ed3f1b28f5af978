"""mAP against the number of training images, our recipe beside the reference's, in the same number of steps.

python -m benchmarks.small_data_curve VOCdevkit OUT --pretrained mobilenet_v2_100.pth --steps 600 --input-size 224
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import train
from nets.weights.checkpoint import load_checkpoint
from utils.errors import UserError, run_command
from utils.files import write_file

BATCH = 8  # the reference's
REFERENCE_FREEZE = 50 / 300  # part of its run with the backbone frozen
# both train the same network, so that what differs is the recipe
NETWORK = ("--backbone", "mobilenet_v2", "--neck-width", "0.375", "--no-tensorboard")
RECIPES = ("ours", "reference")


def main(argv: list[str] | None = None) -> int:
    """Run what is not there yet, write OUT/curve.json and OUT/curve.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrained", default="imagenet")
    parser.add_argument("--images", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    if min(arguments.images) < 1 or arguments.steps < 1:
        raise UserError("--images, --steps", "must be at least 1", "give positive numbers")
    results = []
    for count in arguments.images:
        for recipe in RECIPES:
            folder = arguments.out / f"{recipe}_{count}"
            if not (folder / "best.pth").exists():
                train.main(command(recipe, count, folder, arguments))
            metrics = load_checkpoint(folder / "best.pth").metrics
            row = {
                "images": count,
                "recipe": recipe,
                "voc10_mAP50": metrics["voc10_mAP50"],
                "coco_AP": metrics["coco_AP"],
            }
            results.append(row)
            print(f"{count:5d} images, {recipe:9s}: VOC10 mAP50 {row['voc10_mAP50']:.3f}, COCO AP {row['coco_AP']:.3f}")
    report = {"steps": arguments.steps, "input_size": arguments.input_size, "seed": arguments.seed, "results": results}
    write_file(arguments.out / "curve.json", json.dumps(report, indent=1).encode())
    draw(arguments.out / "curve.png", report)
    return 0


def command(recipe: str, count: int, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """train.py's command line for one run; the last epoch is scored."""
    epochs = max(round(arguments.steps / -(-count // BATCH)), 1)
    options = ["--data", arguments.data, "--run-dir", str(folder), "--limit", str(count), "--epochs", str(epochs)]
    options += [*NETWORK, "--input-size", str(arguments.input_size), "--batch-size", str(BATCH)]
    options += ["--pretrained", arguments.pretrained, "--eval-every", str(epochs), "--seed", str(arguments.seed)]
    options += ["--threads", str(arguments.threads), "--workers", "1"]
    if recipe == "ours":
        return ["--preset", "auto", *options]
    return ["--preset", "reference", *options, "--freeze-epochs", str(round(epochs * REFERENCE_FREEZE))]


def draw(path: Path, report: dict) -> None:
    """One line a recipe, images on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for recipe, style in zip(RECIPES, ("o-", "s--"), strict=True):
        rows = [row for row in report["results"] if row["recipe"] == recipe]
        axes.plot([row["images"] for row in rows], [row["voc10_mAP50"] for row in rows], style, label=recipe)
    axes.set(xscale="log", xlabel="training images", ylabel="VOC10 mAP50", ylim=(0, None))
    axes.set_xticks(sorted({row["images"] for row in report["results"]}), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{report['steps']} steps of {BATCH}, {report['input_size']} pixels, the same network")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
