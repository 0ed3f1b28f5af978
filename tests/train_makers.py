"""What the tests of training share: a tiny data set, a tiny model, and a way to compare two runs."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
import training.run
from data.tools.demo import write_demo
from nets.weights.checkpoint import load_checkpoint

TINY = [
    *("--backbone", "mobilenet_v3_small", "--alpha", "0.35", "--neck", "slim"),
    *("--neck-width", "0.1", "--input-size", "64"),
    *("--batch-size", "4", "--amp", "none", "--device", "cpu", "--no-tensorboard", "--workers", "0"),
]


@functools.cache
def demo_data() -> Path:
    """A VOCdevkit of 12 small images: 8 for training, 1 or 2 for validation. It must not be changed."""
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    return write_demo(folder, 12, 0, (64, 96)).parent


def run_train(folder: Path, *options: str, data: Path | None = None, epochs: int = 2, curves: bool = False) -> Path:
    """Train in this process, without plots, which take half of the time. Returns the folder."""
    arguments = ["--data", str(data or demo_data()), "--run-dir", str(folder), "--epochs", str(epochs)]
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(training.run, "draw_curves", lambda *_: None)
        assert train.main([*TINY, *arguments, *options]) == 0
    return folder


def resume(folder: Path, *options: str) -> Path:
    """Resume a run in this process, without plots. Returns the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.run, "draw_curves", lambda *_: None)
        assert train.main(["--resume", str(folder), *options]) == 0
    return folder


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Compare nested values for equality to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{number}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two finished runs have the same last and best weights and the same metrics.csv, byte for byte."""
    for name in ("last.pth", "best.pth"):
        left, right = load_checkpoint(one / name), load_checkpoint(other / name)
        assert_same(left.weights, right.weights, name)
        assert left.config == right.config and left.metrics == right.metrics
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
