"""`train.py --folds` and `--tune`: division of images and time, and complete runs with a small network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import train_makers
from train_makers import TINY, demo_data

import train
from data.open import open_dataset
from evaluation.detections_file import read_detections
from training import folds, tune
from training.options import TrainOptions
from training.tune import CANDIDATES, Search, Trial, candidates, round_sizes, survivors
from utils.config import Settings, check_options
from utils.errors import UserError


def options_of(**values: Any) -> TrainOptions:
    return check_options(TrainOptions, values)


def test_splits_are_stratified_and_keep_near_duplicates_together() -> None:
    rng = np.random.default_rng(0)
    counts = (rng.random((200, 4)) < [0.5, 0.2, 0.1, 0.05]).astype(np.int32)
    groups = np.arange(200)
    groups[1::10] = groups[0::10]  # ten pairs of near-duplicates, and more
    fold = folds.divide_folds(counts, groups, 5)
    assert np.bincount(fold).tolist() == pytest.approx([40] * 5, abs=3)
    for label in range(4):
        share = np.bincount(fold[counts[:, label] > 0], minlength=5)
        assert share.max() - share.min() <= 3
    assert (fold[1::10] == fold[0::10]).all()
    assert (folds.divide_folds(counts, groups, 5) == fold).all()


def test_the_last_of_the_rounds_has_two_trials() -> None:
    assert round_sizes(9) == [9, 3, 2] and round_sizes(2) == [2] and round_sizes(1) == [1]


def test_the_default_is_in_every_round() -> None:
    trials = [Trial(n, {"mosaic": n} if n else {}, [score]) for n, score in enumerate((0.1, 0.5, 0.4, None, 0.3))]
    assert [each.number for each in survivors(trials, 0, 3)] == [0, 1, 2]
    assert survivors(trials, 0, 2)[0].number == 0
    assert trials[3] not in survivors(trials, 0, 5)


def test_candidates_are_multiples_of_the_given_value() -> None:
    tried = candidates(options_of(learning_rate=0.01, input_size=[320], class_weight=0.5))
    assert tried[0] == {} and len(tried) == len(CANDIDATES)
    assert {"learning_rate": 0.02} in tried and {"input_size": [384]} in tried and {"class_weight": 1.0} in tried
    assert not any("neck_width" in each for each in candidates(options_of(weights="x.pth")))


def test_candidates_are_multiples_of_what_is_chosen_from_the_data() -> None:
    default = tune._resolved(Settings.of(options_of(data=str(demo_data()), auto=True)))
    size = default.network.input_size
    assert size is not None and size != (416, 416)  # that of the bundled detector
    tried = [each["input_size"] for each in candidates(default) if "input_size" in each]
    assert tried == [[max(64, round(side * factor / 32) * 32) for side in size] for factor in (1.25, 0.75)]


def test_a_preset_contains_no_paths() -> None:
    search = Search(Path(), 5, {"data": "/x", "device": "cpu", "backbone": "mobilenet_v2"}, [])
    preset = search.preset(Trial(1, {"mosaic": 0.0}, [0.2]), 0)
    assert preset == {"_source": preset["_source"], "backbone": "mobilenet_v2", "mosaic": 0.0}


def arguments(folder: Path, *more: str) -> list[str]:
    return [*TINY, "--data", str(demo_data()), "--run-dir", str(folder), *more]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    import training.run

    monkeypatch.setattr(training.run, "draw_curves", lambda *_: None)


@pytest.mark.slow
def test_three_folds_give_one_file_of_detections_and_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    detect = folds._detect
    calls: list[int] = []

    def interrupted(folder: Path, number: int, device: str) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        detect(folder, number, device)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "_detect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments(run, "--folds", "3", "--epochs", "1"))
    assert train.main(["--resume", str(run)]) == 0
    text = capsys.readouterr().out
    assert "3 folds" in text and "each image evaluated by a detector that was not trained on it" in text
    plan = json.loads((run / "folds.json").read_text())
    total = sum(plan["images"].values())
    rows = json.loads((run / "detections.json").read_text())
    assert len(rows) == total == len({row["image"] for row in rows})
    assert {row["fold"] for row in rows} == {1, 2, 3}
    assert all(Path(row["image"]).is_file() and "/run/" not in row["image"] for row in rows)
    index = open_dataset(demo_data(), "all")
    assert len(read_detections(run / "detections.json", index, missing="skip").found.images) == total
    table = list(csv.DictReader((run / "folds.csv").read_text().splitlines()))
    assert table[0]["class"] == "all" and float(table[0]["low"]) <= float(table[0]["AP50"]) <= float(table[0]["high"])
    for number in (1, 2, 3):
        held = {row["image"] for row in rows if row["fold"] == number}
        learnt = open_dataset(run / "data", f"train-{number}")
        names = {learnt.path(i).name for i in range(len(learnt))}
        assert not names & {Path(image).name for image in held}


@pytest.mark.parametrize("more", [["--folds", "1"], ["--folds", "40"], ["--folds", "2", "--tune"]])
def test_invalid_fold_counts_are_rejected(tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(UserError, match="--folds"):
        train.main(arguments(tmp_path / "run", *more))


def test_the_folds_divide_at_most_the_limit(tmp_path: Path) -> None:
    """Also of a validation split; the trainings themselves have no limit."""

    def settings(limit: int) -> Settings[TrainOptions]:
        given = {"data": str(demo_data()), "limit": limit, "folds": 3, "run_dir": str(tmp_path / "run")}
        return Settings.of(options_of(**given))

    few, everything = (folds._pool(settings(limit)) for limit in (7, 0))
    assert [sum(map(len, pool)) for pool in (few, everything)] == [7, 10] and len(few) == len(everything) == 2
    assert folds.given_options(settings(9), folds.NOT_FOR_FOLDS) == {}


@pytest.mark.parametrize(("tile", "tiles"), [(None, "none"), (64, 64), (0, None)])
def test_a_fold_is_evaluated_with_the_tiles_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int | None, tiles: Any
) -> None:
    monkeypatch.setattr(folds, "load_model", lambda _: None)
    monkeypatch.setattr(folds, "Detector", SimpleNamespace(from_model=lambda *_: SimpleNamespace(tile="none")))
    (tmp_path / "config.json").write_text(json.dumps({"tile": tile, "tile_overlap": 0.3}))
    detector: Any = folds._detector(tmp_path, "cpu")
    assert detector.tile == tiles and (tile is None or detector.overlap == 0.3)


def test_a_tune_run_writes_a_preset_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a training that only writes its score: the options, the trials, the selected trial, and the kept files."""
    trained: list[dict[str, Any]] = []

    def fake(argv: list[str]) -> int:
        run = Path(argv[argv.index("--run-dir") + 1])
        values = json.loads(Path(argv[argv.index("--config") + 1]).read_text())
        if len(trained) == 4 and not (tmp_path / "second").exists():
            raise KeyboardInterrupt
        trained.append(values)
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        if values.get("input_size", [0])[0] > 500:
            raise UserError("--minutes", "is not enough for one epoch", "increase it")
        score = 0.5 + (0.2 if values.get("mosaic") == 1.0 else 0.0)
        (run / "metrics.csv").write_text(f"epoch,voc10_mAP50\n1,{score}\n")
        return 0

    given = {"data": str(demo_data()), "run_dir": str(tmp_path / "run"), "minutes": 9.0, "tune": True}
    settings = Settings.of(options_of(**given, backbone="mobilenet_v1"))
    with pytest.raises(KeyboardInterrupt):
        tune.run_tune(settings, fake)
    (tmp_path / "second").touch()
    assert tune.run_tune(Settings.of(options_of(resume=str(tmp_path / "run"))), fake) == 0
    assert len(trained) == 9 + 3 + 2 and "best: mosaic 1.0" in capsys.readouterr().out
    assert all(values["backbone"] == "mobilenet_v1" and "run_dir" not in values for values in trained)
    preset = json.loads((tmp_path / "run" / "preset.json").read_text())
    assert preset["mosaic"] == 1.0 and preset["backbone"] == "mobilenet_v1" and "data" not in preset
    table = list(csv.DictReader((tmp_path / "run" / "tune.csv").read_text().splitlines()))
    assert len(table) == 9 and table[0]["options"] == "{}" and table[0]["round_3"] == "0.5000"


class FakeTraining:
    """A training that writes `score(options)` and takes `takes(minutes, number of trainings before)` minutes."""

    def __init__(self, takes: Callable[[float, int], float], score: Callable[[dict[str, Any]], float]) -> None:
        self.takes, self.score, self.time, self.given = takes, score, 0.0, list[float]()

    def __call__(self, argv: list[str]) -> int:
        run = Path(argv[argv.index("--run-dir") + 1])
        values = json.loads(Path(argv[argv.index("--config") + 1]).read_text())
        assert values["minutes"] > 0  # 0 would be a run without a limit
        self.time += 60 * self.takes(values["minutes"], len(self.given))
        self.given.append(values["minutes"])
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text(f"epoch,voc10_mAP50\n1,{self.score(values)}\n")
        return 0

    def search(self, folder: Path, minutes: float, **given: Any) -> dict[str, Any]:
        """The preset that a search finds."""
        values = {"data": str(demo_data()), "run_dir": str(folder), "minutes": minutes, "tune": True, **given}
        assert tune.run_tune(Settings.of(options_of(**values)), self, lambda: self.time) == 0
        return json.loads((folder / "preset.json").read_text())


def test_the_default_is_selected_if_scores_are_equal(tmp_path: Path) -> None:
    training = FakeTraining(lambda minutes, _: minutes, lambda _: 0.5)
    assert training.search(tmp_path / "run", 9.0, mosaic=0.3)["mosaic"] == 0.3
    assert training.given == pytest.approx([9 / 3 / 9] * 9 + [9 / 3 / 3] * 3 + [9 / 3 / 2] * 2)
    assert training.time == pytest.approx(9 * 60)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("start and evaluation take half a minute", lambda minutes, _: minutes + 0.5),
        ("twice as slow", lambda minutes, _: 2 * minutes),
        ("load in the middle", lambda minutes, done: minutes * (3 if 4 < done < 9 else 1) + 0.2),
        ("load in the last round", lambda minutes, done: minutes * (1.5 if done > 11 else 1)),
        ("an epoch takes longer than the time of a trial", lambda minutes, _: max(minutes, 3.0)),
        ("the computer slept", lambda minutes, done: 30.0 if done == 5 else minutes),
    ],
)
def test_a_search_ends_in_its_time_whatever_a_trial_takes(tmp_path: Path, name: str, takes: Any) -> None:
    """At most one trial ends after the time; trials of a round have equal times; the best of the scored ones wins."""
    took: list[float] = []

    def counted(minutes: float, done: int) -> float:
        took.append(takes(minutes, done))
        return took[-1]

    training = FakeTraining(counted, lambda values: 0.7 if values.get("mosaic") == 1.0 else 0.5)
    preset = training.search(tmp_path / "run", 20.0)
    assert training.time / 60 <= 20 + max(took[-1] - training.given[-1], 0) + (30 if "slept" in name else 0)
    if name not in ("an epoch takes longer than the time of a trial", "the computer slept"):
        assert preset["mosaic"] == 1.0 and training.time / 60 > 0.75 * 20
    rounds = json.loads((tmp_path / "run" / "tune.json").read_text())["trials"]
    for number in range(3):
        minutes = [trial["minutes"][number] for trial in rounds if len(trial["minutes"]) > number]
        assert not minutes or min(minutes) >= max(minutes) / 2 - 0.01


def test_too_few_minutes_are_for_fewer_trials(tmp_path: Path) -> None:
    def short(minutes: float, done: int) -> float:
        if minutes < 0.5:
            raise UserError("--minutes", f"{minutes} is not enough for one epoch (0.5)", "increase it")
        return minutes

    training = FakeTraining(short, lambda values: values.get("learning_rate", 0.0))
    assert training.search(tmp_path / "run", 3.6)["learning_rate"] > 0  # 3 trials of 0.6, then 2 of 0.9
    assert training.given == pytest.approx([0.6] * 3 + [0.9] * 2)
    with pytest.raises(UserError, match=r"0\.9 minutes are 0\.5 for each of 2 trials; 0\.45 is not enough"):
        training.search(tmp_path / "other", 0.9)


assert train_makers  # its import makes train.py importable
