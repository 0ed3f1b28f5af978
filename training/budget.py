"""How many epochs fit into the time that the user has: a few steps and a few images are timed, nothing is kept."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from typing import Any

import numpy as np
import torch

from data.index import DatasetIndex
from data.loader import TrainLoader
from nets.detector import Detector
from nets.yolov4 import YOLOv4
from training.setup import build_trainer, freeze
from utils import distributed
from utils.distributed import say
from utils.errors import UserError
from utils.images import read_image

WARM_UP_STEPS, TIMED_STEPS = 2, 4
TIMED_IMAGES = 16
# what an epoch has besides steps and scoring: updates, checkpoints, curves, metrics
OVERHEAD = 1.1
SCORE_SHARE = 0.1  # part of the time that scoring may take, where --eval-every is not given


def fit_epochs(
    options: Any, model: YOLOv4, loader: TrainLoader, train_index: DatasetIndex, val_index: DatasetIndex
) -> Any:
    """`--minutes`: the options with as many epochs as fit, so that the schedule ends when the time does.

    Args:
        options: `train.TrainOptions`.
        model: stays as it is.
        loader: of the training split, for this alone: it is closed.
        train_index, val_index: the splits.

    Raises:
        UserError: if not even one epoch fits.
    """
    step = _time_step(options, model, loader, train_index)
    image = _time_image(model, val_index)
    steps = -(-len(loader) // options.accumulate)
    epoch = OVERHEAD * step * steps
    score = image * len(val_index) / distributed.world_size()
    seconds = 60 * options.minutes
    every = options.eval_every
    if every == type(options)().eval_every:
        every = max(every, math.ceil(score / (SCORE_SHARE * epoch)))
    epochs = int((seconds - score) / (epoch + score / every))
    epochs, every = distributed.gather((epochs, every))[0]  # the main process's for all: they must end together
    if epochs < 1:
        need = (epoch + score) / 60
        raise UserError("--minutes", f"{options.minutes:g} is less than one epoch takes ({need:.1f})", "give more")
    say(
        f"{options.minutes:g} minutes: {epochs} epochs of {steps} steps of {step:.2f} s, scored every {every} in "
        f"{score:.1f} s"
    )
    return dataclasses.replace(options, epochs=epochs, eval_every=every)


def _time_step(options: Any, model: YOLOv4, loader: TrainLoader, index: DatasetIndex) -> float:
    """Seconds of one step, loading included; the weights stay as they are."""
    trial = copy.deepcopy(model)
    trainer = build_trainer(options, trial, None, loader.batch_size, len(loader), index)
    freeze(trainer, trial.backbone, options, options.freeze_epochs)
    trial.train()
    for module in trainer.frozen:
        module.eval()
    loader.set_epoch(0, options.mosaic > 0, 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    started = 0.0
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        if number == WARM_UP_STEPS:
            _wait(trainer.device)
            started = time.perf_counter()
        trainer.gradient(list(itertools.islice(batches, options.accumulate)))
        trainer.discard()
    _wait(trainer.device)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    loader.close()
    return seconds


def _time_image(model: YOLOv4, index: DatasetIndex) -> float:
    """Seconds to score one image: reading and detecting, without the figures."""
    detector = Detector.from_model(copy.deepcopy(model), str(next(model.parameters()).device))
    chosen = np.linspace(0, len(index) - 1, min(TIMED_IMAGES, len(index))).astype(int)
    images = []
    started = time.perf_counter()
    for position in chosen:
        try:
            images.append(read_image(index.path(int(position))))
        except (UserError, OSError):
            continue  # the scoring itself will name it
    if images:
        detector.detect_batch(images)
    return (time.perf_counter() - started) / max(len(chosen), 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
