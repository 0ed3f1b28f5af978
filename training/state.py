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
from training.choose import DATA_PATHS, MACHINE, TrainSettings, absolute_paths
from training.engine import EpochProgress, NotFinite, Trainer
from training.optim import ModelEMA
from training.options import BEST_BY, TrainOptions
from utils import distributed
from utils.config import DEFAULT, TYPED, check_options, get_option, read_settings, replace_options, typed_form
from utils.errors import RunError, UserError
from utils.text import counted, quoted

RESUME_AUTO = "auto"
# options that may change when a run is resumed: machine and location of the data, but not the computation
FREE_ON_RESUME = frozenset({"resume", "device", "workers", "threads", "tensorboard", "patience", "show_config"})


def best_score(figures: Mapping[str, Any], best_by: str) -> float:
    """The score that selects the best checkpoint; a metric that is None counts as 0."""
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
    total_steps: int = 0  # of the whole run, if --minutes has replanned it; 0: from the options
    most_epochs: int = 100_000  # the user's limit, with --minutes
    seconds: float = 0.0  # of the run so far
    speeds: list[float] = field(default_factory=lambda: [0.0, 0.0])  # seconds of a step, of an evaluation
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunState:
    """The state of a run that changes during training. With the random states, it is all that resuming needs."""

    model: YOLOv4
    ema: ModelEMA | None
    trainer: Trainer
    loader: TrainLoader
    progress: Progress = field(default_factory=Progress)

    def scored_model(self) -> YOLOv4:
        """The network that is evaluated and saved: the moving average, if there is one."""
        model = self.model if self.ema is None else self.ema.model
        assert isinstance(model, YOLOv4)
        return model

    def require_finite(self) -> None:
        """Raise NotFinite if the last step made a weight NaN or infinite, which shows in the loss one step later."""
        bad = [n for n, t in self.model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            rate = self.trainer.optimizer.param_groups[-1]["lr"]
            what = f"{bad[0]} is no longer finite (learning rate {rate:.2g})"
            todo = "it was not saved; use a lower --learning-rate, --amp none or --nan rollback"
            raise NotFinite(f"step {self.trainer.step}", what, todo)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors for `Checkpoint.training`. The evaluated weights are in `Checkpoint.weights`."""
        trainer = self.trainer
        self.progress.parts = trainer.parts
        of_all = self.progress.batch.scaled(
            distributed.world_size()
        )  # the run may be resumed with another number of processes
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
        """Restore the state of the run that wrote `checkpoint`, in all processes.

        Raises:
            UserError: if the checkpoint has no valid training state.
            RunError: if the file differs between processes.
        """
        try:
            self._load(checkpoint.training or {}, checkpoint.weights)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(path, f"its training state cannot be used: {error}", "start a new run") from error
        if len(set(distributed.gather(self.progress.step))) > 1:
            raise RunError(path, "differs between the processes", "keep the run on a shared disk")

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
    """Seed all random generators. On the CPU, also make the results bit-exact."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cpu":  # it costs little there, and makes a resumed run identical to an uninterrupted one
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def find_run(settings: TrainSettings) -> TrainSettings:
    """Set `--resume` to the run that `--resume auto` means, or that torchrun has restarted."""
    run = settings.options.run
    if run.resume != RESUME_AUTO and not (distributed.is_restart() and run.resume is None):
        return settings
    if run.run_dir is None:
        raise UserError("--run-dir", "is required to find the run to resume", "give its folder")
    if (Path(run.run_dir) / "config.json").is_file():
        return settings.choose(DEFAULT, {"run_dir": None}).choose(TYPED, {"resume": run.run_dir})
    return settings.choose(DEFAULT, {"resume": None})


def read_run(asked: TrainSettings) -> tuple[TrainSettings, Checkpoint | None]:
    """Read the settings of a run to resume, and its last checkpoint (None if it was stopped before the first one).

    Args:
        asked: the settings of the command line.

    Raises:
        UserError: if options that must not change within a run differ (all are listed), or if the run has results but
            no last.pth, so that a restart would overwrite them.
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
    free = FREE_ON_RESUME.union(DATA_PATHS)
    at_start = saved.only_asked() if saved.asked else saved
    then = replace_options(saved.options, {name: get_option(at_start.options, name) for name in saved.asked})
    fixed = {n: v for n, v in values.items() if n not in free and v != get_option(saved.options, n)}
    _refuse_differences(then, fixed, folder)  # both what was asked for and what was made of it may be repeated
    checkpoint = load_checkpoint(folder / "last.pth") if os.path.lexists(folder / "last.pth") else None
    if checkpoint is None:
        _refuse_results(folder)
        saved = at_start  # nothing was trained: the rest is chosen again
    else:
        then = check_options(TrainOptions, _check_info(checkpoint.info, folder / "last.pth"))
        planned = {"epochs", "eval_every"} if saved.options.duration.minutes else set()
        known = set(checkpoint.info.get("options", {})) & set(saved.origins) - free - planned - {"run_dir"} - set(
            MACHINE
        )
        _refuse_differences(then, {n: get_option(saved.options, n) for n in known}, folder)
    for name in MACHINE:  # may have been chosen for another machine
        if not saved.is_given(name):
            saved = saved.choose(DEFAULT, {name: get_option(TrainOptions(), name)})
    saved = saved.choose(TYPED, {n: v for n, v in values.items() if n in free})
    return saved.choose(TYPED, {"resume": str(folder)}), checkpoint


def _refuse_results(folder: Path) -> None:
    """Check that a run without last.pth has no results that a restart would overwrite. Raises UserError."""
    results = [name for name in ("best.pth", "metrics.csv") if os.path.lexists(folder / name)]
    if results:
        todo = f"restore last.pth, or start a new run from it: --weights {quoted(folder / 'best.pth')} --run-dir NEW"
        if results[0] != "best.pth":
            todo = "restore last.pth, or start a new run with another --run-dir"
        raise UserError(folder / "last.pth", f"is missing, which resuming needs; {results[0]} exists", todo)


def _check_info(info: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The training options stored in a checkpoint. Raises UserError if it has none."""
    options, data = info.get("options", {}), info.get("data", {})
    processes, epoch = info.get("world_size", 1), info.get("epoch", 0)
    counts = all(isinstance(each, int) and each >= low for each, low in ((processes, 1), (epoch, 0)))
    if not counts or not isinstance(options, dict) or not isinstance(data, dict):
        raise UserError(path, "contains no options of a run", "give the folder of a run of train.py")
    return options


def share_batch(batch_size: int, checkpoint: Checkpoint | None) -> tuple[int, int]:
    """The number of processes at the start of a run, and the batch size of each current process.

    Raises:
        UserError: if the images of a step cannot be divided evenly among the current processes.
    """
    now = distributed.world_size()
    then = now if checkpoint is None else checkpoint.info.get("world_size", 1)
    if then * batch_size % now:
        what = f"{now} processes cannot share the run's {then * batch_size} images per step"
        raise UserError("--resume", what, f"start {then} processes, or a divisor of {then * batch_size}")
    return then, then * batch_size // now


def epoch_parts(options: TrainOptions) -> int:
    """Number of parts of an epoch that are read independently: with shards, one for each worker of all processes."""
    return distributed.world_size() * max(options.machine.workers, 1) if options.dataset.shards else 1


def check_parts(checkpoint: Checkpoint, progress: Progress, parts: int) -> None:
    """Check that the rest of an epoch is divided like its beginning; else images would be skipped and repeated.

    Raises:
        UserError: with both numbers of workers.
    """
    then = checkpoint.info.get("parts", parts)
    if progress.batch.batch and then != parts:
        what = f"epoch {progress.epoch + 1} was started with {then} workers in total, not {parts}"
        raise UserError("--workers", what, "use the same number; it may only change between epochs")


def describe_end(checkpoint: Checkpoint, folder: str | None) -> str:
    """Text with the epochs of a finished run, whose checkpoint has no training state. UserError if not finished."""
    if not checkpoint.info.get("finished", True):
        path = Path(folder or "") / "last.pth"
        raise UserError(
            path,
            "contains no training state (like every best.pth)",
            f"start a new run from it: --weights {quoted(path)}",
        )
    return f"finished after {counted(int(checkpoint.info.get('epoch', 0)), 'epoch')}"


def describe_versions() -> dict[str, Any]:
    """Versions of the software, and the date, for `Checkpoint.info`."""
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
        todo = f"leave these out, or start a new run from its weights: --weights {quoted(folder / 'last.pth')}"
        raise UserError("--resume", "differs from the run in " + ", ".join(differences), todo)


def _random_states() -> dict[str, Any]:
    """Random states of torch, NumPy and Python. Loader and augmentation are seeded by seed, epoch and image index."""
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
