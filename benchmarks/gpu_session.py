"""Use a GPU that is lent for minutes: measure training steps, then train until the time is up, unattended.

python -m benchmarks.gpu_session VOCdevkit OUT --minutes 14 --preset bundled-small --pretrained backbone.pth

Everything goes to OUT: steps.md and steps.json (images a second by batch, precision and --fast), losses of the
precisions after the same steps, profile.txt, and the run, whose last.pth is copied to OUT every two minutes. Options of
train.py may follow. It ends by itself before the time does, and each part that fails leaves the rest to go on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from training.budget import TIMED_STEPS
from training.choose import choose_machine, choose_new_run, choose_splits
from training.engine import Trainer
from training.options import PRESETS, TrainOptions
from training.setup import build_loader, build_model, build_trainer, freeze, open_data
from utils.config import parse_settings
from utils.errors import run_command
from utils.files import write_file

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
WARM_UP_STEPS = 3
COMPARED_STEPS = 30  # after which the losses of the precisions are compared
COPY_EVERY = 120.0  # seconds between copies of last.pth
MEASURE_SHARE = 0.3  # of the time, at most, for measuring
STOP_SECONDS = 45.0  # before the end: a step, a checkpoint and an evaluation


def main(argv: list[str] | None = None) -> int:
    """Measure, then train."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--workers", type=int, default=8)
    arguments, others = parser.parse_known_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = started + 60 * arguments.minutes
    common = ["--data", arguments.data, "--workers", str(arguments.workers), "--cache", "ram", *others]
    rows: list[dict[str, Any]] = []
    settings = itertools.product(arguments.batches, ("none", "fp16", "bf16"), (False, True))
    for batch, amp, fast in settings:
        if time.monotonic() > started + MEASURE_SHARE * (ends - started):
            print("the time for measuring is used; the rest is not measured", flush=True)
            break
        options = [*common, "--batch-size", str(batch), "--amp", amp, *(["--fast"] if fast else [])]
        row: dict[str, Any] = {"batch": batch, "amp": amp, "fast": fast}
        try:
            row |= measure(options, arguments.out if not rows else None)
        except Exception as error:  # out of memory, a precision that the device lacks: the next may work
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            traceback.print_exc()
        rows.append(row)
        write_file(arguments.out / "steps.json", json.dumps(rows, indent=1).encode())
        write_file(arguments.out / "steps.md", markdown_table(rows).encode())
        print(row, flush=True)
    return train_until(ends, common, arguments.out)


def measure(command: list[str], profile_folder: Path | None) -> dict[str, Any]:
    """Images a second with and without loading, peak memory, and the loss after COMPARED_STEPS steps."""
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
    model.train()
    for module in trainer.frozen:
        module.eval()
    loader.set_epoch(0, options.augment.mosaic > 0, 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    losses = _steps(trainer, batches, WARM_UP_STEPS)
    begun = time.perf_counter()
    losses = _steps(trainer, batches, max(COMPARED_STEPS - WARM_UP_STEPS - TIMED_STEPS, 1))
    loaded = (time.perf_counter() - begun) / max(COMPARED_STEPS - WARM_UP_STEPS - TIMED_STEPS, 1)
    batch = next(batches)
    begun = time.perf_counter()
    _steps(trainer, itertools.repeat(batch), TIMED_STEPS)
    alone = (time.perf_counter() - begun) / TIMED_STEPS
    if profile_folder is not None:
        _profile(trainer, batch, profile_folder / "profile.txt")
    loader.close()
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {
        "images_a_second": round(batch_size / loaded, 1),
        "without_loading": round(batch_size / alone, 1),
        "loss": {name: round(value, 4) for name, value in losses.items()},
        "memory_gib": round(memory, 2),
    }


def _steps(trainer: Trainer, batches: Any, count: int) -> dict[str, float]:
    losses: dict[str, float] = {}
    for _ in range(count):
        losses = trainer.gradient([next(iter(batches))])[0]
        trainer.update()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return losses


def _profile(trainer: Trainer, batch: Any, path: Path) -> None:
    with torch.profiler.profile() as profile:
        _steps(trainer, itertools.repeat(batch), 2)
    key = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    write_file(path, profile.key_averages().table(sort_by=key, row_limit=40).encode())


def train_until(ends: float, common: list[str], out: Path) -> int:
    """Train for the rest of the time; last.pth is copied to `out` as it goes, so that a cut loses little."""
    run, minutes = out / "run", (ends - time.monotonic() - STOP_SECONDS) / 60
    if minutes <= 0:
        print("no time is left to train", flush=True)
        return 1
    command = [sys.executable, str(TRAIN), *common, "--run-dir", str(run), "--minutes", f"{minutes:.2f}"]
    process = subprocess.Popen(command)
    copied = time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        if now - copied > COPY_EVERY and (run / "last.pth").exists():
            shutil.copyfile(run / "last.pth", out / "last_copy.tmp")
            os.replace(out / "last_copy.tmp", out / "last_copy.pth")
            copied = now
        if now > ends - STOP_SECONDS / 3:  # it saves last.pth and leaves
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)
    print(f"train.py ended with {process.returncode}", flush=True)
    return 0 if (run / "last.pth").exists() else 1


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """One line a setting."""
    head = ["batch", "precision", "--fast", "images/s", "images/s without loading", "loss", "GiB"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [str(row["batch"]), row["amp"], "yes" if row["fast"] else "no"]
        if "error" in row:
            cells += [row["error"], "", "", ""]
        else:
            cells += [str(row["images_a_second"]), str(row["without_loading"]), f"{sum(row['loss'].values()):.3f}"]
            cells.append(str(row["memory_gib"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
