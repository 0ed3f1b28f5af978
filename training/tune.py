"""`train.py --tune`: successive halving over the few options that matter, within a given time."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nets.runtime import resolve_device
from training.checks import check_before_loading
from training.choose import DEFAULT_SIZE, TrainSettings, absolute_paths, choose_new_run, choose_splits
from training.folds import given_options, resumed_folder
from training.optim import BASE_RATES
from training.options import TrainOptions
from training.run_folder import new_run_dir, write_json
from training.setup import open_data
from utils.config import AUTO, get_option
from utils.errors import UserError, warn
from utils.files import write_atomically
from utils.json_file import read_json
from utils.text import quoted

STATE, TABLE, PRESET = "tune.json", "tune.csv", "preset.json"
METRIC = "voc10_mAP50"
KEPT = 3  # the best 1 / KEPT of the trials enter the next round
MINUTES = 60.0
TOO_SHORT = "--minutes"  # the option that train.py's error names if not even an epoch fits
# The trials: the default, and one option changed, of those with the largest effect on small data. The first ones are
# tried if the time is short.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"learning_rate": 2.0},
    {"mosaic": 0.0},
    {"learning_rate": 0.5},
    {"input_size": 1.25},
    {"input_size": 0.75},
    {"mosaic": 1.0},
    {"class_weight": 2.0},
    {"neck_width": 0.5},
)
FACTORS = ("learning_rate", "input_size", "class_weight", "neck_width")  # their value is a factor of the default
NOT_FOR_TRIALS = ("tune", "resume", "run_dir", "minutes", "epochs")
Train = Callable[[list[str]], int]  # train.py's main


@dataclass
class Trial:
    """One set of options that is trained and compared.

    Args:
        number: its number; 0 is the default.
        options: the options that differ from the default, by name.
        scores: the score of each of its rounds; None if it could not be trained.
        minutes, took: the `--minutes` of each of its rounds, and the minutes that it really took.
    """

    number: int
    options: dict[str, Any]
    scores: list[float | None] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.options.items()) or "default"


def is_tune_run(settings: TrainSettings) -> bool:
    """Whether `--resume` is the folder of a search."""
    return resumed_folder(settings, STATE) is not None


def run_tune(settings: TrainSettings, train: Train, now: Callable[[], float] = time.monotonic) -> int:
    """Search for options that are better than the default on the user's data.

    All candidates are trained for a short time, the best third for about three times as long, and so on. The default
    is part of every round. After the last round, the winner is compared with it, trained equally long and evaluated on
    the same validation images. The result is therefore never worse than the default by that score. If the time is used
    up earlier, the last round with scores of the default and of another trial decides. If it is too short for all
    candidates, fewer are compared.

    Args:
        settings: with `--tune`, or with `--resume` and the folder of a search; the given options are the default.
        train: train.py's main.
        now: returns the time of a clock in seconds.

    Source: successive halving, Jamieson and Talwalkar, AISTATS 2016, https://arxiv.org/abs/1502.07943
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--tune", "works in one process", "start it without torchrun")
    search = _open(settings)
    sizes, alive, number = round_sizes(len(search.trials)), search.trials, 0
    while number < len(sizes):
        is_new = number and not any(len(trial.scores) > number for trial in alive)
        if is_new and search.share(sizes[number], len(sizes) - number) < alive[0].minutes[number - 1]:
            sizes[number:] = sizes[-1:]  # time is short: the last round is next
        chosen = survivors(alive, number - 1, sizes[number]) if number else alive
        try:
            code = search.train_round(chosen, number, len(sizes), train, now)
        except UserError as error:
            if error.where != TOO_SHORT or len(search.trials) <= 2:
                raise
            alive = search.trials = search.trials[: sizes[1]]
            sizes = round_sizes(len(alive))
            print(f"the time is short: {len(alive)} trials are compared")
            continue
        if code:
            return code
        scored = [trial for trial in chosen if len(trial.scores) > number]
        if number and (len(scored) < 2 or scored[0].scores[number] is None):
            print(f"round {number + 1}: not enough time; round {number} decides")
            break
        alive, number = scored, number + 1
        print(f"round {number} of {len(sizes)}:\n{table_text(alive, number - 1)}")
    last = number - 1
    best = max(alive, key=lambda trial: (trial.scores[last] or 0.0, trial.number == 0))
    write_json(search.folder / PRESET, search.preset(best, last))
    _write_table(search.folder, search.trials)
    print(f"time: {search.spent:.1f} of {search.minutes:g} minutes; table: {search.folder / TABLE}")
    print(f"best: {best.name}; use it with: python train.py --config {quoted(search.folder / PRESET)} --data ...")
    return 0


def round_sizes(count: int) -> list[int]:
    """Number of trials of every round; the last round has two."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(max(2, -(-sizes[-1] // KEPT)))
    return sizes


@dataclass
class Search:
    """A search and its folder.

    Args:
        folder: of the search.
        minutes: for the whole search.
        options: the given options, by name.
        trials: all trials; the first one is the default.
        spent: minutes used so far, in all calls.
    """

    folder: Path
    minutes: float
    options: dict[str, Any]
    trials: list[Trial]
    spent: float = 0.0

    def train_round(
        self, chosen: Sequence[Trial], number: int, rounds: int, train: Train, now: Callable[[], float]
    ) -> int:
        """Train the trials of a round that have no score yet, for equal times; returns the exit code.

        A round gets an equal part of the time that is left. A trial takes longer than its `--minutes`: to start, and
        to evaluate on a busy machine. The next trials and rounds get less time for that, but half of the time planned
        for the later rounds stays theirs. A trial that would get less than half the time of the first one is left out.
        """
        kept = 0.5 * self.minutes * (rounds - number - 1) / rounds
        equal = max((trial.minutes[number] for trial in chosen if len(trial.minutes) > number), default=0.0)
        equal = equal or self.share(len(chosen), rounds - number)
        waiting = [trial for trial in chosen if len(trial.scores) == number]
        for place, trial in enumerate(waiting):
            slot = (self.minutes - kept - self.spent) / (len(waiting) - place) - self._excess()
            if slot < equal / 2 or equal <= 0:
                print(f"trial {trial.number} ({trial.name}): left out, no time")
                continue
            minutes, started = min(equal, slot), now()
            try:
                code, score = self._train(trial, number, minutes, train)
            finally:
                took = (now() - started) / 60
                self.spent += took
                self.save()
            if code:
                return code
            trial.scores.append(score)
            trial.minutes.append(round(minutes, 3))
            trial.took.append(round(took, 3))
            self.save()
        return 0

    def share(self, trials: int, rounds: int) -> float:
        """The `--minutes` of each of the trials of a round, if `rounds` are left and share the time that is left."""
        return (self.minutes - self.spent) / rounds / trials - self._excess()

    def _excess(self) -> float:
        """Minutes that a trial takes besides its `--minutes`, the mean of the last three."""
        trained = [each for trial in self.trials for each in zip(trial.scores, trial.minutes, trial.took, strict=False)]
        excess = [max(took - minutes, 0.0) for score, minutes, took in trained if score is not None][-3:]
        return sum(excess) / max(len(excess), 1)

    def _train(self, trial: Trial, number: int, minutes: float, train: Train) -> tuple[int, float | None]:
        """Train once: the exit code, and the score; None for options that cannot be trained in this time."""
        run = self.folder / f"trial-{trial.number}-round-{number + 1}"
        print(f"trial {trial.number} ({trial.name}), round {number + 1}, {minutes:.1f} minutes")
        try:
            if (run / "config.json").is_file():
                code = train(["--resume", str(run)])
            else:
                config = self.folder / "options.json"
                write_json(config, {**self.options, **trial.options, "minutes": minutes})
                code = train(["--config", str(config), "--run-dir", str(run)])
        except UserError as error:
            if trial.number == 0 and number == 0:
                if error.where == TOO_SHORT:
                    what = f"{self.minutes:g} minutes are {minutes:.1f} for each of {len(self.trials)} trials; "
                    raise UserError(TOO_SHORT, what + error.what, "increase it") from error
                raise
            warn(f"trial {trial.number} ({trial.name})", str(error), "it is skipped")
            return 0, None
        return code, None if code else best_score(run)

    def preset(self, best: Trial, number: int) -> dict[str, Any]:
        """The user's options and the best ones found, without paths of data and results."""
        places = ("data", "val_data", "train_split", "val_split", "shards", "classes", "device", "workers", "threads")
        given = {name: value for name, value in self.options.items() if name not in places}
        note = f"train.py --tune, {self.minutes:g} minutes: {METRIC} {best.scores[number] or 0:.4f}"
        return {"_source": note, **given, **best.options}

    def save(self) -> None:
        values = {"minutes": self.minutes, "spent": round(self.spent, 3), "options": self.options}
        write_json(self.folder / STATE, {**values, "trials": [asdict(each) for each in self.trials]})


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


def _open(settings: TrainSettings) -> Search:
    options = settings.options
    resumed = resumed_folder(settings, STATE)
    if resumed is not None:
        state = read_json(resumed / STATE, "a folder of train.py --tune")
        trials = [Trial(**each) for each in state.pop("trials")]
        return Search(resumed, trials=trials, **state)
    check_before_loading(options)
    minutes = options.duration.minutes or MINUTES
    trials = [Trial(number, values) for number, values in enumerate(candidates(_resolved(settings)))]
    folder = new_run_dir(options.run.run_dir, "tune")
    search = Search(folder, minutes, given_options(settings, NOT_FOR_TRIALS), trials)
    print(f"{len(trials)} trials in {len(round_sizes(len(trials)))} rounds, {minutes:g} minutes in total")
    search.save()
    return search


def _resolved(settings: TrainSettings) -> TrainOptions:
    """The options that the default trial will use, with those that are chosen from the data."""
    device = {"device": resolve_device(settings.options.machine.device)}
    settings = choose_splits(absolute_paths(settings.choose(AUTO, device)))
    return choose_new_run(settings, open_data(settings.options)[0])[0].options


def best_score(run: Path) -> float:
    """The best score in a run's metrics.csv."""
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return max((float(row[METRIC]) for row in rows if row.get(METRIC)), default=0.0)


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
    writer.writerow(["trial", "options", *(f"round_{n + 1}" for n in range(rounds)), "minutes"])
    for trial in trials:
        scores = ["" if score is None else f"{score:.4f}" for score in trial.scores]
        blank = [""] * (rounds - len(scores))
        writer.writerow([trial.number, json.dumps(trial.options), *scores, *blank, f"{sum(trial.took):.1f}"])
    write_atomically(folder / TABLE, text.getvalue().encode())
