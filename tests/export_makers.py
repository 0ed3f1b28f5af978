"""A small network that finds something in every picture, and its exports, each made once for all tests."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import random_network
from nets.export.check import export_and_check
from nets.export.form import Form
from nets.export.formats import FORMATS
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4

CONFIG = ModelConfig(
    class_names=("bird", "boat", "cow"),
    backbone="mobilenet_v1",
    alpha=0.25,
    neck_width=0.1,
    padding="tf_same",
    input_size=(64, 96),
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.25, 0.2),
    score_threshold=0.3,
)


@functools.cache
def small_model(config: ModelConfig = CONFIG) -> YOLOv4:
    """Random weights whose outputs depend on the image: spread logits, high objectness everywhere."""
    return random_network(config, 0.4)


@functools.cache
def folder() -> Path:
    """The folder of the exports until the process ends."""
    _keep.append(tempfile.TemporaryDirectory(prefix="exports-"))
    return Path(_keep[-1].name)


_keep: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def checkpoint() -> Path:
    """`small_model` as a checkpoint."""
    path = folder() / "model.pth"
    save_checkpoint(path, Checkpoint(CONFIG, small_model().state_dict()))
    return path


@functools.cache
def exported(kind: str, form: Form) -> Path:
    """`small_model` in a format and form. The test is skipped if a required package is not installed."""
    for package in (*FORMATS[kind].packages, *FORMATS[kind].export_packages):
        pytest.importorskip(package)
    name = "".join(str(int(v)) if isinstance(v, bool) else v for v in vars(form).values())
    path = folder() / f"{name}{FORMATS[kind].suffix}"
    FORMATS[kind].export(small_model(), path, form, {"from": "a test"})
    return path


def export_once(model: YOLOv4, path: Path, kind: str, form: Form, photos: Sequence[np.ndarray]) -> None:
    """Like `nets.export.check.export_and_check`, but the same model, format and form are exported once a process."""
    digest = hashlib.sha256(repr((model.config, kind, form)).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    first = folder() / f"{digest.hexdigest()[:16]}{FORMATS[kind].suffix}"
    if not first.exists():
        export_and_check(model, first, kind, form, photos)
    for source, target in zip(FORMATS[kind].files(first), FORMATS[kind].files(path), strict=True):
        shutil.copyfile(source, target)


def pictures(count: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: smooth noise."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in coarse])
