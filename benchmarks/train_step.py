"""CPU time of a training step: presets of this project compared with the reference's network and training loop.

    python -m benchmarks.train_step --presets defaults base small --repeat 5

Each network runs in its own process with one thread, so that they do not share an allocator. The steps are interleaved,
and CPU time is measured, so that the ratios are valid on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import in_turns
from data.index import DatasetIndex
from nets.layers import StridedConv2d
from nets.loss_config import LossConfig
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.neck import SPP
from nets.yolov4 import YOLOv4
from training.choose import choose_new_run, model_config
from training.engine import EpochProgress, train_epoch
from training.optim import ModelEMA
from training.options import PRESETS, TrainOptions
from training.setup import build_trainer, freeze
from utils.allocator import keep_freed_memory
from utils.config import parse_settings, replace_options
from utils.errors import run_command
from utils.text import counted

Step = Callable[[], None]
REFERENCE = "reference's loop"
ALL_LAYERS = ", all layers"
DEFAULTS = "defaults"  # train.py without a preset: the full network, all layers trained
IMAGES = 3500  # size of the simulated data set, as voc07_dev's training split
OBJECTS = 3  # boxes per image


def make_batch(batch: int, size: int, classes: int) -> tuple[Tensor, dict[str, Any]]:
    """Random images in channels_last order, as the loader returns them, with boxes of 16 to 300 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    count = batch * OBJECTS
    centre = torch.rand(count, 2, generator=generator) * size
    half = torch.rand(count, 2, generator=generator) * 142 + 8
    boxes = torch.cat([centre - half, centre + half], dim=1).clamp(0, size)
    labels = torch.randint(0, classes, (count,), generator=generator)
    owner = torch.arange(batch).repeat_interleave(OBJECTS)
    return images, {"boxes": boxes, "labels": labels, "image_index": owner, "image_ids": [""] * batch}


def make_index(classes: int) -> DatasetIndex:
    """An index of the size of voc07_dev without image files."""
    count = IMAGES * OBJECTS
    none = np.zeros(0, np.uint8)
    labels = (np.arange(count) % classes).astype(np.int32)
    flags = np.zeros(count, bool)
    return DatasetIndex(
        "noise", tuple(f"class {number}" for number in range(classes)), none, np.zeros(IMAGES + 1, np.int64),
        np.arange(IMAGES), np.zeros((IMAGES, 2), np.int32), np.arange(IMAGES + 1) * OBJECTS, np.zeros((count, 4)),
        labels, flags, flags,
    )  # fmt: skip


class PlainSPP(nn.Module):
    """Parallel max pools of 13, 9 and 5, as in the reference (SPP of YOLOv4, section 3.4)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(F.max_pool2d(x, k, 1, k // 2) for k in (13, 9, 5)), x], dim=1)


def reference_step(size: int, batch: int, classes: int) -> Step:
    """One step of the reference: its network in float32 without this project's optimizations, and SGD.

    The reference's loss (a loop over images and objects, 123 to 216 ms per batch) is replaced by this project's loss.
    """
    config = ModelConfig(tuple(f"class {number}" for number in range(classes)), input_size=(size, size))
    model = YOLOv4(config).train()
    for module in model.modules():
        if isinstance(module, StridedConv2d):
            module.__class__ = nn.Conv2d  # without the faster gradient of strided depthwise convolutions
    assert isinstance(model.neck.spp, SPP)
    model.neck.spp = PlainSPP()
    loss = YOLOLoss(config, LossConfig(assigner="best", ignore_iou=0.5, objectness_target=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.937, nesterov=True, weight_decay=5e-4)
    images, targets = make_batch(batch, size, classes)

    def step() -> None:
        optimizer.zero_grad()
        predictions = model(images.float().contiguous() / 255)
        sum(loss(predictions, targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    return step


def our_step(preset: str, size: int, batch: int, classes: int, all_layers: bool) -> Step:
    """One step of train.py with a preset on data of the size of voc07_dev, with random weights (same cost)."""
    keep_freed_memory()
    index = make_index(classes)
    chosen = [] if preset == DEFAULTS else ["--preset", preset]
    settings = parse_settings(TrainOptions, chosen, description="", presets=PRESETS)
    settings, start = choose_new_run(settings.choose("typed", {"batch_size": batch, "input_size": (size,)}), index)
    options = settings.options
    if all_layers:
        options = replace_options(options, {"freeze_layers": 0, "freeze_norms": False})
    config = model_config(options, start, index)
    model = YOLOv4(config).to(memory_format=torch.channels_last)
    ema = ModelEMA(model, 0.999) if options.optim.ema else None
    trainer = build_trainer(options, model, ema, batch, 100, index)
    freeze(trainer, model.backbone, options, options.start.freeze_epochs)
    data = make_batch(batch, size, classes)
    return lambda: discard(train_epoch(trainer, [data], 1, "", EpochProgress(0, 0, {}), show=False))


def discard(_: Any) -> None:
    """Discard a result."""


def work(connection: Connection, name: str, size: int, batch: int, classes: int) -> None:
    """Process that runs one step for each message and replies with its CPU seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == REFERENCE:
        step = reference_step(size, batch, classes)
    else:
        step = our_step(name.removesuffix(ALL_LAYERS), size, batch, classes, name.endswith(ALL_LAYERS))
    step()  # allocates
    connection.send("ready")
    while connection.recv():
        started = time.process_time()
        step()
        connection.send(time.process_time() - started)


def take_step(connection: Connection) -> float:
    """CPU seconds of one step of a process."""
    connection.send(True)
    return connection.recv()


def measure(names: list[str], size: int, batch: int, classes: int, repeat: int) -> dict[str, list[float]]:
    """CPU seconds of each step of each network. The networks are interleaved."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, name, size, batch, classes), daemon=True)
        process.start()
        ours.recv()  # start one after the other: concurrent starts take twice as long
        workers[name] = (process, ours)
    seconds = in_turns({name: partial(take_step, connection) for name, (_, connection) in workers.items()}, repeat, 0)
    for process, connection in workers.values():
        connection.send(False)
        process.join()
    return seconds


def main(argv: list[str] | None = None) -> None:
    """Print the CPU seconds per step of each network and its ratio to the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="+", default=[DEFAULTS, "base", "small"], help=f"presets to measure; {DEFAULTS}: no preset"
    )
    parser.add_argument("--all-layers", action="store_true", help="also measure each preset with all layers trained")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--input-size", type=int, default=416)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(argv)
    names = [REFERENCE, *options.presets]
    names += [preset + ALL_LAYERS for preset in options.presets] if options.all_layers else []
    seconds = measure(names, options.input_size, options.batch_size, options.classes, options.repeat)
    steps = counted(options.repeat, "step")
    print(f"batch {options.batch_size} at {options.input_size}, one thread, CPU seconds per step, {steps}")
    print(f"{'network':<24}{'median':>8}{'minimum':>8}{'ratio':>8}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[REFERENCE], strict=True))
        print(f"{name:<24}{statistics.median(values):>8.2f}{min(values):>8.2f}{ratio:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, **seconds}))


if __name__ == "__main__":
    run_command(main)
