"""Options of train.py: each is declared once, has a final value with an origin, and has the documented effect."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train_makers import TINY, demo_data, run_train

import train
from data.augment import AugmentConfig
from data.loader import TrainLoader
from data.open import open_dataset
from data.shards import write_shards
from nets.weights.bundled import find_model
from nets.weights.checkpoint import load_checkpoint
from training.options import PRESETS, TrainOptions
from training.run import Run
from training.setup import has_mosaic
from utils.config import (
    DEFAULT,
    TYPED,
    Settings,
    flag,
    get_option,
    group,
    leaves,
    option,
    options_to_dict,
    parse_options,
    parse_settings,
)
from utils.errors import UserError

PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.json"))
# what makes every preset's run small enough for a test; all else is as the preset says
SMALL = ("--workers", "0", "--device", "cpu", "--no-tensorboard")


def make_run(folder: Path, *arguments: str) -> Run:
    command = ["--data", str(demo_data()), "--run-dir", str(folder / "run"), *arguments]
    run = Run(parse_settings(TrainOptions, command, description="", presets=PRESETS), "cpu", None)
    run.log.close()
    return run


# ---- origins


def test_a_typed_value_that_equals_the_default_counts_as_typed() -> None:
    settings = parse_settings(
        TrainOptions, ["--preset", "auto", "--epochs", "100", "--no-fast"], description="", presets=PRESETS
    )
    assert settings.origins["epochs"] == settings.origins["fast"] == TYPED
    assert settings.origins["auto"] == "preset auto" and settings.origins["seed"] == DEFAULT


def test_typed_values_override_config_and_config_overrides_preset(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"epochs": 7, "class_weight": 0.25}))
    arguments = ["--preset", "small", "--config", str(config), "--epochs", "3"]
    settings = parse_settings(TrainOptions, arguments, description="", presets=PRESETS)
    assert settings.options.duration.epochs == 3 and settings.origins["epochs"] == TYPED
    assert settings.options.loss.class_weight == 0.25 and settings.origins["class_weight"] == f"config {config}"
    assert settings.origins["close_mosaic"] == "preset small"


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_option_of_every_preset_is_final_saved_and_used(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, "--preset", preset, *SMALL)
    settings, saved = run.settings, json.loads((run.folder / "config.json").read_text())
    assert set(settings.origins) == set(leaves(TrainOptions))
    plain = options_to_dict(run.options)
    assert {name: saved[name] for name in plain} == plain and saved["_origins"] == dict(settings.origins)
    assert saved["_run"] == run.facts()
    given = json.loads((PRESETS / f"{preset}.json").read_text())
    for name, value in given.items():
        if not name.startswith("_") and name not in ("input_size", "cache", "workers"):
            assert plain[name] == value, name
    # what ran
    duration, optim, network = run.options.duration, run.options.optim, run.options.network
    assert run.loader.batch_size == duration.batch_size and run.trainer.accumulate == duration.accumulate
    assert run.total_steps == duration.epochs * run.steps_per_epoch
    assert run.config.input_size == network.input_size
    for name in ("backbone", "alpha", "neck", "neck_conv", "neck_width", "padding", "scale_xy", "resize_mode"):
        assert getattr(run.config, name) == getattr(network, name) is not None, name
    assert run.loader.dataset.augment == run.options.augment and run.trainer.loss.settings == run.options.loss
    assert run.loader.workers == run.options.machine.workers == 0
    assert torch.get_num_threads() == run.options.machine.threads
    assert (run.ema.decay if run.ema else None) == (optim.ema_decay if optim.ema else None)
    groups = {each["name"].split()[0].rstrip(","): each["base_rate"] for each in run.trainer.optimizer.param_groups}
    assert groups["backbone"] == pytest.approx(groups["neck"] * optim.backbone_rate_factor)
    assert run.facts()["learning rate, backbone"] == groups["backbone"]
    table = run.table()
    for name, origin in settings.origins.items():
        assert origin == DEFAULT or f"--{name.replace('_', '-')} " in table, name


def test_the_batch_that_auto_chooses_is_the_batch_that_trains_and_that_is_resumed(tmp_path: Path) -> None:
    tiny = [word for word in TINY if word not in ("--batch-size", "4")]
    command = ["--data", str(demo_data()), "--run-dir", str(tmp_path / "run"), "--auto", "--epochs", "1", *tiny]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.run.draw_curves", lambda *_: None)
        assert train.main(command) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["batch_size"] == 2 and saved["_origins"]["batch_size"] == "auto"
    steps = -(-len(open_dataset(str(demo_data()), "train")) // 2)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[1].split(",")[:2] == ["1", str(steps)]


# ---- a checkpoint's geometry


@pytest.mark.parametrize("name", ["small", "nano"])
def test_a_checkpoints_geometry_is_kept_unless_typed(name: str, tmp_path: Path) -> None:
    start = load_checkpoint(find_model(name)).config
    run = make_run(tmp_path, "--weights", name, *SMALL)
    for field in ("input_size", "anchors", "resize_mode", "mean", "std", "bn_eps", "padding", "neck_width"):
        assert getattr(run.config, field) == getattr(start, field), field
    assert run.settings.origins["input_size"] == run.settings.origins["anchors"] == f"checkpoint {name}"
    assert run.settings.origins["resize_mode"] == f"checkpoint {name}"


def test_a_typed_size_scales_the_checkpoints_anchors(tmp_path: Path) -> None:
    start = load_checkpoint(find_model("small")).config
    run = make_run(tmp_path, "--weights", "small", "--input-size", "160", "--resize-mode", "stretch", *SMALL)
    assert run.config.input_size == (160, 160) and run.config.resize_mode == "stretch"
    factor = 160 / min(start.input_size)
    expected = [[(w * factor, h * factor) for w, h in level] for level in start.anchors]
    assert [list(level) for level in run.config.anchors] == expected
    assert run.settings.origins["input_size"] == TYPED


def test_a_typed_checkpoint_takes_precedence_over_the_presets_network(tmp_path: Path) -> None:
    run = make_run(tmp_path, "--preset", "demo", "--weights", "nano", *SMALL)
    assert run.config.backbone == load_checkpoint(find_model("nano")).config.backbone
    assert run.settings.origins["backbone"] == "checkpoint nano"


def test_pretrained_none_with_a_preset_keeps_its_network_and_starts_at_random(tmp_path: Path) -> None:
    start = load_checkpoint(find_model("small"))
    run = make_run(tmp_path, "--preset", "small", "--pretrained", "none", *SMALL)
    assert run.config.neck_width == start.config.neck_width and run.options.start.weights is None
    name = next(n for n in start.weights if n.startswith("backbone.") and start.weights[n].ndim == 4)
    assert not torch.equal(run.model.state_dict()[name], start.weights[name])
    assert not run.options.start.freeze_norms


def test_bundled_is_the_detector_that_fits_the_network(tmp_path: Path) -> None:
    run = make_run(tmp_path, "--pretrained", "bundled", *SMALL)
    assert run.options.start.weights == "small"
    with pytest.raises(UserError, match="no bundled detector has the backbone mobilenet_v3_small"):
        make_run(tmp_path / "other", "--pretrained", "bundled", "--backbone", "mobilenet_v3_small", *SMALL)


# ---- declared once


@dataclass(frozen=True)
class MoreAugment(AugmentConfig):
    posterize: int = option(0, "bits that are dropped", low=0, high=7)


@dataclass(frozen=True)
class MoreOptions:
    augment: MoreAugment = group(MoreAugment, "augmentation")


def test_a_field_is_enough_to_add_an_augmentation_option(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_options(MoreOptions, ["--posterize", "3", "--mosaic", "0"], description="")
    assert options.augment.posterize == 3 and options.augment.mosaic == 0
    with pytest.raises(UserError, match="--posterize: 9 is out of range"):
        parse_options(MoreOptions, ["--posterize", "9"], description="")
    with pytest.raises(SystemExit):
        parse_options(MoreOptions, ["--help"], description="")
    assert "bits that are dropped" in capsys.readouterr().out


def test_two_options_of_one_name_are_an_error_of_the_programmer() -> None:
    @dataclass(frozen=True)
    class Twice:
        mosaic: float = option(0.0, "again")
        augment: AugmentConfig = group(AugmentConfig, "augmentation")

    Twice.__annotations__.update(mosaic=float, augment=AugmentConfig)
    with pytest.raises(TypeError, match="two options are called mosaic"):
        leaves(Twice)


def test_every_option_says_what_it_does() -> None:
    for leaf in leaves(TrainOptions).values():
        assert len(leaf.field.metadata["help"]) >= 9, leaf.name


def test_help_shows_what_people_use_and_help_all_everything(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for asked in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as left:
            train.main([asked])
        assert left.value.code == 0
        shown[asked] = capsys.readouterr().out
    names = {f"--{name.replace('_', '-')}" for name in leaves(TrainOptions)} | {"--preset"}
    short = {name for name in names if f"  {name} " in shown["--help"] or f"  {name}," in shown["--help"]}
    assert len(short) == 15 and "--preset" in short and "--minutes" in short and "example: " in shown["--help"]
    for name in names:
        assert name in shown["--help-all"], name
    for title in ("data:", "network:", "start:", "duration:", "optimiser:", "loss:", "augmentation:", "machine:"):
        assert title in shown["--help-all"]


def test_an_old_name_works_with_one_line_of_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = parse_options(TrainOptions, ["--backbone-rate", "0.5"], description="")
    assert options.optim.backbone_rate_factor == 0.5
    (tmp_path / "c.json").write_text('{"backbone_rate": 0.25}')
    options = parse_options(TrainOptions, ["--config", str(tmp_path / "c.json")], description="")
    assert options.optim.backbone_rate_factor == 0.25
    lines = [line for line in capsys.readouterr().err.splitlines() if "now called --backbone-rate-factor" in line]
    assert len(lines) == 2


def test_show_config_shows_every_option_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", str(demo_data()), *TINY, "--epochs", "100", "--show-config"]) == 0
    text = capsys.readouterr().out
    for name in leaves(TrainOptions):
        assert f"--{name.replace('_', '-')} " in text
    line = next(line for line in text.splitlines() if line.strip().startswith("--epochs"))
    assert line.split() == ["--epochs", "100", "typed"]
    assert not list(tmp_path.iterdir())


def test_settings_go_through_config_json_and_come_back(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", "--epochs", "1", epochs=1)
    from utils.config import read_settings

    settings = read_settings(TrainOptions, folder / "config.json")
    assert isinstance(settings, Settings)
    assert settings.origins["batch_size"] == TYPED and settings.origins["learning_rate"] == DEFAULT
    assert settings.options.optim.learning_rate == 5e-3 and settings.reasons["learning_rate"] == "usual for adamw"


# ---- each option changes what it says it changes

PLAIN = ("--epochs", "4", "--seed", "1")


def rates(run: Run) -> list[float]:
    return [run.trainer.factor(step) for step in range(run.total_steps)]


def frozen(run: Run, epoch: int) -> int:
    from training.setup import freeze

    freeze(run.trainer, run.model.backbone, run.options, epoch)
    return sum(not p.requires_grad for p in run.model.parameters())


def index_names(run: Run) -> list[str]:
    return run.train_index.image_ids.tolist()


NANO = ("--weights", "nano")
# option: (what is typed, what is looked at), where the default gives another answer
EFFECTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "data": (("--data", "{copy}"), lambda run: run.train_index.path(0)),
    "val_data": (("--val-data", "{copy}"), lambda run: (run.train_index.path(0), run.val_index.path(0))),
    "shards": (("--shards", "{shards}"), lambda run: (run.shards is None, type(run.loader.dataset).__name__)),
    "classes": (("--classes", "{classes}"), lambda run: run.config.class_names),
    "teacher": (("--teacher", "{detections}"), lambda run: run.train_index.scores is None),
    "threads": (("--threads", "2"), lambda run: torch.get_num_threads()),
    "tensorboard": (("--tensorboard",), lambda run: run.log._writer is None),
    "train_split": (("--train-split", "val"), index_names),
    "val_split": (("--val-split", "train"), lambda run: run.val_index.image_ids.tolist()),
    "limit": (("--limit", "3"), lambda run: len(run.train_index)),
    "repeat_rare": (("--repeat-rare", "0.9"), lambda run: len(run.loader)),
    "label_scores": (("--label-scores", "0.1", "0.2"), lambda run: run.options.dataset.label_scores),
    "backbone": (("--backbone", "mobilenet_v1"), lambda run: run.config.backbone),
    "alpha": (("--alpha", "0.5"), lambda run: run.model.backbone.out_channels),
    "neck": (("--neck", "panet"), lambda run: type(run.model.neck).__name__),
    "neck_conv": (  # a slim neck is separable in any case
        ("--neck", "panet", "--neck-conv", "standard"),
        lambda run: any(
            module.kernel_size == (3, 3) and module.groups == 1
            for module in run.model.neck.modules()
            if isinstance(module, torch.nn.Conv2d)
        ),
    ),
    "neck_width": (("--neck-width", "0.2"), lambda run: run.model.neck.out_channels),
    "se_order": (("--se-order", "before"), lambda run: run.config.se_order),
    "padding": (("--padding", "tf_same"), lambda run: run.config.padding),
    "scale_xy": (("--scale-xy", "1", "1", "1"), lambda run: run.trainer.loss.config.scale_xy),
    "anchors": (("--anchors", "auto"), lambda run: run.config.anchors),
    "input_size": (("--input-size", "96"), lambda run: run.loader.dataset.letterbox.input_size),
    "resize_mode": (("--resize-mode", "stretch"), lambda run: run.loader.dataset.letterbox.mode),
    "multi_scale": (("--multi-scale", "0.5"), lambda run: len(run.loader.sampler.sizes)),
    "weights": (NANO, lambda run: run.config.input_size),
    "pretrained": (("--pretrained", "bundled"), lambda run: run.options.start.weights),
    "freeze_epochs": ((*NANO, "--freeze-epochs", "2"), lambda run: (frozen(run, 1) > 0, frozen(run, 2))),
    "freeze_layers": ((*NANO, "--freeze-layers", "2"), lambda run: frozen(run, 0)),
    "freeze_norms": ((*NANO, "--freeze-norms"), lambda run: (frozen(run, 0), len(run.trainer.frozen))),
    "auto": (("--auto",), lambda run: run.options.optim.warmup_epochs),
    "epochs": (("--epochs", "9"), lambda run: run.total_steps),
    "batch_size": (("--batch-size", "2"), lambda run: (len(run.loader), run.loader.batch_size)),
    "accumulate": (("--accumulate", "2"), lambda run: (run.steps_per_epoch, run.trainer.accumulate)),
    "close_mosaic": (
        ("--close-mosaic", "0.75"),
        lambda run: [has_mosaic(run.options.duration.close_mosaic, each, 4) for each in range(4)],
    ),
    "grow_sizes": (("--grow-sizes", "32", "--grow-until", "0.5"), lambda run: grown(run)),
    "grow_until": (("--grow-sizes", "32", "--grow-until", "0.75"), lambda run: grown(run)),
    "optimizer": (("--optimizer", "sgd"), lambda run: type(run.trainer.optimizer).__name__),
    "learning_rate": (("--learning-rate", "0.3"), lambda run: run.facts()["learning rate, neck"]),
    "backbone_rate_factor": (("--backbone-rate-factor", "0.3"), lambda run: run.facts()["learning rate, backbone"]),
    "schedule": (("--schedule", "constant"), rates),
    "warmup_epochs": (("--warmup-epochs", "2"), rates),
    "final_rate": (("--final-rate", "0.5"), lambda run: rates(run)[-1]),
    "momentum": (("--momentum", "0.5"), lambda run: run.trainer.optimizer.param_groups[0]["betas"]),
    "weight_decay": (("--weight-decay", "0.5"), lambda run: run.trainer.optimizer.param_groups[0]["weight_decay"]),
    "clip": (("--clip", "0.5"), lambda run: run.trainer.clip),
    "ema": (("--no-ema",), lambda run: run.state.scored_model() is run.model),
    "ema_decay": (("--ema-decay", "0.5"), lambda run: run.ema.decay if run.ema else None),
    "amp": (("--amp", "bf16"), lambda run: run.trainer.amp),
    "workers": (("--workers", "1"), lambda run: run.loader._loader.num_workers),
    "cache": (("--cache", "ram"), lambda run: run.loader.dataset.reader.image_cache is None),
    "run_dir": ((), lambda run: run.folder.name),
    "seed": (
        ("--seed", "5"),
        lambda run: (
            run.loader.sampler.seed,
            run.model.state_dict()["neck.spp.pool.0"].sum()
            if "neck.spp.pool.0" in run.model.state_dict()
            else float(next(run.model.parameters()).sum()),
        ),
    ),
    **{
        name: (
            (
                f"--{name.replace('_', '-')}",
                *(
                    ["3", "3", "3"]
                    if name == "level_weights"
                    else [{"assigner": "best", "box_loss": "giou", "label_smoothing": "0.25"}.get(name, "0.75")]
                ),
            ),
            lambda run, name=name: getattr(run.trainer.loss.settings, name),
        )
        for name in (
            "assigner",
            "box_loss",
            "box_weight",
            "objectness_weight",
            "class_weight",
            "level_weights",
            "objectness_target",
            "ignore_iou",
            "label_smoothing",
            "focal_gamma",
        )
    },
    "class_balance": (("--class-balance", "0.75"), lambda run: len(run.trainer.loss.class_weights)),
    **{
        each.name: (
            (f"--{each.name.replace('_', '-')}", *(["0.7", "0.9"] if "scale" in each.name else ["0.25"])),
            lambda run, name=each.name: getattr(run.loader.dataset.augment, name),
        )
        for each in dataclasses.fields(AugmentConfig)
    },
}
# option: the file of tests/ that types it and looks at what it does, which is nothing when a run is made
ELSEWHERE = {
    "folds": "test_folds_and_tune.py", "tune": "test_folds_and_tune.py", "image_folder": "test_layouts.py",
    "minutes": "test_budget.py", "nan": "faults/test_training_faults.py", "resume": "test_resume.py",
    "sync_bn": "distributed_run.py", "device": "test_recipe.py", "show_config": "test_options.py",
    **dict.fromkeys(("tile", "tile_overlap", "eval_every", "patience", "best_by", "fast"), "test_options.py"),
}  # fmt: skip


def place(word: str, folder: Path) -> str:
    """`word`, or the path of a file or folder that it stands for, which is made in `folder`."""
    path = folder / word.strip("{}")
    if word == "{copy}":
        shutil.copytree(demo_data(), path)
    elif word == "{shards}":
        write_shards(open_dataset(str(demo_data()), "train"), path, images_per_shard=4)
    elif word == "{classes}":
        path.write_text("car\nhouse\n")
    elif word == "{detections}":
        image = open_dataset(str(demo_data()), "train").path(0).name
        found = [{"class_name": "car", "score": 0.5, "box_xyxy": [1, 1, 20, 20]}]
        path = path.with_suffix(".json")
        path.write_text(json.dumps([{"image": image, "detections": found}]))
    return str(path) if word.startswith("{") else word


def grown(run: Run) -> list[Any]:
    from training.setup import epoch_sizes

    return [epoch_sizes(run.options, run.config.input_size, epoch, run.epochs) for epoch in range(run.epochs)]


def test_every_option_is_in_the_list_of_effects_or_typed_in_its_own_test() -> None:
    assert set(leaves(TrainOptions)) == set(EFFECTS) | set(ELSEWHERE)
    assert not set(EFFECTS) & set(ELSEWHERE)
    for name, file in ELSEWHERE.items():
        assert flag(name) in (Path(__file__).parent / file).read_text(), name


def test_more_overlap_gives_more_tiles(tmp_path: Path) -> None:
    counts = []
    for overlap in ("0", "0.9"):
        run = make_run(tmp_path / overlap, *TINY, "--tile", "64", "--tile-overlap", overlap)
        counts.append(len(run.train_index))
    assert len(open_dataset(str(demo_data()), "train")) < counts[0] < counts[1]


def test_a_run_is_scored_at_its_interval_and_stops_when_it_no_longer_improves(tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", "--eval-every", "2", "--patience", "1", "--learning-rate", "1e-9", epochs=6)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["voc10_mAP50"] != "") for row in rows] == [
        ("1", False), ("2", True), ("3", False), ("4", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("best_by", "epoch"), [("fitness", 1), ("coco_AP", 1), ("voc10_mAP50", 2)])
def test_the_best_checkpoint_is_that_of_best_by(
    best_by: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(run: Run) -> SimpleNamespace:
        run.val_losses = {}
        values = {1: (0.5, 0.2), 2: (0.3, 0.9)}[run.progress.epoch]
        figures = dict(zip(("coco_AP", "voc10_mAP50"), values, strict=True)) | {"voc07_mAP50": 0.0, "coco_AP50": 0.0}
        return SimpleNamespace(figures=figures, skips=(), best_f1_threshold=None)

    monkeypatch.setattr(Run, "evaluate", scores)
    monkeypatch.setattr("training.run.draw_validation", lambda *_: None)
    run = run_train(tmp_path / "run", "--best-by", best_by)
    assert load_checkpoint(run / "best.pth").info["epoch"] == epoch


def test_fast_reaches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr("training.setup._make_fast", lambda *arguments: made.append(arguments) or False)
    run = make_run(tmp_path, *TINY, "--fast")
    assert len(made) == 1 and made[0][0] is run.model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("plain"), *TINY, *PLAIN)


@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "run_dir"])
def test_each_option_changes_what_it_says_it_changes(name: str, plain: Run, tmp_path: Path) -> None:
    typed, look = EFFECTS[name]
    typed = tuple(place(word, tmp_path) for word in typed)
    base = [*TINY, *PLAIN]
    if typed[0] in ("--weights", "--pretrained"):  # whose network would not be the tiny one
        base = ["--amp", "none", "--device", "cpu", "--no-tensorboard", "--workers", "0", *PLAIN]
    before = str(look(plain))
    run = make_run(tmp_path, *base, *typed)
    seen = str(look(run))
    torch.set_num_threads(1)
    assert seen != before, name
    value = get_option(run.options, name)
    assert json.loads((run.folder / "config.json").read_text())[name] == options_to_dict(run.options)[name]
    assert value == get_option(run.settings.options, name)
    run.loader.close()


def test_mosaics_are_off_in_the_last_share_of_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    set_epoch = TrainLoader.set_epoch

    def record(self: TrainLoader, epoch: int, mosaic: bool, *others: Any) -> None:
        epochs.append((epoch, mosaic))
        set_epoch(self, epoch, mosaic, *others)

    monkeypatch.setattr(TrainLoader, "set_epoch", record)
    run_train(tmp_path / "run", "--close-mosaic", "0.3", "--eval-every", "100", "--limit", "2", epochs=4)
    assert epochs == [(0, True), (1, True), (2, True), (3, False)]
    assert [[has_mosaic(share, epoch, 10) for epoch in range(10)].count(True) for share in (0, 0.3, 1)] == [10, 7, 0]
    assert has_mosaic(0.3, 6, 10) and not has_mosaic(0.3, 7, 10)
