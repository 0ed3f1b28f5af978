"""Machines with little shared memory, few open files or little memory: one-line messages and fallbacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from train_makers import demo_data

from data import image_cache, loader
from data.open import open_dataset
from data.tools.demo import write_demo
from training import choose
from training.options import TrainOptions
from utils.config import parse_settings
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


class Disk(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("free", "workers", "said"),
    [
        (1 << 30, 8, ""),
        (64 << 20, 0, "64 MB are not enough for 8 workers with batches of 18.8 MB"),  # 640 pixels in Docker's 64 MB
        (256 << 20, 3, "256 MB are not enough for 8 workers"),
    ],
)
def test_workers_fit_the_shared_memory(
    free: int,
    workers: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: Disk(free))
    assert loader.fitting_workers(8, 16, (640, 640), shm=str(tmp_path))[0] == workers
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (1 if said else 0) and all(said in line and "--shm-size" in line for line in lines)


def test_without_writable_shared_memory_there_are_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader.os, "access", lambda *_: False)  # root may write anywhere
    workers, why = loader.fitting_workers(2, 16, (64, 64), shm=str(tmp_path))
    assert workers == 0 and "is not writable" in why
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "without workers" in line
    assert loader.fitting_workers(2, 16, (64, 64), shm=str(tmp_path / "none")) == (2, "")


LOW_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import torch
from data import loader
assert loader.fitting_workers(2, 2, (64, 64)) == (2, "")
assert torch.multiprocessing.get_sharing_strategy() == "file_system"
from data.open import open_dataset
batches = loader.build_train_loader(open_dataset(sys.argv[1], "train"), (64, 64), batch_size=1, workers=2)
batches.set_epoch(0)
kept = [targets for _, targets in batches]
print(len(kept))
batches.close()
"""


def test_a_low_limit_of_open_files_is_worked_around(tmp_path: Path) -> None:
    data = write_demo(tmp_path / "data", 20, 0, (64, 96)).parent
    command = [sys.executable, "-c", LOW_LIMIT, str(data)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(open_dataset(str(data), "train"))
    (line,) = [line for line in done.stderr.splitlines() if "ulimit" in line]
    assert "64 open files" in line and "Traceback" not in done.stderr


@pytest.mark.parametrize(("limit", "workers"), [(24, 0), (64, 4), (96, 8), (512, 8)])
def test_fewer_workers_are_used_where_few_files_may_be_open(
    limit: int, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(loader.torch.multiprocessing, "set_sharing_strategy", lambda _: None)
    assert loader.fitting_workers(8, 2, (64, 64))[0] == workers
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (limit < 512) and all(f"{limit} open files" in line for line in lines)
    assert all(("raise it with ulimit -n 1024" in line) == (workers < 8) for line in lines)


def test_a_cache_that_does_not_fit_is_a_one_line_error_or_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_dataset(str(demo_data()), "train")
    monkeypatch.setattr(image_cache, "available_memory", lambda: 8 << 30)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: Disk(64 << 20))
    assert image_cache.free_memory(str(tmp_path)) == 64 << 20
    with pytest.raises(UserError, match=r"--cache: ram needs .* 0.07 GB are free; use --cache disk") as caught:
        image_cache.build_image_cache(index, (64, 64), "ram")
    assert "\n" not in str(caught.value)
    settings = parse_settings(TrainOptions, ["--data", "x", "--cache", "auto", "--workers", "0"], description="")
    monkeypatch.setattr(choose, "free_memory", lambda: 10_000)
    left_out = choose.choose_loading(settings, index)
    assert left_out.options.machine.cache == "none" and "are free" in left_out.reasons["cache"]
    monkeypatch.setattr(choose, "free_memory", lambda: 8 << 30)
    assert choose.choose_loading(settings, index).options.machine.cache == "ram"


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ((), 2),
        (("--multi-scale", "0.5"), 1),  # the largest size counts
        (("--cache", "ram"), 1),  # the cache takes its part of the shared memory
        (("--cache", "ram", "--batch-size", "32"), 0),
    ],
)
def test_workers_leave_room_for_the_largest_size_and_the_cache(
    options: tuple[str, ...], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: Disk(64 << 20))
    monkeypatch.setattr(choose, "cache_bytes", lambda *_: 40 << 20)
    command = ["--data", "x", "--cache", "none", "--workers", "2", "--input-size", "320", "--batch-size", "16"]
    settings = parse_settings(TrainOptions, [*command, *options], description="")
    chosen = choose.choose_loading(settings, open_dataset(str(demo_data()), "train"))
    assert chosen.options.machine.workers == workers
