"""train.py: training, printed messages, and a run folder that the other commands accept."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_makers import voc_xml_text
from train_makers import assert_same, assert_same_run, demo_data, run_train

import eval as eval_command
import train
from data.loader import multi_scale_sizes
from imaging.image_io import write_image
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.weights.checkpoint import load_checkpoint
from nets.yolov4 import YOLOv4
from training import options as training_options
from training import run as training_run
from training.engine import Trainer
from training.optim import ModelEMA, build_optimizer, lr_factor, parameter_groups, scaled_lr
from utils.config import Settings, check_options
from utils.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    return run_train(tmp_path_factory.mktemp("runs") / "whole", curves=True)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- learning


def test_a_few_steps_on_two_images_lower_the_loss() -> None:
    torch.manual_seed(0)
    config = ModelConfig(("disc", "bar"), "mobilenet_v3_small", alpha=0.35, neck_width=0.25, input_size=(96, 96))
    model = YOLOv4(config).train()
    images = torch.full((2, 3, 96, 96), 60, dtype=torch.uint8)
    boxes = torch.tensor([[16.0, 16.0, 56.0, 56.0], [8.0, 60.0, 88.0, 84.0]])
    for i, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        images[i, i, y1:y2, x1:x2] = 240
    targets = {"boxes": boxes, "labels": torch.tensor([0, 1]), "image_index": torch.tensor([0, 1])}
    groups = parameter_groups(model, 2e-2, 0.0, 1.0)
    for group in groups:
        group["base_rate"] = group["lr"]
    optimizer = build_optimizer("adamw", groups, 0.9)
    trainer = Trainer(model, YOLOLoss(config), optimizer, lambda step: 1.0, torch.device("cpu"))
    totals = []
    for _ in range(20):
        totals.append(sum(trainer.gradient([(images, targets)])[0].values()))
        trainer.update()
    assert totals[-1] < 0.7 * totals[0]
    assert trainer.step == 20


def test_two_accumulated_halves_are_nearly_one_batch_with_frozen_batch_norm() -> None:
    torch.manual_seed(0)
    config = ModelConfig(("a", "b"), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    images = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    targets: dict[str, Any] = {
        "boxes": box.repeat(4, 1),
        "labels": torch.tensor([0, 1, 0, 1]),
        "image_index": torch.arange(4),
        "image_ids": ["w", "x", "y", "z"],
    }
    gradients = []
    for parts in (1, 2):
        torch.manual_seed(1)
        model = YOLOv4(config).eval()
        optimizer = torch.optim.SGD([{"params": model.parameters(), "base_rate": 0.1}], lr=0.1)
        trainer = Trainer(model, YOLOLoss(config), optimizer, lambda step: 1.0, torch.device("cpu"), parts=parts)
        trainer.gradient([(images, targets)])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5)


def test_the_losses_are_written_by_epoch_and_nothing_of_the_clock(whole: Path) -> None:
    rows = read_rows(whole)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite([float(value) for value in row.values() if value]).all() for row in rows)
    for name in ("learning_rate", "train_box", "train_objectness", "train_class", "voc07_mAP50", "coco_AP"):
        assert name in rows[0]
    assert not any("time" in name or "second" in name for name in rows[0])


def test_a_run_leaves_its_options_its_images_and_two_checkpoints(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    wanted = {
        "config.json",
        "metrics.csv",
        "curves.png",
        "last.pth",
        "best.pth",
        "train_batch0.jpg",
        "val_detections.jpg",
    }
    assert wanted <= names and not any(name.endswith(".tmp") for name in names)
    assert json.loads((whole / "config.json").read_text())["batch_size"] == 4
    last = load_checkpoint(whole / "last.pth")
    assert last.training is None and last.info["epoch"] == 2
    assert (
        "torch" in last.info["versions"]
        and last.config.class_names == load_checkpoint(whole / "best.pth").config.class_names
    )


def make_plain_pictures(root: Path, copies: int = 4) -> Path:
    """A VOCdevkit of two simple images, several copies each, used for training and validation."""
    year = root / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    objects = {"a": ("disc", 17, 17, 56, 56), "b": ("bar", 9, 61, 88, 84)}
    names = [f"{letter}{number}" for letter in objects for number in range(copies)]
    for name in names:
        label, x1, y1, x2, y2 = objects[name[0]]
        image = np.full((96, 96, 3), 60 + 5 * int(name[1:]), np.uint8)
        image[y1 - 1 : y2, x1 - 1 : x2, "ab".index(name[0])] = 240
        write_image(year / "JPEGImages" / f"{name}.jpg", image)
        (year / "Annotations" / f"{name}.xml").write_text(voc_xml_text(name, [(label, x1, y1, x2, y2)], 96, 96))
    for split in ("train", "val"):
        (year / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def test_a_training_detects_its_objects_and_eval_gives_the_same_score(tmp_path: Path) -> None:
    data = make_plain_pictures(tmp_path / "data")
    plain = ["--mosaic", "0", "--flip", "0", "--scale", "1", "1", "--translate", "0", "--aspect", "0", "--no-ema"]
    model = [
        "--input-size",
        "96",
        "--neck-width",
        "0.25",
        "--learning-rate",
        "0.02",
        "--eval-every",
        "10",
        "--batch-size",
        "2",
    ]
    run = run_train(tmp_path / "run", *plain, *model, data=data, epochs=10)
    best = load_checkpoint(run / "best.pth")
    assert best.metrics["voc10_mAP50"] > 0
    report = tmp_path / "figures.json"
    arguments = ["--checkpoint", str(run / "best.pth"), "--data", str(data), "--split", "val", "--device", "cpu"]
    assert not eval_command.main([*arguments, "--json", str(report), "--batch-size", "4"])
    figures = json.loads(report.read_text())
    for name in ("voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50"):
        assert figures[name] == best.metrics[name], name


def test_the_same_seed_is_the_same_run_with_any_number_of_workers(whole: Path, tmp_path: Path) -> None:
    assert_same_run(run_train(tmp_path / "two", "--workers", "2"), whole)


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    run_train(tmp_path / "other", "--seed", "1", epochs=1)
    assert read_rows(tmp_path / "other")[0]["train_box"] != read_rows(whole)[0]["train_box"]


def test_a_batch_larger_than_the_data_trains(tmp_path: Path) -> None:
    run_train(tmp_path / "run", "--batch-size", "16", "--accumulate", "2", epochs=1)
    assert read_rows(tmp_path / "run")[0]["step"] == "1"


def test_frozen_layers_stay_as_they_were(tmp_path: Path, whole: Path) -> None:
    start = load_checkpoint(whole / "last.pth").weights
    options = ("--weights", str(whole / "last.pth"), "--freeze-layers", "3", "--no-ema")
    end = load_checkpoint(run_train(tmp_path / "run", *options, epochs=1) / "last.pth").weights
    frozen = [n for n in start if n.startswith(tuple(f"backbone.features.{i}." for i in range(3))) and "num_" not in n]
    assert frozen
    for name in frozen:
        assert torch.equal(start[name], end[name]), name
    free = [name for name in start if name.startswith("head.") and name.endswith("weight")]
    assert not any(torch.equal(start[name], end[name]) for name in free)


def test_a_frozen_backbone_learns_after_its_epochs(tmp_path: Path) -> None:
    options = ("--freeze-epochs", "1", "--no-ema", "--eval-every", "5")
    one = load_checkpoint(run_train(tmp_path / "one", *options, epochs=1) / "last.pth").weights
    two = load_checkpoint(run_train(tmp_path / "two", *options, epochs=2) / "last.pth").weights
    torch.manual_seed(0)
    start = YOLOv4(load_checkpoint(tmp_path / "one" / "last.pth").config).state_dict()
    backbone = [name for name in one if name.startswith("backbone.") and "num_batches" not in name]
    assert all(torch.equal(one[name], start[name]) for name in backbone)
    assert any(not torch.equal(two[name], start[name]) for name in backbone)


def test_starting_from_a_checkpoint_of_other_classes_keeps_what_is_shared(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("car\nhouse\n")
    options = ("--weights", str(whole / "last.pth"), "--classes", str(names))
    run_train(tmp_path / "run", *options, epochs=1)
    said = capsys.readouterr().out
    assert "classes copied by name: car, house" in said and "tensors copied" in said
    assert load_checkpoint(tmp_path / "run" / "last.pth").config.class_names == ("car", "house")


def test_float16_trains_with_a_scaler_that_is_saved(tmp_path: Path) -> None:
    options = check_options(training_options.TrainOptions, {**tiny_options(tmp_path / "run"), "amp": "fp16"})
    settings = Settings.of(options)
    run = training_run.Run(settings, "cpu", None)
    assert run.trainer.scaler is not None
    run.trainer.scaler._init_scale = 4096.0
    run.save("last.pth")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    assert checkpoint.training is not None and checkpoint.training["scaler"]["scale"] == 4096.0
    again = training_run.Run(settings.choose("typed", {"resume": str(tmp_path / "run")}), "cpu", checkpoint)
    assert again.trainer.scaler is not None and again.trainer.scaler.state_dict()["scale"] == 4096.0


def tiny_options(folder: Path) -> dict[str, Any]:
    return {
        "data": str(demo_data()),
        "backbone": "mobilenet_v3_small",
        "alpha": 0.35,
        "neck_width": 0.1,
        "input_size": (64,),
        "workers": 0,
        "tensorboard": False,
        "run_dir": str(folder),
    }


# ---- the schedule and the average


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rate_warms_up_and_then_falls_or_stays(schedule: str) -> None:
    factor = lr_factor(schedule, 10, 100, 0.02)
    warm = [factor(step) for step in range(11)]
    assert warm == sorted(warm) and 0.01 <= warm[0] < 0.2
    assert factor(10) == pytest.approx(1.0)
    end = {"cosine": 0.02, "step": 0.01, "constant": 1.0}[schedule]
    assert factor(100) == pytest.approx(end, rel=0.05)
    assert all(factor(step + 1) <= factor(step) + 1e-12 for step in range(10, 100))


def test_the_rate_grows_with_the_batch_for_sgd_and_with_its_root_for_adam() -> None:
    assert scaled_lr("sgd", 64, 0.01) == pytest.approx(0.04)
    assert scaled_lr("adamw", 64, 0.001) == pytest.approx(0.002)
    assert scaled_lr("adamw", 16, 0.001) == pytest.approx(0.001)


def test_the_average_moves_towards_the_model_and_takes_over_counters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = ModelEMA(model, 0.9)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    model[1].num_batches_tracked += 5
    for step in range(1, 4):
        average.update(model)
        assert average.steps == step
    assert ((average.model[0].weight - before) > 0.5).all() and (average.model[0].weight < before + 1).all()
    assert average.model[1].num_batches_tracked == 5


def test_norms_and_biases_are_never_decayed() -> None:
    model = torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 4, 1), "neck": torch.nn.BatchNorm2d(4)})
    for group in parameter_groups(model, 0.1, 0.02, 0.5):
        assert (group["weight_decay"] > 0) == all(p.ndim > 1 for p in group["params"])
        assert group["lr"] == (0.05 if group["name"].startswith("backbone") else 0.1)


def test_multi_scale_sizes_are_multiples_of_32_near_the_input() -> None:
    assert multi_scale_sizes((416, 416), 0) == []
    sizes = multi_scale_sizes((320, 640), 0.5)
    assert (320, 640) in sizes and all(h % 32 == 0 and w % 32 == 0 and 2 * h == w for h, w in sizes)
    assert (32, 32) not in multi_scale_sizes((64, 64), 0.6)


# ---- options


BAD_OPTIONS = {
    "--batch-size 0": "--batch-size: 0 is out of range; it must be at least 1",
    "--epochs -1": "--epochs: -1 is out of range",
    "--learning-rate -0.1": "--learning-rate: -0.1 is out of range; it must be above 0",
    "--learning-rate nan": "--learning-rate: nan is out of range",
    "--learning-rate fast": "--learning-rate: ",
    "--input-size 100": "--input-size: 100 100: height and width must be multiples of 32",
    "--input-size 0": "--input-size: 0 is out of range",
    "--input-size 64 64 64": "--input-size: 64 64 64",
    "--input-size 32": "--input-size: 32 32",
    "--backbone resnet": "--backbone: 'resnet' is not known; choose from mobilenet_v1",
    "--optimizer lion": "--optimizer: ",
    "--anchors mine": "--anchors: 'mine' is not known; give yolov4, auto, checkpoint",
    "--momentum 1.5": "--momentum: 1.5 is out of range",
    "--mosaic 2": "--mosaic: 2.0 is out of range; it must be at least 0 and at most 1",
    "--scale 2 1": "scale",
    "--device tpu": "--device: 'tpu'",
    "--device cuda:99": "--device: 'cuda:99': ",
    "--weights gone.pth": "--weights: gone.pth does not exist",
    "--pretrained gone.pth": "--pretrained: gone.pth does not exist",
    "--classes gone.txt": "--classes: gone.txt does not exist",
    "--weights train.py --pretrained train.py": "--weights: cannot be combined with --pretrained",
    "--config gone.json": "gone.json: does not exist",
    "--preset gone": "--preset: no preset 'gone'",
    "--colour blue": "unknown option",
    "--seed -1": "--seed: -1 is out of range",
    "--nan hope": "--nan: ",
    "--workers -1": "--workers: -1 is out of range",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_named_before_anything_is_read(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.setup.open_dataset", lambda *a, **k: pytest.fail("data was opened"))
    (tmp_path / "data").mkdir()
    arguments = ["--data", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run"), *options.split()]
    with pytest.raises(UserError) as caught:
        train.main(arguments)
    assert BAD_OPTIONS[options] in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"batch_sice": 4}', "unknown option 'batch_sice'"),
        ('{"batch_size": "four"}', "--batch-size: 'four' is not a whole number"),
        ('{"batch_size": 0}', "--batch-size: 0 is out of range"),
        ('{"scale": [1.0]}', "--scale: 1 value; give 2"),
        ('{"epochs": null}', "--epochs: has no value"),
        ("[1]", "must contain one JSON object"),
        ('{"epochs": 3', "not JSON"),
    ],
)
def test_a_bad_configuration_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError) as caught:
        train.main(["--data", str(tmp_path), "--config", str(tmp_path / "c.json")])
    assert words in str(caught.value) and caught.value.exit_code == 2


def test_a_run_of_no_data_or_into_a_full_folder_is_rejected(whole: Path) -> None:
    with pytest.raises(UserError, match="--data: is required"):
        train.main([])
    with pytest.raises(UserError, match=f"--run-dir: {whole} exists and is not empty; choose another, or --resume"):
        train.main(["--data", str(demo_data()), "--run-dir", str(whole)])


def test_a_configuration_of_a_run_starts_the_same_run_again(whole: Path, tmp_path: Path) -> None:
    values = json.loads((whole / "config.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(values | {"run_dir": str(tmp_path / "again"), "epochs": 1}))
    assert train.main(["--config", str(tmp_path / "c.json"), "--epochs", "2"]) == 0
    assert_same(load_checkpoint(tmp_path / "again" / "last.pth").weights, load_checkpoint(whole / "last.pth").weights)
