"""Convert checkpoints to a file for distribution (half precision, no training state): `pack_weights.py IN... OUT`.

Several checkpoints of one network are averaged. The result is often more accurate than each of them if all were trained
from the same weights (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482). Configuration, metrics and options are
those of the first checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nets.model_config import check_input_size
from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.errors import UserError, run_command
from utils.json_file import read_json
from utils.text import counted

# Paths of the training machine mean nothing to users of the file.
PRIVATE_OPTIONS = ("data", "val_data", "classes", "run_dir", "resume", "weights", "device", "pretrained", "teacher")


def main(argv: list[str] | None = None) -> None:
    """Write the file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    parser.add_argument("--input-size", type=int, nargs="+", help="input size for prediction (default: as in training)")
    parser.add_argument(
        "--scores", type=Path, help="eval.py --json at that size: its scores and score threshold are stored"
    )
    arguments = parser.parse_args(argv)
    checkpoint = average(arguments.sources)
    config = checkpoint.config
    if arguments.input_size:
        config = config.replace(input_size=check_input_size(arguments.input_size))
    metrics = checkpoint.metrics
    if arguments.scores:
        found = read_json(arguments.scores, "a file of eval.py --json")
        metrics = {k: found.get(k, v) for k, v in metrics.items()}
        source = f"best F1 on {found['protocol'].split(';')[0]}"
        config = config.replace(score_threshold=found["best_f1_threshold"], score_threshold_source=source)
    options = {k: v for k, v in checkpoint.info.get("options", {}).items() if k not in PRIVATE_OPTIONS}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    info = {**checkpoint.info, "options": options, "packed_at_commit": commit}
    packed = dataclasses.replace(checkpoint, config=config, metrics=metrics, info=info, training=None)
    save_checkpoint(arguments.target, packed, half=True)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.2f} MB, {counted(config.num_classes, 'class')}")


def average(paths: list[Path]) -> Checkpoint:
    """The first checkpoint, with the mean of the floating-point weights of all.

    Raises:
        UserError: if the tensors of two files have other names or shapes.
    """
    first, *others = (load_checkpoint(path) for path in paths)
    shapes = {name: tensor.shape for name, tensor in first.weights.items()}
    for path, other in zip(paths[1:], others, strict=True):
        if {name: tensor.shape for name, tensor in other.weights.items()} != shapes:
            raise UserError(path, f"is not the same network as {paths[0]}", "average checkpoints of one network")
    for name, tensor in first.weights.items():
        if tensor.is_floating_point():
            first.weights[name] = sum((other.weights[name] for other in others), tensor) / len(paths)
    return first


if __name__ == "__main__":
    run_command(main)
