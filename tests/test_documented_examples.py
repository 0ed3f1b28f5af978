"""The Python examples of README and docs/PYTHON.md run without changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imaging.image_io import write_image
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from prediction.video import VideoWriter

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/PYTHON.md")
OPTIONAL = {"to_dataframe": "pandas", "to_supervision": "supervision"}  # function that a block uses -> package


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, a short video, and an untrained network with detections at threshold 0."""
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    write_image(tmp_path / "photo.jpg", image)
    with VideoWriter(tmp_path / "clip.mp4", 10.0, (90, 120)) as writer:
        for _ in range(3):
            writer.write(image)
    torch.manual_seed(0)
    config = ModelConfig(
        ("cat", "dog"), "mobilenet_v3_small", 0.25, neck_width=0.25, input_size=(64, 64), score_threshold=0.0
    )
    save_checkpoint(tmp_path / "best.pth", Checkpoint(config, YOLOv4(config).state_dict()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_python_example_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nets.detector.find_model", lambda name: folder / "best.pth")
    found = blocks(page)
    assert found
    names: dict[str, Any] = {}
    for block in found:
        package = next((package for word, package in OPTIONAL.items() if word in block), None)
        if package is not None and not _installed(package):
            continue
        exec(compile(block, page, "exec"), names)
    assert len(names["detections"]) > 0, "the examples were about something"


def _installed(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True
