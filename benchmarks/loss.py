"""CPU time of the loss, forward and backward: `python -m benchmarks.loss`."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from nets.assigner import ASSIGNERS
from nets.loss_config import LossConfig
from nets.losses import YOLOLoss
from nets.model_config import STRIDES, ModelConfig
from utils.errors import run_command

WARM_UP = 3
REFERENCE_MS = {15: 123.0, 60: 216.0}  # the reference's CPU time, one thread, batch 8 at 416, as issue 2 states it


def make_batch(objects: int, batch: int, size: int, classes: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Random predictions, and `objects` boxes an image of 16 to 300 pixels."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, 3, size // s, size // s, 5 + classes, generator=generator) for s in STRIDES]
    centre = torch.rand(batch * objects, 2, generator=generator) * size
    half = torch.rand(batch * objects, 2, generator=generator) * 142 + 8
    boxes = torch.cat([centre - half, centre + half], dim=1).clamp(0, size)
    labels = torch.randint(0, classes, (batch * objects,), generator=generator)
    return maps, {"boxes": boxes, "labels": labels, "image_index": torch.arange(batch).repeat_interleave(objects)}


def cpu_milliseconds(assigner: str, arguments: argparse.Namespace) -> dict[int, list[float]]:
    """CPU times of forward and backward passes by objects an image, taken by turns: what disturbs hits all alike."""
    config = ModelConfig(class_names=tuple(f"class {i}" for i in range(arguments.classes)))
    loss = YOLOLoss(config, LossConfig(assigner=assigner))
    batches = {n: make_batch(n, arguments.batch_size, arguments.input_size, arguments.classes) for n in REFERENCE_MS}
    times: dict[int, list[float]] = {n: [] for n in batches}
    for _ in range(arguments.repeat + WARM_UP):
        for objects, (maps, targets) in batches.items():
            leaves = [m.detach().requires_grad_() for m in maps]
            started = time.process_time()
            sum(loss(leaves, targets).values()).backward()
            times[objects].append((time.process_time() - started) * 1e3)
    return {objects: taken[WARM_UP:] for objects, taken in times.items()}


def main(argv: list[str] | None = None) -> None:
    """Print a table of milliseconds by assigner and number of objects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--input-size", type=int, default=416)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"loss forward + backward, batch {arguments.batch_size} at {arguments.input_size}, one thread, CPU ms (median)"
    )
    print("assigner   " + "".join(f"{n:>4} objects an image" for n in REFERENCE_MS) + "   growth")
    for assigner in ASSIGNERS:
        times = cpu_milliseconds(assigner, arguments)
        medians = {objects: statistics.median(taken) for objects, taken in times.items()}
        cells = "".join(f"{ms:>8.1f} ({ms / REFERENCE_MS[n]:.2f} of ref)" for n, ms in medians.items())
        growth = statistics.median(many / few for few, many in zip(*times.values(), strict=True))
        print(f"{assigner:<11}{cells}   x{growth:.2f}")


if __name__ == "__main__":
    run_command(main)
