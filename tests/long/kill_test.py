"""Kill a training at random points, resume it, and compare the result with an uninterrupted run.

    python -m tests.long.kill_test              kill -9 100 times, at least a third of them during a write
    python -m tests.long.kill_test --how term   SIGTERM (int: Ctrl-C) at random times, and the time until the exit
    python -m tests.long.kill_test --how disk   full disk at a random write

Trainings are forked from one process that has imported all modules, so that a hundred trainings take minutes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads would not survive the fork

import cv2
import matplotlib
import torch

import train
import utils.files
from data.tools.demo import write_demo
from nets.weights.checkpoint import load_checkpoint
from training import run as training_run
from utils.config import option, parse_options
from utils.errors import UserError, run_command

matplotlib.use("Agg")
import matplotlib.pyplot
import pycocotools.cocoeval  # noqa: F401 -- imported once, before the forks

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
STAGES = ("half written", "before fsync", "before rename", "after rename")
Strike = Callable[[int, str], None]
LEAVE_SECONDS = 5.0  # wall-clock time, or CPU time if the machine is busy
GIVE_UP_SECONDS = 600.0
IMAGES, SIDES = 12, (64, 96)
# small enough that a hundred of them are quick, and with everything in it that has a state
RECIPE = {
    "backbone": "mobilenet_v3_small",
    "alpha": 0.35,
    "neck_width": 0.1,
    "input_size": 64,
    "batch_size": 4,
    "mosaic": 0.5,
    "mixup": 0.5,
    "multi_scale": 0.5,
    "amp": "none",
    "device": "cpu",
    "threads": 1,
    "tensorboard": False,
}


@dataclass(frozen=True)
class KillOptions:
    """Options of the kill test."""

    times: int = option(100, "number of trainings to kill", low=1, high=100_000)
    how: tuple[str, ...] = option(
        ("kill",), "kill -9, SIGTERM, Ctrl-C, or a full disk, used in turn", nargs="+", choices=(*SIGNALS, "disk")
    )
    in_write: float = option(0.4, "fraction of kills during a write", low=0, high=1)
    epochs: int = option(3, "epochs of each training", low=1, high=100)
    workers: tuple[int, ...] = option((0, 0, 0, 2), "loader processes, used in turn", low=0, high=16)
    seed: int = option(0, "seed of the random points", low=0)
    folder: str | None = option(None, "working folder (default: a temporary folder)")


@dataclass
class Tally:
    """Result of the kill test."""

    points: Counter[str] = field(default_factory=Counter)
    in_write: int = 0
    checkpoints: int = 0
    unreadable: list[str] = field(default_factory=list)
    identical: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)  # wall-clock and CPU time until the exit


def main(argv: list[str] | None = None) -> int:
    """Kill, resume and compare. Returns 0 if every run equals the uninterrupted one."""
    options = parse_options(KillOptions, argv, description=__doc__ or "")
    if not hasattr(os, "fork"):
        raise UserError("kill_test", "needs a system that forks", "run it on Linux or macOS")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="kill_test-")))
        tally = KillTest(options, folder).run()
    for line in describe(options, tally):
        print(line)
    return 1 if tally.unreadable or tally.faults or tally.identical < options.times else 0


class KillTest:
    """The trainings of one invocation, in one folder."""

    def __init__(self, options: KillOptions, folder: Path) -> None:
        self.options, self.folder, self.rng = options, folder, random.Random(options.seed)
        self.data = write_demo(folder / "data", IMAGES, 0, SIDES).parent
        self.tally = Tally()

    def run(self) -> Tally:
        """Run all rounds."""
        started = time.perf_counter()
        code = _wait(_fork(self._arguments("whole", 0), self.folder / "whole"))
        self.seconds = time.perf_counter() - started
        if code != 0:
            raise UserError(
                "kill_test", f"the uninterrupted run ended with exit code {code}", _log(self.folder / "whole")
            )
        self.expected = _read_proof(self.folder / "whole")
        print(f"uninterrupted run: {self.seconds:.1f} s, {self.expected['writes']} writes", flush=True)
        for number in range(self.options.times):
            how, workers = self.options.how, self.options.workers
            self._one(f"run{number}", how[number % len(how)], workers[number % len(workers)])
            if (number + 1) % 10 == 0:
                print(f"{number + 1}: {self.tally.identical} identical, {len(self.tally.faults)} faults", flush=True)
        return self.tally

    def _arguments(self, name: str, workers: int) -> list[str]:
        values = {"data": self.data, "run_dir": self.folder / name, "workers": workers, "epochs": self.options.epochs}
        recipe = self.folder / "recipe.json"
        recipe.write_text(json.dumps(RECIPE))
        typed = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return ["--config", str(recipe), *typed]

    def _one(self, name: str, how: str, workers: int) -> None:
        run, tally = self.folder / name, self.tally
        while True:
            point, code = self._break_off(name, how, workers)
            if not (run / "proof.json").exists():
                break
            _remove(run)  # it was quicker than the signal
        tally.points[point] += 1
        tally.in_write += point in STAGES or any(run.glob(".*.tmp"))
        self._check_exit(name, how, code)
        for path in sorted(run.glob("*.pth")):
            tally.checkpoints += 1
            try:
                load_checkpoint(path)
            except UserError as error:
                tally.unreadable.append(str(error))
        arguments = ["--resume", str(run)] if (run / "config.json").exists() else self._arguments(name, workers)
        code = _wait(_fork(arguments, run))
        if code != 0:
            self._fault(f"{name}, {point}: resuming ended with {code}: {_log(run)}")
            return
        found = _read_proof(run)
        differing = [key for key in found if key != "writes" and found[key] != self.expected[key]]
        if differing:
            self._fault(f"{name}, {point}: another {', '.join(differing)}")
            return
        tally.identical += 1
        _remove(run)

    def _break_off(self, name: str, how: str, workers: int) -> tuple[str, int]:
        """Start a training and kill it. Returns the position of the kill and the exit code."""
        run = self.folder / name
        number = self.rng.randrange(self.expected["writes"])
        stage = self.rng.choice(STAGES)
        if how == "disk":
            return "full disk", _wait(_fork(self._arguments(name, workers), run, _full_disk(number)))
        if how == "kill" and self.rng.random() < self.options.in_write:
            return stage, _wait(_fork(self._arguments(name, workers), run, _death(number, stage)))
        child = _fork(self._arguments(name, workers), run)
        time.sleep(self.rng.uniform(0.05, self.seconds))
        before, used = time.perf_counter(), _processor_seconds(child)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, SIGNALS[how])
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = _wait(child)
        if how != "kill" and code:
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            of_child = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
            self.tally.seconds.append((time.perf_counter() - before, of_child - used))
        return "random moment", code

    def _check_exit(self, name: str, how: str, code: int) -> None:
        expected = {"kill": {-signal.SIGKILL}, "term": {143}, "int": {130}, "disk": {1}}[how]
        if code not in expected:
            self._fault(f"{name}: exit code {code}: {_log(self.folder / name)}")
        if self.tally.seconds and min(self.tally.seconds[-1]) > LEAVE_SECONDS:
            self._fault(f"{name}: took {self.tally.seconds[-1][0]:.1f} s to exit")

    def _fault(self, text: str) -> None:
        self.tally.faults.append(text)
        print(f"fault: {text}", flush=True)


def describe(options: KillOptions, tally: Tally) -> list[str]:
    """The result as text."""
    points = ", ".join(f"{count} {point}" for point, count in sorted(tally.points.items()))
    lines = [
        f"interrupted: {options.times} ({points}); {tally.in_write} during a write",
        f"checkpoints found: {tally.checkpoints}, unreadable: {len(tally.unreadable)}",
        f"resumed and bit-identical (weights, average, optimiser, random states, metrics.csv): {tally.identical}",
    ]
    if tally.seconds:
        for what, seconds in zip(("s", "s of CPU time"), zip(*tally.seconds, strict=True), strict=True):
            lines.append(
                f"time until the exit: at most {max(seconds):.2f} {what}, median {statistics.median(seconds):.2f}"
            )
    return lines + tally.unreadable + tally.faults


# ---- in the child


def _fork(arguments: list[str], run: Path, strike: Strike = lambda number, stage: None) -> int:
    """Start train.py with `arguments` in a separate process. Its output is written to RUN.log.

    The process calls `strike(number of the write, stage)` at each stage of each write.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _leave_proof(_watch_writes(strike))
        run_command(train.main, arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


MEASURED = ("seconds", "speeds")  # of a run's progress: wall-clock times, which differ from run to run


def _leave_proof(writes: list[int]) -> None:
    """Make a training write digests of its complete state when it ends.

    Its curves are replaced by a placeholder, because plotting takes half of the time.
    """
    training_run.draw_curves = lambda path, history: utils.files.write_atomically(path, b"curves" * 1000)
    original = training_run.Run.train

    def proven(run: training_run.Run) -> int:
        code = original(run)
        state = run.state.state_dict()
        state["progress"] = {k: v for k, v in state["progress"].items() if k not in MEASURED}
        proof = {name: _digest(state[name]) for name in ("model", "optimizer", "random", "progress")}
        proof["average"] = _digest(run._scored_model().state_dict())
        proof |= _proof_of_files(run.folder)
        (run.folder / "proof.json").write_text(json.dumps(proof | {"writes": writes[0]}))
        return code

    training_run.Run.train = proven  # type: ignore[method-assign]


def _death(number: int, stage: str) -> Strike:
    def strike(now: int, at: str) -> None:
        if now == number and at == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def _full_disk(number: int) -> Strike:
    def strike(now: int, at: str) -> None:
        if now >= number and at == "half written":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return strike


def _watch_writes(strike: Strike) -> list[int]:
    """Call `strike(number of the write, stage)` at each stage of each write; returns a list that holds their count."""
    count = [0]
    files: Any = utils.files

    class Watched:
        """A file that writes in two halves."""

        def __init__(self, path: Any, mode: str) -> None:
            self.file = open(path, mode)  # noqa: SIM115 -- closed by __exit__

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            strike(count[0], "half written")
            self.file.write(data[len(data) // 2 :])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def fsync(descriptor: int) -> None:
        strike(count[0], "before fsync")
        os.fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        strike(count[0], "before rename")
        os.replace(source, target)
        strike(count[0], "after rename")
        count[0] += 1

    original = files.write_atomically

    def write_atomically(path: Any, data: bytes) -> None:
        files.open, files.os = Watched, types.SimpleNamespace(**{**vars(os), "fsync": fsync, "replace": replace})
        try:
            original(path, data)
        finally:
            files.os = os
            del files.open

    for module in (utils.files, sys.modules["nets.weights.checkpoint"], sys.modules["training.run_folder"]):
        module.write_atomically = write_atomically  # type: ignore[attr-defined]
    return count


def _digest(value: Any) -> str:
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(str(part.dtype).encode() + part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                digest.update(repr(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


# ---- in the parent


def _wait(child: int) -> int:
    """The child's exit code, negative for a signal."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _processor_seconds(child: int) -> float:
    """CPU time of a process without its children; 0 if the system does not report it."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _read_proof(run: Path) -> dict[str, Any]:
    """The results of the training, read from its files if it was killed after its end and nothing was resumed."""
    if (run / "proof.json").exists():
        return json.loads((run / "proof.json").read_text())
    return {"average": _digest(load_checkpoint(run / "last.pth").weights), **_proof_of_files(run)}


def _proof_of_files(run: Path) -> dict[str, str]:
    return {
        "best": _digest(load_checkpoint(run / "best.pth").weights),
        "metrics.csv": hashlib.sha256((run / "metrics.csv").read_bytes()).hexdigest(),
    }


def _log(run: Path) -> str:
    lines = Path(f"{run}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _remove(run: Path) -> None:
    for path in [*run.iterdir()] if run.is_dir() else []:
        path.unlink()
    if run.is_dir():
        run.rmdir()


if __name__ == "__main__":
    run_command(main)
