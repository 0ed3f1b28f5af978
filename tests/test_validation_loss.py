"""The validation loss: the training loss of unaugmented validation images, plotted with the training loss."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
import torch
from data_makers import picture
from train_makers import demo_data, run_train

from data.index import DatasetIndex
from data.open import open_dataset
from evaluation.evaluator import evaluate
from imaging.image_io import read_image, write_image
from nets.detector import Detector
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.tiling import TiledDetector
from nets.yolov4 import YOLOv4
from training import budget
from training.options import TrainOptions
from training.run_folder import draw_curves
from training.validation_loss import ValidationLoss
from utils.config import parse_options

CONFIG = ModelConfig(("cat", "dog"), "mobilenet_v3_small", 0.35, neck_width=0.1, input_size=(64, 96))


def four_images(folder: Path) -> DatasetIndex:
    """Images of 120 x 160: the first without a box, the second with a crowd, the third unreadable."""
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write_image(path, picture(number, 120, 160))
    paths[2].write_bytes(b"no picture")
    boxes = [np.zeros((0, 4)), np.array([[10.0, 20, 90, 100], [0, 0, 50, 50]]), np.ones((1, 4)), [[40.0, 8, 150, 60]]]
    labels = [[], [0, 1], [0], [1]]
    crowd = [[], [False, True], [False], [False]]
    return DatasetIndex.build(
        "four", CONFIG.class_names, paths, list("abcd"), [(120, 160)] * 4, boxes, labels, crowd=crowd
    )


def options_of(*arguments: str) -> TrainOptions:
    return parse_options(TrainOptions, ["--data", "x", *arguments], description="")


def test_it_is_the_training_loss_of_the_letterboxed_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, index, options = YOLOv4(CONFIG).eval(), four_images(tmp_path), options_of("--box-weight", "2")
    losses = ValidationLoss(model, "cpu", index, options, (0.5, 1.5))
    evaluate(losses.detector, index, batch_size=2, coco=None, progress=False, after_batch=losses.add)

    expected: dict[str, float] = {}
    for positions in ((0, 1), (3,)):  # the batches, without the image that cannot be read
        images = np.stack([CONFIG.letterbox.apply(read_image(index.path(i))) for i in positions])
        own = [(n, index.offsets[i]) for n, i in enumerate(positions) if i]  # the first box of each, as there is one
        boxes = np.concatenate([CONFIG.letterbox.boxes_to_input(index.boxes[at : at + 1], 120, 160) for _, at in own])
        targets = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor([int(index.labels[at]) for _, at in own]),
            "image_index": torch.tensor([n for n, _ in own]),
        }
        with torch.no_grad():
            maps = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        for name, value in YOLOLoss(CONFIG, options.loss, class_weights=(0.5, 1.5))(maps, targets).items():
            expected[name] = expected.get(name, 0.0) + value.item() * len(positions) / 3
    assert losses.sums.images == 3
    assert losses.sums.means() == pytest.approx(expected, rel=1e-3)


def test_a_run_writes_the_validation_loss_with_the_training_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_train(tmp_path / "run", "--eval-every", "2", epochs=3)
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    for name in ("box", "objectness", "class"):
        assert rows[0][f"val_{name}"] == "" and float(rows[1][f"val_{name}"]) > 0 and float(rows[2][f"val_{name}"]) > 0
    drawn = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "plot",
        lambda *a, **k: (drawn.append((k.get("label"), k.get("linestyle"))), plot(*a, **k))[1],
    )
    draw_curves(tmp_path / "curves.png", rows)
    for name in ("box", "objectness", "class"):
        assert (f"{name}, training", None) in drawn and (f"{name}, validation", "--") in drawn


def test_with_tiles_there_is_none_and_their_time_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = four_images(tmp_path).subset(np.array([0, 1]))
    model, seconds = YOLOv4(CONFIG).eval(), [0.0]
    detect_batch = Detector.detect_batch

    def counted(self: Detector, images: list[np.ndarray], *others: object, **more: object) -> object:
        seconds[0] += len(images)  # a second for each image or tile
        return detect_batch(self, images, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "detect_batch", counted)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: seconds[0])
    whole = ValidationLoss(model, "cpu", index, options_of())
    tiled = ValidationLoss(model, "cpu", index, options_of("--tile", "80", "--tile-overlap", "0"))
    assert budget.time_scoring(whole.detector, index) == 2
    assert budget.time_scoring(tiled.detector, index) == 2 * (4 + 1)  # of 160 x 120: two by two, and the whole
    monkeypatch.undo()

    seen = []
    monkeypatch.setattr(budget, "_time_step", lambda *_: 1.0)
    monkeypatch.setattr(budget, "_time_image", lambda detector, _: seen.append(type(detector)) or 20.0)
    val = len(open_dataset(str(demo_data()), "val"))
    run_train(tmp_path / "run", "--tile", "48", "--minutes", "5", epochs=2)
    assert seen == [TiledDetector]
    said = capsys.readouterr().out
    assert f"evaluated every 11: {20 * val:.1f} s" in said
    assert "val_box" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_a_run_prints_its_estimates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_train(tmp_path / "run", epochs=2)
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("expected: ")]
    assert line.startswith("expected: 2 epochs, about ") and "with scoring, " in line and line.endswith("GB of memory")
