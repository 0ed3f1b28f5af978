"""Save and resume runs: the training state, and checks that a resumed run has the same settings."""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from data.loader import TrainLoader
from data.skips import Skip
from nets.model_config import check_input_size
from nets.weights.checkpoint import Checkpoint, load_checkpoint
from nets.yolov4 import YOLOv4
from training.choose import MACHINE, TrainSettings, absolute_paths
from training.engine import EpochProgress, NotFinite, Trainer
from training.optim import ModelEMA
from training.options import BEST_BY, TrainOptions
from utils import distributed
from utils.config import DEFAULT, TYPED, check_options, get_option, read_settings, typed_form
from utils.errors import RunError, UserError

RESUME_AUTO = "auto"
# what may differ when a run is resumed: where it runs and where its data is, not what it computes
FREE_ON_RESUME = frozenset({"resume", "device", "workers", "threads", "tensorboard", "patience", "show_config"})
FREE_PATHS = frozenset({"data", "val_data", "classes", "shards"})  # what is in them is compared by its content


def best_score(figures: Mapping[str, Any], best_by: str) -> float:
    """The number that the best checkpoint has most of; a figure that is None counts as 0."""
    return sum(weight * (figures.get(name) or 0.0) for name, weight in BEST_BY[best_by].items())


@dataclass
class Progress:
    """The progress of a run."""

    epoch: int = 0
    batch: EpochProgress = field(default_factory=lambda: EpochProgress(0, 0, {}))
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    stale: int = 0
    evaluated: bool = True
    parts: int = 1
    rollbacks: int = 0
    total_steps: int = 0  # of the whole run, where --minutes planned again; 0: as the options say
    most_epochs: int = 100_000  # that the user allows, with --minutes
    seconds: float = 0.0  # of the run so far
    speeds: list[float] = field(default_factory=lambda: [0.0, 0.0])  # seconds of a step, of an evaluation
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunState:
    """All of a run that changes while it trains; with the random states it is all that resuming needs."""

    model: YOLOv4
    ema: ModelEMA | None
    trainer: Trainer
    loader: TrainLoader
    progress: Progress = field(default_factory=Progress)

    def scored_model(self) -> YOLOv4:
        """The network that is scored and kept: the average, where there is one."""
        model = self.model if self.ema is None else self.ema.model
        assert isinstance(model, YOLOv4)
        return model

    def require_finite(self) -> None:
        """Raises NotFinite if the last step has spoilt the weights, which only the loss of the next one would tell."""
        bad = [n for n, t in self.model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            rate = self.trainer.optimizer.param_groups[-1]["lr"]
            what = f"{bad[0]} is no longer finite (learning rate {rate:.2g})"
            todo = "nothing of it was saved; lower --learning-rate, or --amp none, or --nan rollback"
            raise NotFinite(f"step {self.trainer.step}", what, todo)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, for `Checkpoint.training`; the scored model's weights are a checkpoint's own."""
        trainer = self.trainer
        self.progress.parts = trainer.parts
        of_all = self.progress.batch.scaled(distributed.world_size())  # as another number of processes may go on
        return {
            "progress": dataclasses.asdict(dataclasses.replace(self.progress, batch=of_all)),
            "model": self.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler else None,
            "ema_steps": self.ema.steps if self.ema else 0,
            "skips": [dataclasses.asdict(skip) for skip in self.loader.skips],
            "random": _random_states(),
        }

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take up where the run that wrote `checkpoint` left, in this process and in all others.

        Raises:
            UserError: naming `path`, if it holds no such state.
            RunError: if it is not the same file in every process.
        """
        try:
            self._load(checkpoint.training or {}, checkpoint.weights)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(path, f"its training state cannot be used: {error}", "start anew") from error
        if len(set(distributed.gather(self.progress.step))) > 1:
            raise RunError(path, "is another file in each process", "keep the run on a shared disk")

    def _load(self, state: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(weights)
            self.ema.steps = state["ema_steps"]
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        if self.trainer.scaler and state["scaler"]:
            self.trainer.scaler.load_state_dict(state["scaler"])
        values = state["progress"]
        batch = EpochProgress(**values["batch"]).scaled(1 / distributed.world_size())
        self.progress = Progress(**{**values, "batch": batch})
        self.trainer.step, self.trainer.parts = self.progress.step, self.progress.parts
        self.loader.restore_skips([Skip(**values) for values in state.get("skips", ())])
        _set_random_states(state["random"])


def seed_everything(seed: int, device: torch.device) -> None:
    """The same random numbers, and on the CPU the same result to the last bit."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cpu":  # the price is small there, and a resumed run is then the same run
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def find_run(settings: TrainSettings) -> TrainSettings:
    """The settings with the run that `--resume auto` means, or that torchrun has started again."""
    run = settings.options.run
    if run.resume != RESUME_AUTO and not (distributed.is_restart() and run.resume is None):
        return settings
    if run.run_dir is None:
        raise UserError("--run-dir", "is missing: there is no telling which run to go on with", "give a folder")
    if (Path(run.run_dir) / "config.json").is_file():
        return settings.choose(DEFAULT, {"run_dir": None}).choose(TYPED, {"resume": run.run_dir})
    return settings.choose(DEFAULT, {"resume": None})


def read_run(asked: TrainSettings) -> tuple[TrainSettings, Checkpoint | None]:
    """The settings of a run that is to go on, and its last checkpoint; None if it ended before it wrote one.

    Args:
        asked: the settings of the command line.

    Raises:
        UserError: listing every option that may not change in the middle of a run and does; or if the run has results
            but no last.pth, so that going on would begin anew and overwrite them.
    """
    folder = Path(asked.options.run.resume or "")
    if folder.name == "last.pth":
        folder = folder.parent
    if not os.path.isfile(folder / "config.json"):
        raise UserError("--resume", f"{folder} is not the folder of a run (no config.json)", "give a --run-dir")
    saved = read_settings(TrainOptions, folder / "config.json")
    asked = absolute_paths(asked)
    given = [name for name in asked.origins if asked.is_given(name)]
    values = {name: get_option(asked.options, name) for name in given}
    free = FREE_ON_RESUME | FREE_PATHS
    _refuse_differences(saved.options, {n: v for n, v in values.items() if n not in free}, folder)
    checkpoint = load_checkpoint(folder / "last.pth") if os.path.lexists(folder / "last.pth") else None
    if checkpoint is None:
        _refuse_results(folder)
    else:
        then = check_options(TrainOptions, _check_info(checkpoint.info, folder / "last.pth"))
        planned = {"epochs", "eval_every"} if saved.options.duration.minutes else set()
        known = set(checkpoint.info.get("options", {})) & set(saved.origins) - free - planned - {"run_dir"} - set(
            MACHINE
        )
        _refuse_differences(then, {n: get_option(saved.options, n) for n in known}, folder)
    for name in MACHINE:  # chosen by another machine
        if not saved.is_given(name):
            saved = saved.choose(DEFAULT, {name: get_option(TrainOptions(), name)})
    saved = saved.choose(TYPED, {n: v for n, v in values.items() if n in free})
    return saved.choose(TYPED, {"resume": str(folder)}), checkpoint


def _refuse_results(folder: Path) -> None:
    """A run that has no last.pth can begin again only if it has nothing to lose."""
    results = [name for name in ("best.pth", "metrics.csv") if os.path.lexists(folder / name)]
    if results:
        todo = f"restore last.pth, or start a new run from it: --weights {folder / 'best.pth'} --run-dir NEW"
        if results[0] != "best.pth":
            todo = "restore last.pth, or start anew with another --run-dir"
        raise UserError(folder / "last.pth", f"is not there, which going on needs, but {results[0]} is", todo)


def _check_info(info: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options that a checkpoint was made with. Raises UserError for a file that is not of a run."""
    options, data = info.get("options", {}), info.get("data", {})
    processes, epoch = info.get("world_size", 1), info.get("epoch", 0)
    counts = all(isinstance(each, int) and each >= low for each, low in ((processes, 1), (epoch, 0)))
    if not counts or not isinstance(options, dict) or not isinstance(data, dict):
        raise UserError(path, "does not say what run it is of", "give the folder of a run that train.py made")
    return options


def share_batch(batch_size: int, checkpoint: Checkpoint | None) -> tuple[int, int]:
    """The number of processes that a run began with, and the batch of each of the present ones.

    Raises:
        UserError: if a run cannot go on with as many images a step as it began with.
    """
    now = distributed.world_size()
    then = now if checkpoint is None else checkpoint.info.get("world_size", 1)
    if then * batch_size % now:
        what = f"{now} processes cannot share the run's {then * batch_size} images a step"
        raise UserError("--resume", what, f"start {then} processes, or another divisor of it")
    return then, then * batch_size // now


def epoch_parts(options: TrainOptions) -> int:
    """Into how many parts an epoch is cut that are read on their own: of shards, one for each worker of all."""
    return distributed.world_size() * max(options.machine.workers, 1) if options.dataset.shards else 1


def check_parts(checkpoint: Checkpoint, progress: Progress, parts: int) -> None:
    """Refuse to cut the rest of an epoch in another way than its beginning: images would be lost and repeated.

    Raises:
        UserError: naming both ways.
    """
    then = checkpoint.info.get("parts", parts)
    if progress.batch.batch and then != parts:
        what = f"epoch {progress.epoch + 1} was begun by {then} workers of all processes, not by {parts}"
        raise UserError("--workers", what, "go on with as many; it may be changed between epochs")


def describe_end(checkpoint: Checkpoint, folder: str | None) -> str:
    """After how many epochs a run ended whose checkpoint has no training state. Raises UserError if it did not end."""
    if not checkpoint.info.get("finished", True):
        path = Path(folder or "") / "last.pth"
        raise UserError(
            path, "holds no training state, as best.pth does not", f"start a new run from it: --weights {path}"
        )
    return f"finished after {checkpoint.info.get('epoch')} epochs"


def describe_versions() -> dict[str, Any]:
    """With what a run was made and when, for `Checkpoint.info`."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {
        "versions": {name: str(version) for name, version in versions.items()},
        "saved": time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))),
    }


def _refuse_differences(saved: TrainOptions, values: dict[str, Any], folder: Path) -> None:
    then = {name: get_option(saved, name) for name in values}
    sizes = [each["input_size"] for each in (values, then) if each.get("input_size")]
    if len(sizes) == 2 and check_input_size(sizes[0]) == check_input_size(sizes[1]):
        del values["input_size"]
    differences = [
        f"{typed_form(name, value)} (the run: {then[name]})"
        for name, value in sorted(values.items())
        if value != then[name]
    ]
    if differences:
        todo = f"leave these out, or start a new run, from what was learnt: --weights {folder / 'last.pth'}"
        raise UserError("--resume", "differs from the run in " + ", ".join(differences), todo)


def _random_states() -> dict[str, Any]:
    """Of torch, NumPy and Python; workers and augmentation draw from the seed, the epoch and the image's place."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, *words, next_gauss],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(("MT19937", states["numpy"][0].numpy(), *states["numpy"][1:]))
    version, *words, next_gauss = states["python"]
    random.setstate((version, tuple(words), next_gauss))
