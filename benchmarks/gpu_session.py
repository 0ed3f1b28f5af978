"""Use a GPU unattended for a few minutes: rehearse, train, then measure training steps in the remaining time.

python -m benchmarks.gpu_session VOCdevkit OUT --minutes 14 --preset bundled-start --pretrained backbone.pth

The rehearsal is one epoch on 256 images with evaluation and checkpoint. It reveals a missing package or a wrong option
in the first minute instead of at the first evaluation. All results are written to OUT: rehearsal/, run/, steps.md
(images per second by input size, batch and precision) and profile.txt. Options of train.py may follow.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data.loader import TrainLoader
from nets.timing import interleave
from training.choose import choose_machine, choose_new_run, choose_splits
from training.engine import Batch, Trainer
from training.options import PRESETS, TrainOptions
from training.setup import build_loader, build_model, build_trainer, freeze, open_data
from utils.config import parse_settings
from utils.errors import run_command
from utils.files import write_file
from utils.text import markdown_table

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
REHEARSAL = ("--limit", "256", "--epochs", "1", "--eval-every", "1", "--minutes", "0")
STEPS, TIMED_ROUNDS = 6, 3  # the GPU is waited for after each round of steps
LOADING_SECONDS = 6.0  # per input size
MEASURE_SECONDS = 150.0  # reserved for the measurement
STOP_SECONDS = 20.0  # for the last step and the checkpoint after SIGTERM
SETTINGS = ((128, "bf16"), (16, "bf16"), (256, "bf16"), (128, "fp16"), (128, "none"))  # (batch size, --amp)


def main(argv: list[str] | None = None) -> int:
    """Rehearse, train and measure."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 256, 320], help="input sizes to measure")
    arguments, others = parser.parse_known_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = started + 60 * arguments.minutes
    common = ["--data", arguments.data, "--workers", str(arguments.workers), "--cache", "ram", *others]
    if train([*common, *REHEARSAL], arguments.out / "rehearsal", ends):
        print("the rehearsal failed; training was not started", flush=True)
        return 1
    code = train(common, arguments.out / "run", ends - MEASURE_SECONDS)
    rows: list[tuple[object, ...]] = []
    for row in measure(common, arguments.sizes, arguments.out, ends):
        rows.append(row)
        table = markdown_table(("input", "batch", "precision", "images/s", "ms per step", "GiB", "loss"), rows)
        print(table.splitlines()[-1], flush=True)
        write_file(arguments.out / "steps.md", (table + "\n").encode())
    return code


def train(options: list[str], run_dir: Path, ends: float) -> int:
    """Run train.py until it ends. At `ends` (time.monotonic) it gets SIGTERM and saves last.pth.

    Returns 0 if a checkpoint exists, otherwise the exit code.
    """
    if ends - time.monotonic() < STOP_SECONDS:
        print(f"{run_dir}: no time left", flush=True)
        return 1
    process = subprocess.Popen([sys.executable, str(TRAIN), *options, "--run-dir", str(run_dir)])
    try:
        process.wait(ends - time.monotonic() - STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    print(f"{run_dir}: train.py ended with exit code {process.returncode}", flush=True)
    return process.returncode if not (run_dir / "last.pth").exists() else 0


def measure(common: list[str], sizes: list[int], out: Path, ends: float) -> Iterator[tuple[object, ...]]:
    """Rows of the table: the loader alone at each size, then steps at each size and setting."""
    batches: dict[int, Batch] = {}
    loader = prepare([*common, "--batch-size", "128"])[0]
    for epoch, size in enumerate(sizes):
        speed, batches[size] = loading_speed(loader, epoch, size)
        yield size, 128, "loading alone", f"{speed:.0f}", "", "", ""
    loader.close()
    for batch, amp in SETTINGS:
        if time.monotonic() > ends:
            return
        try:
            _, trainer = prepare([*common, "--batch-size", str(batch), "--amp", amp, "--workers", "0"])
            for size in sizes if batch == 128 else sizes[-1:]:
                yield step_row(trainer, resized(batches[size], batch), size, amp)
            if (batch, amp) == SETTINGS[0]:
                _profile(trainer, batches[sizes[-1]], out / "profile.txt")
        except Exception as error:  # noqa: BLE001 -- out of memory or unsupported precision; the next may work
            traceback.print_exc()
            yield "", batch, amp, type(error).__name__, "", "", ""


def prepare(command: list[str]) -> tuple[TrainLoader, Trainer]:
    """The loader and trainer of a run with these options."""
    settings = choose_splits(parse_settings(TrainOptions, command, description="", presets=PRESETS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_index, _, _ = open_data(settings.options)
    settings, start = choose_new_run(choose_machine(settings, device), train_index)
    options = settings.options
    batch_size = options.duration.batch_size
    torch.manual_seed(options.run.seed)
    model = build_model(options, start, train_index).to(device).to(memory_format=torch.channels_last)
    loader = build_loader(options, model.config, batch_size, train_index, None)
    trainer = build_trainer(options, model, None, batch_size, len(loader), train_index)
    freeze(trainer, model.backbone, options, options.start.freeze_epochs)
    trainer.set_train_mode()
    return loader, trainer


def loading_speed(loader: TrainLoader, epoch: int, size: int) -> tuple[float, Batch]:
    """Images per second of the loader alone after its first batch, and that batch."""
    loader.set_epoch(epoch, True, 0, sizes=[(size, size)])
    first, count, started = None, 0, 0.0
    for images, targets in loader:
        if first is None:
            first, started = (images, targets), time.perf_counter()
            continue
        count += len(images)
        if time.perf_counter() - started > LOADING_SECONDS:
            break
    assert first is not None
    return count / (time.perf_counter() - started), first


def resized(batch: Batch, count: int) -> Batch:
    """A batch of `count` images: the first ones of `batch`, repeated if there are too few."""
    images, targets = batch
    copies = -(-count // len(images))
    owner = torch.cat([targets["image_index"] + i * len(images) for i in range(copies)])
    keep = owner < count
    columns = {name: torch.cat([targets[name]] * copies)[keep] for name in ("boxes", "labels", "weights")}
    ids = (targets["image_ids"] * copies)[:count]
    several = torch.cat([images] * copies)[:count].contiguous(memory_format=torch.channels_last)
    return several, {**columns, "image_index": owner[keep], "image_ids": ids, "num_images": count}


def step_row(trainer: Trainer, batch: Batch, size: int, amp: str) -> tuple[object, ...]:
    """One row of the table: the time of a training step on a batch in memory."""
    calls = {"steps": lambda: _steps(trainer, batch, STEPS)}
    seconds = interleave(calls, TIMED_ROUNDS, warm_up=1)["steps"].median / STEPS
    losses = _steps(trainer, batch, 1)
    memory = torch.cuda.max_memory_allocated() / 2**30 if trainer.device.type == "cuda" else 0.0
    count = len(batch[0])
    figures = f"{count / seconds:.0f}", f"{seconds * 1e3:.1f}", f"{memory:.2f}", f"{sum(losses.values()):.3f}"
    return size, count, amp, *figures


def _steps(trainer: Trainer, batch: Batch, count: int) -> dict[str, float]:
    losses: dict[str, float] = {}
    for _ in itertools.repeat(None, count):
        losses = trainer.gradient([batch])[0]
        trainer.update()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return losses


def _profile(trainer: Trainer, batch: Batch, path: Path) -> None:
    with torch.profiler.profile() as profile:
        _steps(trainer, batch, 3)
    tables: list[Any] = [
        profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
        for device in ("cpu", *(["cuda"] if trainer.device.type == "cuda" else []))
    ]
    write_file(path, "\n\n".join(tables).encode())


if __name__ == "__main__":
    run_command(main)
