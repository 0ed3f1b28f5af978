"""Processes of test_distributed: `several` forks them, torchrun starts `sigterm_to_torchrun` and `failing`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import eval as eval_command
import predict
import train
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
from training import options as training_options
from training import run as training_run
from training import setup
from utils import config, distributed
from utils.errors import Interrupted, run_command

TINY = ["--backbone", "mobilenet_v3_small", "--alpha", "0.35", "--neck-width", "0.1", "--input-size", "64"]
PLAIN = ["--amp", "none", "--workers", "0", "--no-tensorboard", "--device", "cpu", "--seed", "3"]
ONE_BY_ONE = ["--device", "cpu", "--batch-size", "1"]  # beside other images a score may differ in its last digit
PROCESSES = 4
PATIENCE_SECONDS, SILENCE_SECONDS = 600, 1
RUNS = ("two", "four", "accumulated", "whole", "resumed", "resumed4")  # folders that the main process alone may touch


def train_command(data: Path, *others: object) -> list[str]:
    """A training of the smallest network."""
    return ["--data", str(data), "--train-split", "train", "--val-split", "val", *TINY, *PLAIN, *map(str, others)]


def eval_arguments(data: Path, run: Path, figures: Path) -> list[str]:
    """Score the checkpoint of a run."""
    command = ["--checkpoint", str(run / "best.pth"), "--data", str(data), "--split", "val", "--json", str(figures)]
    return [*command, *ONE_BY_ONE, "--no-progress"]


def predict_command(data: Path, run: Path, output: Path) -> list[str]:
    """Predict on a folder of images and write all kinds of results."""
    command = [str(data / "JPEGImages"), "--checkpoint", str(run / "best.pth"), "--output", str(output), "--json"]
    kinds = ["csv", "coco", "counts", "yolo", "crops"]
    return [*command, *ONE_BY_ONE, "--score-threshold", "0.0001", "--max-detections", "2", "--save", *kinds]


def first_step(arguments: list[str]) -> dict[str, Any]:
    """The gradients, batch-norm averages and losses of a run's first step."""
    settings = config.parse_settings(training_options.TrainOptions, arguments, description="")
    with in_double():
        run = training_run.Run(settings, "cpu", None)
    options = run.options
    run.loader.set_epoch(0)
    run.trainer.model.train()
    batches = [batch for batch, _ in zip(run.loader, range(options.duration.accumulate), strict=False)]
    losses = run.trainer.gradient(batches)
    return {
        "gradients": {name: p.grad.clone() for name, p in run.model.named_parameters()},
        "buffers": {name: b.clone() for name, b in run.model.named_buffers()},
        "loss": sum(sum(each.values()) for each in losses) / len(losses),
        "images": [name for _, targets in batches for name in targets["image_ids"]],
    }


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Create networks in float64. In an untrained network, float32 rounding errors grow to a quarter of the gradient.

    The type is set before `DistributedDataParallel`, because a parameter whose type changes silently loses DDP's hooks.
    """
    before = setup.YOLOv4, training_run.YOLOv4

    class InDouble(YOLOv4):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.double()

    setup.YOLOv4 = training_run.YOLOv4 = InDouble  # type: ignore[misc,attr-defined]
    try:
        yield
    finally:
        setup.YOLOv4, training_run.YOLOv4 = before  # type: ignore[misc,attr-defined]


@contextlib.contextmanager
def after_step(act: Callable[[training_run.Run, int], None]) -> Iterator[None]:
    """Call a function with the step number after each training step."""
    before = training_run.Run._after_step

    def log(run: training_run.Run, number: int, losses: dict[str, float]) -> None:
        before(run, number, losses)
        act(run, number)

    training_run.Run._after_step = log
    try:
        yield
    finally:
        training_run.Run._after_step = before


# ---- forked: many starts in four processes, which meet at one store, as those of torchrun do after a restart


def several(port: int, data: Path, folder: Path) -> int:
    """Fork the processes and wait for them. Returns 1 as soon as one fails."""
    context = multiprocessing.get_context("fork")  # torch is imported already, which takes longer than all the rest
    processes = [context.Process(target=_work, args=(rank, port, data, folder)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
        time.sleep(0.1)
    for process in processes:
        process.kill()
    return 1 if any(process.exitcode for process in processes) else 0


def join(rank: int, world_size: int, port: int) -> None:
    """The environment variables of torchrun."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    others = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update({name: str(value) for name, value in place.items()} | others)


def _work(rank: int, port: int, data: Path, folder: Path) -> None:
    """Four processes run a first step, two of them train, and all resume."""
    torch.set_num_threads(1)
    with open(folder / f"printed{rank}", "w") as printed, contextlib.redirect_stdout(printed):
        if rank:
            _forbid_writing(folder)
        join(rank, 4, port)
        distributed.start("cpu")
        found = first_step(train_command(data, "--batch-size", 2, "--sync-bn", "--run-dir", folder / "four"))
        torch.save(found, folder / f"four{rank}.pt")
        distributed.stop()
        if rank < 2:
            join(rank, 2, port)
            with in_double():
                _two(data, folder)
            predict.main(predict_command(data, folder / "whole", folder / "predicted2"))
            _silence(folder)
            (folder / f"ready{rank}").touch()
        while not all((folder / f"ready{each}").exists() for each in (0, 1)):
            time.sleep(0.05)
        join(rank, 4, port)
        _four(data, folder)
        printed.write("predicting\n")
        predict.main(predict_command(data, folder / "whole", folder / "predicted4"))


def _forbid_writing(folder: Path) -> None:
    """Fail if this process opens for writing, creates or renames a file in the folder of a run."""
    places = tuple(f"{folder / name}/" for name in RUNS)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        writes = writes or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        if writes and f"{arguments[0]}/".startswith(places):
            raise AssertionError(f"rank {os.environ['RANK']} writes: {event} {arguments}")

    sys.addaudithook(watch)


def _two(data: Path, folder: Path) -> None:
    distributed.start("cpu")
    rank = distributed.rank()
    found = first_step(train_command(data, "--batch-size", 4, "--sync-bn", "--run-dir", folder / "two"))
    torch.save(found, folder / f"two{rank}.pt")
    parts = ["--batch-size", 2, "--accumulate", 2, "--run-dir", folder / "accumulated"]
    torch.save(first_step(train_command(data, *parts)), folder / f"accumulated{rank}.pt")
    distributed.stop()
    both = train_command(data, "--batch-size", 4, "--sync-bn", "--epochs", 2, "--eval-every", 2)
    train.main([*both, "--run-dir", str(folder / "whole")])
    resumed = [*both, "--run-dir", str(folder / "resumed"), "--resume", "auto"]

    def leave(_run: training_run.Run, step: int) -> None:  # as a cluster may tell it that wants one machine back
        if step == 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with after_step(leave), contextlib.suppress(Interrupted):
        train.main(resumed)
        raise AssertionError("the signal to rank 1 did not end the run")
    if rank == 0:
        shutil.copytree(folder / "resumed", folder / "resumed4")
    train.main(resumed)


def _silence(folder: Path) -> None:
    """Rank 1 runs without responding, and rank 0 stops waiting for it."""
    distributed.start("cpu", timeout_seconds=PATIENCE_SECONDS)
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    assert backend.options._timeout == timedelta(seconds=PATIENCE_SECONDS)
    distributed.barrier()
    backend._set_default_timeout(timedelta(seconds=SILENCE_SECONDS))  # now that both are there, however long that took
    if distributed.rank() == 0:
        try:
            distributed.barrier()
        except RuntimeError as error:
            assert distributed.is_lost(error), error
        else:
            raise AssertionError("it came")
        (folder / "gave_up").touch()
    while not (folder / "gave_up").exists():
        time.sleep(0.05)
    distributed.stop()


def _four(data: Path, folder: Path) -> None:
    eval_command.main(eval_arguments(data, folder / "whole", folder / "figures4.json"))
    both = train_command(data, "--batch-size", 4, "--sync-bn", "--epochs", 2, "--eval-every", 2)
    with in_double():
        train.main([*both, "--run-dir", str(folder / "resumed4"), "--resume", "auto"])


# ---- started by torchrun


def sigterm_to_torchrun(argv: list[str]) -> int:
    """train.main; torchrun receives SIGTERM after the first step, as on a cluster.

    Rank 1 waits until torchrun has forwarded the signal, which may take longer than an epoch on a busy machine.
    """

    def leave(run: training_run.Run, step: int) -> None:
        if step == 1 and distributed.rank() == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            until = time.monotonic() + PATIENCE_SECONDS
            while run.signals.signum is None and time.monotonic() < until:
                time.sleep(0.01)

    with after_step(leave):
        return train.main(argv)


def failing(argv: list[str]) -> int:
    """train.main; rank 1 is killed in its second epoch, and fails in the third after the restart by torchrun."""
    place = Path(argv[argv.index("--run-dir") + 1]).with_name("failed_at")

    def fail(run: training_run.Run, step: int) -> None:
        if distributed.rank() == 1 and run.progress.epoch == 1 and not distributed.is_restart():
            os.kill(os.getpid(), signal.SIGKILL)
        if distributed.rank() == 1 and run.progress.epoch == 2:
            place.write_text(str(time.time()))
            raise RuntimeError("the disk is on fire")

    with after_step(fail):
        return train.main(argv)


def main(argv: list[str] | None = None) -> int:
    """`several PORT DATA FOLDER`, or the name of one of torchrun's and a training's options."""
    torch.set_num_threads(1)
    name, *rest = argv or sys.argv[1:]
    if name == "several":
        return several(int(rest[0]), Path(rest[1]), Path(rest[2]))
    return {"sigterm_to_torchrun": sigterm_to_torchrun, "failing": failing}[name](rest)


if __name__ == "__main__":
    run_command(distributed.recorded(main))
