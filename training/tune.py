"""`train.py --tune`: successive halving over the few options that matter, within a given time."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.checks import check_before_loading
from training.choose import DEFAULT_SIZE, TrainSettings
from training.folds import given_options, resumed_folder
from training.optim import BASE_RATES
from training.options import TrainOptions
from training.run_folder import new_run_dir, write_json
from utils.config import get_option
from utils.errors import RunError, UserError, warn
from utils.files import write_atomically
from utils.json_file import read_json

STATE, TABLE, PRESET = "tune.json", "tune.csv", "preset.json"
METRIC = "voc10_mAP50"
KEPT = 3  # the best 1 / KEPT of the trials enter the next round
MINUTES = 60.0
# the trials besides the default: each changes one or two of the options with the largest effect on small data
CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"learning_rate": 2.0},
    {"learning_rate": 0.5},
    {"input_size": 1.25},
    {"input_size": 0.75},
    {"mosaic": 0.0},
    {"mosaic": 1.0},
    {"class_weight": 2.0},
    {"neck_width": 0.5},
)
FACTORS = (
    "learning_rate",
    "input_size",
    "class_weight",
    "neck_width",
)  # for these, the value is a factor of the default
NOT_FOR_TRIALS = ("tune", "resume", "run_dir", "minutes", "epochs")
Train = Callable[[list[str]], int]  # train.py's main


@dataclass
class Trial:
    """One set of options that is trained and compared.

    Args:
        number: its number; 0 is the default.
        options: the options that differ from the default, by name.
        scores: the score of each of its rounds; None if it could not be trained.
        minutes: training time of each of its rounds.
    """

    number: int
    options: dict[str, Any]
    scores: list[float | None] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.options.items()) or "default"


def is_tune_run(settings: TrainSettings) -> bool:
    """Whether `--resume` is the folder of a search."""
    return resumed_folder(settings, STATE) is not None


def run_tune(settings: TrainSettings, train: Train) -> int:
    """Search for options that are better than the default on the user's data.

    All candidates are trained for a short time, the best third for three times as long, and so on. Each round takes
    the same time. The default is part of every round. After the last round, the winner is compared with it, trained
    equally long and evaluated on the same validation images. The result is therefore never worse than the default by
    that score.

    Args:
        settings: with `--tune`, or with `--resume` and the folder of a search; the given options are the default.
        train: train.py's main.

    Source: successive halving, Jamieson and Talwalkar, AISTATS 2016, https://arxiv.org/abs/1502.07943
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--tune", "works in one process", "start it without torchrun")
    folder, state, trials = _open(settings)
    rounds = plan_rounds(len(trials), state["minutes"])
    alive = list(trials)
    for number, (count, minutes) in enumerate(rounds):
        if number:
            alive = survivors(alive, number - 1, count)
        for trial in alive:
            if len(trial.scores) == number:
                code = _train_trial(folder, state, trial, number, minutes, train)
                if code:
                    return code
                _save(folder, state, trials)
        print(f"round {number + 1} of {len(rounds)}, {minutes:.1f} minutes each:\n{table_text(alive, number)}")
    best = max(alive, key=lambda trial: (trial.scores[-1] or 0.0, trial.number == 0))
    write_json(folder / PRESET, preset_of(state, best))
    _write_table(folder, trials)
    print(f"best: {best.name}; use it with: python train.py --config {folder / PRESET} --data ...")
    print(f"table: {folder / TABLE}")
    return 0


def plan_rounds(count: int, minutes: float) -> list[tuple[int, float]]:
    """(trials, minutes of each) of every round; all rounds take equally long, the last one has two trials."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(max(2, -(-sizes[-1] // KEPT)))
    return [(size, minutes / len(sizes) / size) for size in sizes]


def survivors(trials: Sequence[Trial], number: int, count: int) -> list[Trial]:
    """The best `count` trials of a round, always including the default."""
    ranked = sorted(trials, key=lambda trial: (-(trial.scores[number] or 0.0), trial.number))
    default = [trial for trial in ranked if trial.number == 0]
    others = [trial for trial in ranked if trial.number != 0 and trial.scores[number] is not None]
    return sorted([*default, *others[: count - len(default)]], key=lambda trial: trial.number)


def candidates(options: TrainOptions) -> list[dict[str, Any]]:
    """The options to try, as options of train.py; factors are multiplied by the default's value."""
    result: list[dict[str, Any]] = []
    for candidate in CANDIDATES:
        values = {}
        for name, value in candidate.items():
            values[name] = _scaled(options, name, value) if name in FACTORS else value
        if not any(value is None for value in values.values()) and values not in result:
            result.append(values)
    return result


def _scaled(options: TrainOptions, name: str, factor: float) -> Any:
    value = get_option(options, name)
    if name == "input_size":
        return [max(64, round(side * factor / 32) * 32) for side in value or DEFAULT_SIZE]
    if name == "learning_rate":
        value = value or BASE_RATES[options.optim.optimizer]
    if name == "neck_width":
        if options.start.weights or options.duration.auto:
            return None  # the initial weights fix the width
        value = value or 1.0
    return round(value * factor, 8)


def _open(settings: TrainSettings) -> tuple[Path, dict[str, Any], list[Trial]]:
    options = settings.options
    resumed = resumed_folder(settings, STATE)
    if resumed is not None:
        state = read_json(resumed / STATE, "a folder of train.py --tune")
        return resumed, state, [Trial(**each) for each in state["trials"]]
    check_before_loading(options)
    minutes = options.duration.minutes or MINUTES
    folder = new_run_dir(options.run.run_dir, "tune")
    state = {"minutes": minutes, "options": given_options(settings, NOT_FOR_TRIALS)}
    trials = [Trial(number, values) for number, values in enumerate(candidates(options))]
    rounds = plan_rounds(len(trials), minutes)
    print(f"{len(trials)} trials in {len(rounds)} rounds, {minutes:g} minutes in total; first {rounds[0][1]:.1f} each")
    _save(folder, state, trials)
    return folder, state, trials


def _save(folder: Path, state: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    write_json(folder / STATE, {**state, "trials": [asdict(each) for each in trials]})


def _train_trial(
    folder: Path, state: Mapping[str, Any], trial: Trial, number: int, minutes: float, train: Train
) -> int:
    """Train once; returns the exit code, 0 also for options that cannot be trained in this time."""
    run = folder / f"trial-{trial.number}-round-{number + 1}"
    print(f"trial {trial.number} ({trial.name}), round {number + 1}")
    try:
        if (run / "config.json").is_file():
            code = train(["--resume", str(run)])
        else:
            config = folder / "options.json"
            write_json(config, {**state["options"], **trial.options, "minutes": minutes})
            code = train(["--config", str(config), "--run-dir", str(run)])
    except (UserError, RunError) as error:
        if trial.number == 0:
            raise
        warn(f"trial {trial.number} ({trial.name})", str(error), "it is skipped")
        code, score = 0, None
    else:
        score = best_score(run)
    trial.scores.append(score)
    trial.minutes.append(round(minutes, 3))
    return code


def best_score(run: Path) -> float:
    """The best score in a run's metrics.csv."""
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return max((float(row[METRIC]) for row in rows if row.get(METRIC)), default=0.0)


def preset_of(state: Mapping[str, Any], best: Trial) -> dict[str, Any]:
    """The user's options and the best ones found, without paths of data and results."""
    places = ("data", "val_data", "train_split", "val_split", "shards", "classes", "device", "workers", "threads")
    given = {name: value for name, value in state["options"].items() if name not in places}
    note = f"train.py --tune, {state['minutes']:g} minutes: {METRIC} {best.scores[-1] or 0:.4f}"
    return {"_source": note, **given, **best.options}


def table_text(trials: Sequence[Trial], number: int) -> str:
    ranked = sorted(trials, key=lambda trial: -(trial.scores[number] or 0.0))
    width = max(len(trial.name) for trial in ranked)
    return "\n".join(
        f"  {trial.name:{width}} {'failed' if trial.scores[number] is None else f'{trial.scores[number]:.4f}'}"
        for trial in ranked
    )


def _write_table(folder: Path, trials: Sequence[Trial]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rounds = max(len(trial.scores) for trial in trials)
    writer.writerow(["trial", "options", *(f"round_{n + 1}" for n in range(rounds))])
    for trial in trials:
        scores = ["" if score is None else f"{score:.4f}" for score in trial.scores]
        writer.writerow([trial.number, json.dumps(trial.options), *scores, *[""] * (rounds - len(scores))])
    write_atomically(folder / TABLE, text.getvalue().encode())
