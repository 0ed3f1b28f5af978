"""What the processes of test_distributed do: `work` for those it forks, `main` for those that torchrun starts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import predict
import train
from utils import distributed
from utils.errors import Interrupted, run_command

TINY = ["--backbone", "mobilenet_v3_small", "--alpha", "0.35", "--neck-width", "0.1", "--input-size", "64"]
PLAIN = ["--amp", "none", "--workers", "0", "--no-tensorboard", "--device", "cpu", "--seed", "3"]


def train_command(data: Path, *others: object) -> list[str]:
    """A training of the smallest network."""
    return ["--data", str(data), "--train-split", "train", "--val-split", "val", *TINY, *PLAIN, *map(str, others)]


def first_step(arguments: list[str]) -> dict[str, Any]:
    """The gradients, batch-norm averages and losses of a run's first step."""
    given = train.given_options(train.TrainOptions, arguments, description="")
    run = train.Run(train.check_options(train.TrainOptions, given), "cpu", None)
    options = run.options
    run.model.double()  # an untrained network blows float32's rounding up to a quarter of the gradient
    run.loader.set_epoch(0)
    run.trainer.model.train()
    batches = [batch for batch, _ in zip(run.loader, range(options.accumulate), strict=False)]
    losses = run.trainer.gradient(batches)
    return {
        "gradients": {name: p.grad.clone() for name, p in run.model.named_parameters()},
        "buffers": {name: b.clone() for name, b in run.model.named_buffers()},
        "loss": sum(sum(each.values()) for each in losses) / len(losses),
        "images": [name for _, targets in batches for name in targets["image_ids"]],
    }


@contextlib.contextmanager
def signal_after(step: int, rank: int) -> Iterator[None]:
    """Send this process SIGTERM after a step, if it has that rank: as a cluster may that wants a machine back."""
    before = train.Run._log_step

    def log(run: train.Run, number: int, losses: dict[str, float]) -> None:
        before(run, number, losses)
        if number == step and distributed.rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    train.Run._log_step = log
    try:
        yield
    finally:
        train.Run._log_step = before


def join(rank: int, world_size: int, port: int) -> None:
    """What torchrun sets."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})


def work(rank: int, ports: list[int], data: Path, folder: Path) -> None:
    """Four processes take a first step; then two of them do all that two processes must do as one does."""
    torch.set_num_threads(1)
    with open(folder / f"printed{rank}", "w") as printed, contextlib.redirect_stdout(printed):
        join(rank, 4, ports[0])
        distributed.start("cpu")
        found = first_step(train_command(data, "--batch-size", 2, "--sync-bn", "--run-dir", folder / "four"))
        torch.save(found, folder / f"four{rank}.pt")
        distributed.stop()
        if rank < 2:
            _two(rank, ports[1:], data, folder)


def _two(rank: int, ports: list[int], data: Path, folder: Path) -> None:
    places = iter(ports)  # each run its own, as nobody waits for the end of the run before
    join(rank, 2, next(places))
    distributed.start("cpu")
    found = first_step(train_command(data, "--batch-size", 4, "--sync-bn", "--run-dir", folder / "two"))
    torch.save(found, folder / f"two{distributed.rank()}.pt")
    parts = ["--batch-size", 2, "--accumulate", 2, "--run-dir", folder / "accumulated"]
    torch.save(first_step(train_command(data, *parts)), folder / f"accumulated{distributed.rank()}.pt")
    distributed.stop()
    both = train_command(data, "--batch-size", 4, "--sync-bn", "--epochs", 2, "--eval-every", 2)
    join(rank, 2, next(places))
    train.main([*both, "--run-dir", str(folder / "whole")])
    resumed = [*both, "--run-dir", str(folder / "resumed"), "--resume", "auto"]
    join(rank, 2, next(places))
    with signal_after(step=1, rank=1), contextlib.suppress(Interrupted):
        train.main(resumed)
        raise AssertionError("the signal to rank 1 did not end the run")
    join(rank, 2, next(places))
    train.main(resumed)
    join(rank, 2, next(places))
    predict.main(predict_command(data, folder / "whole", folder / "predicted2"))


def predict_command(data: Path, run: Path, output: Path) -> list[str]:
    """Look at a folder of pictures, write all kinds of results."""
    command = [str(data / "JPEGImages"), "--checkpoint", str(run / "best.pth"), "--output", str(output)]
    return [
        *command,
        "--device",
        "cpu",
        "--score-threshold",
        "0.02",
        "--json",
        "--save",
        "csv",
        "coco",
        "counts",
        "yolo",
        "crops",
    ]


def main(argv: list[str] | None = None) -> int:
    """train.main; rank 1 is killed in its second epoch, and fails in the third after torchrun has started all again."""
    torch.set_num_threads(1)
    before = train.Run.train_one_epoch

    def train_one_epoch(run: train.Run) -> bool:
        if distributed.rank() == 1 and run.progress.epoch == 1 and not distributed.is_restart():
            os.kill(os.getpid(), signal.SIGKILL)
        if distributed.rank() == 1 and run.progress.epoch == 2:
            raise RuntimeError("the disk is on fire")
        return before(run)

    train.Run.train_one_epoch = train_one_epoch
    return train.main(argv)


if __name__ == "__main__":
    run_command(distributed.recorded(main))
