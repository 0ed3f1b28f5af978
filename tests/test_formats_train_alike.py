"""The same data as VOC, COCO and YOLO txt gives identical training losses."""

from __future__ import annotations

from pathlib import Path

import torch

from data.loader import build_train_loader
from data.open import open_dataset
from data.tools.convert import convert_dataset
from data.tools.demo import write_demo
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4

CLASSES = ("balloon", "boat", "car", "fish", "house", "tree")  # VOC files list only those that a split shows


def first_epoch(data: Path) -> list[float]:
    """The loss of each step of the first epoch."""
    index = open_dataset(data, "train", CLASSES, use_cache=False)
    torch.manual_seed(0)
    model = YOLOv4(
        ModelConfig(index.class_names, "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    )
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-2)
    loss = YOLOLoss(model.config)
    loader = build_train_loader(index, (64, 64), batch_size=3, workers=0, seed=4)
    loader.set_epoch(0)
    totals = []
    for images, targets in loader:
        optimizer.zero_grad()
        total = torch.stack(list(loss(model(images), targets).values())).sum()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def test_the_first_epoch_is_the_same_in_every_format(tmp_path: Path) -> None:
    voc = tmp_path / "voc"
    write_demo(voc, 10, 0, (96, 128))
    losses = {"voc": first_epoch(voc)}
    for kind in ("coco", "yolo"):
        convert_dataset(voc, tmp_path / kind, kind, progress=False)
        losses[kind] = first_epoch(tmp_path / kind)
    assert len(losses["voc"]) == 3
    assert losses["coco"] == losses["voc"]
    assert losses["yolo"] == losses["voc"]
