"""benchmarks.gpu_session: rehearsal, batches of a given size, and runs without remaining time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_session
from benchmarks.gpu_session import main, resized, train


def batch_of(count: int) -> gpu_session.Batch:
    """`count` images, image i with i boxes."""
    owner = torch.repeat_interleave(torch.arange(count), torch.arange(count))
    targets = {"boxes": torch.rand(len(owner), 4), "labels": owner, "weights": torch.ones(len(owner))}
    return torch.rand(count, 3, 4, 4), {**targets, "image_index": owner, "image_ids": list(range(count))}


def test_a_smaller_batch_is_the_first_images_with_their_boxes() -> None:
    images, targets = resized(batch_of(5), 3)
    assert len(images) == 3 and targets["image_index"].tolist() == [1, 2, 2]
    assert targets["labels"].tolist() == [1, 2, 2] and targets["image_ids"] == [0, 1, 2]


def test_a_larger_batch_repeats_all_images() -> None:
    images, targets = resized(batch_of(3), 7)
    assert len(images) == 7
    assert targets["image_index"].tolist() == [1, 2, 2, 4, 5, 5]  # image 6 is a copy of image 0, which has no box


def test_nothing_is_started_when_no_time_is_left(tmp_path: Path) -> None:
    assert train(["--data", "nowhere"], tmp_path / "run", time.monotonic() + 10) == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_rehearsal_ends_the_session(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out"), "--minutes", "3"]) == 1
    assert "the rehearsal failed" in capfd.readouterr().out
    assert not (tmp_path / "out" / "run").exists()
