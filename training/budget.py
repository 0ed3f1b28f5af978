"""Time budget of a run: plan the epochs that fit into --minutes, and estimate the remaining time."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data.index import DatasetIndex
from data.loader import TrainLoader
from evaluation.evaluator import EVAL_THRESHOLDS, DetectorLike
from imaging.image_io import read_image
from nets.yolov4 import YOLOv4
from training.choose import TrainSettings
from training.options import TrainOptions
from training.setup import build_trainer, freeze
from training.summary import memory_used
from utils import distributed
from utils.config import AUTO
from utils.distributed import say
from utils.errors import UserError
from utils.text import counted

WARM_UP_STEPS, TIMED_STEPS = 2, 4
TIMED_IMAGES = 16
# overhead of an epoch besides steps and evaluation: checkpoints, curves, metrics
OVERHEAD = 1.1
SCORE_SHARE = 0.1  # maximum share of the time for evaluation, if --eval-every is not given
# The first measurement covers only a few steps, possibly on a busy machine. A budget is therefore rejected only if not
# even this fraction of an epoch seems to fit.
LEAST_EPOCHS = 0.25
PLANS = 100  # number of times that a run is replanned
TOLERANCE = 0.05  # a plan that ends this close to the budget (relative) is kept
MEMORY = 0.5  # weight of earlier measurements in the moving average


@dataclass
class Clock:
    """Time of a run's steps and evaluations, including the runs before a resume.

    Args:
        spent: seconds of the run so far, up to `started`.
        step: seconds per step, a moving average.
        score: seconds of the last evaluation.
        now: returns the time of a clock in seconds.
    """

    spent: float = 0.0
    step: float = 0.0
    score: float = 0.0
    now: Callable[[], float] = time.monotonic
    _since: float | None = None
    _lap: float | None = None
    _lap_steps: int = 0

    def start(self, before: float = 0.0) -> None:
        """Start or continue the clock, `before` seconds ago."""
        self._since = self.now() - before

    def total(self) -> float:
        """Seconds of the run so far."""
        return self.spent + (0.0 if self._since is None else self.now() - self._since)

    def begin_epoch(self) -> None:
        """Start to time the steps of an epoch."""
        self._lap, self._lap_steps = self.now(), 0

    def count_step(self) -> None:
        self._lap_steps += 1

    def measure(self) -> None:
        """Add the steps since the last measurement to the average."""
        if self._lap is None or not self._lap_steps:
            return
        seconds = (self.now() - self._lap) / self._lap_steps
        self.step = MEMORY * self.step + (1 - MEMORY) * seconds if self.step else seconds
        self.begin_epoch()


def expected_text(epochs: int, seconds: float) -> str:
    """`expected: 50 epochs, about 12 min with scoring, 1.3 GB of memory`, of the whole run."""
    memory = memory_used()
    memory = f", {memory}" if memory else ""
    return f"expected: {counted(epochs, 'epoch')}, about {duration_text(seconds)} with scoring{memory}"


def plan_steps(
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    eval_every: int,
    left: float,
    step_seconds: float,
    score_seconds: float,
    budget: float,
    most_steps: int,
) -> int:
    """Total steps of a run that ends within the time budget: whole epochs, if at least one more fits.

    Args:
        step: steps done.
        total_steps: the current plan; kept if it ends within TOLERANCE of the budget.
        steps_per_epoch, eval_every: settings of the run.
        left: remaining seconds.
        step_seconds, score_seconds: measured seconds per step and per evaluation.
        budget: seconds for the whole run.
        most_steps: maximum number of steps allowed by the user.
    """
    each = OVERHEAD * step_seconds + score_seconds / (eval_every * steps_per_epoch)
    need = (total_steps - step) * each + score_seconds
    is_late, is_early = need > left + TOLERANCE * budget, need + steps_per_epoch * each < left - TOLERANCE * budget
    if not is_late and not (is_early and total_steps < most_steps):
        return total_steps
    fit = step + max(int((left - score_seconds) / each), 0)
    whole = fit // steps_per_epoch * steps_per_epoch
    return min(whole if whole > step else fit, most_steps)


def fit_epochs(
    settings: TrainSettings, model: YOLOv4, loader: TrainLoader, index: DatasetIndex, clock: Clock
) -> TrainSettings:
    """Choose the number of epochs for `--minutes`, up to the given number, by timing a few steps.

    Args:
        settings: all other options have their final values.
        model: left unchanged.
        loader: a loader of the training split, used only here and closed.
        index: the training split.
        clock: of the run so far; its `score` is an estimate (`time_scoring`), its `step` is set here.

    Raises:
        UserError: if a quarter of an epoch does not fit.
    """
    options, minutes = settings.options, settings.options.duration.minutes
    clock.step = step = _time_step(options, model, loader, index)
    score, left = clock.score, 60 * minutes - clock.total()
    steps = -(-len(loader) // options.duration.accumulate)
    epoch = OVERHEAD * step * steps
    every = options.duration.eval_every
    if not settings.is_given("eval_every"):
        every = max(every, math.ceil(score / (SCORE_SHARE * epoch)))
    fit = (left - score) / (epoch + score / every)
    most = options.duration.epochs if settings.is_given("epochs") else math.inf
    epochs = max(int(min(fit, most)), 1)
    epochs, every, fit = distributed.gather((epochs, every, fit))[0]  # all processes use the main process's plan
    if fit < LEAST_EPOCHS:
        need = (clock.total() + epoch + score) / 60
        raise UserError("--minutes", f"{minutes:g} is not enough for one epoch ({need:.1f})", "increase it")
    say(
        f"{minutes:g} minutes: {counted(epochs, 'epoch')} of {steps} steps of {step:.2f} s, "
        f"evaluated every {every}: {score:.1f} s"
    )
    values = {"epochs": epochs, "eval_every": every}
    values = {n: v for n, v in values.items() if v != getattr(options.duration, n) or not settings.is_given(n)}
    why = f"fits {minutes:g} minutes at {step:.2f} s per step"
    return settings.choose(AUTO, values, dict.fromkeys(values, why))


def duration_text(seconds: float) -> str:
    """Format a duration: `40 s`, `25 min`, `3 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _time_step(options: TrainOptions, model: YOLOv4, loader: TrainLoader, index: DatasetIndex) -> float:
    """Seconds of one step, including loading; the weights are left unchanged."""
    trial = copy.deepcopy(model)
    trainer = build_trainer(options, trial, None, loader.batch_size, len(loader), index)
    freeze(trainer, trial.backbone, options, options.start.freeze_epochs)
    trainer.set_train_mode()
    loader.set_epoch(0, options.augment.mosaic > 0, 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    started = 0.0
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        if number == WARM_UP_STEPS:
            _wait(trainer.device)
            started = time.perf_counter()
        trainer.gradient(list(itertools.islice(batches, options.duration.accumulate)))
        trainer.discard()
    _wait(trainer.device)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    loader.close()
    return seconds


def time_scoring(detector: DetectorLike, index: DatasetIndex) -> float:
    """Estimated seconds to score a split in all processes, by a few of its images; without the metrics."""
    return _time_image(detector, index) * len(index) / distributed.world_size()


def _time_image(detector: DetectorLike, index: DatasetIndex) -> float:
    """Seconds to read an image and detect in it, with the thresholds and tiles of an evaluation."""
    chosen = np.linspace(0, len(index) - 1, min(TIMED_IMAGES, len(index))).astype(int)
    images = []
    started = time.perf_counter()
    for position in chosen:
        try:
            images.append(read_image(index.path(int(position))))
        except (UserError, OSError):
            continue  # the evaluation reports it
    if images:
        detector.detect_batch(images, EVAL_THRESHOLDS)
    return (time.perf_counter() - started) / max(len(chosen), 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
