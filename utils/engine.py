"""One epoch of training: batches in, mean losses out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import RunError
from utils.optim import ModelEMA


@dataclass
class Trainer:
    """What an epoch works with.

    Args:
        model: images (B, 3, H, W) uint8 to predictions.
        loss: (predictions, targets) to named scalars; the total is their sum.
        optimizer: its groups carry `base_rate`, which the schedule multiplies.
        factor: step number to the factor of the learning rate.
        device: where the model is.
        amp: torch.bfloat16, torch.float16 or None for full precision.
        scaler: of float16's gradients.
        ema: the average to update, or None.
        accumulate: batches whose gradients make one step.
        clip: largest norm of the gradient, 0 for no limit.
        frozen: modules that stay in eval mode: their batch norms keep their averages.
        step: optimiser steps done so far.
        should_stop: asked after each batch; true ends the epoch there (a signal came).
        after_step: called with the losses of each batch, for logging.
    """

    model: nn.Module
    loss: Callable[[Sequence[Tensor], Mapping[str, Any]], dict[str, Tensor]]
    optimizer: torch.optim.Optimizer
    factor: Callable[[int], float]
    device: torch.device
    amp: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: ModelEMA | None = None
    ema_source: nn.Module | None = None
    accumulate: int = 1
    clip: float = 10.0
    frozen: tuple[nn.Module, ...] = ()
    step: int = 0
    should_stop: Callable[[], bool] = lambda: False
    after_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None

    def set_rate(self) -> None:
        """The learning rate of the present step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * self.factor(self.step)

    def backward(self, images: Tensor, targets: Mapping[str, Any], share: float) -> dict[str, Tensor]:
        """Add the gradient of one batch; `share` is its part in the step."""
        images = images.to(self.device, non_blocking=True)
        targets = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in targets.items()}
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            predictions = self.model(images)
        losses = self.loss(predictions, targets)
        total = torch.stack(list(losses.values())).sum() * share
        if not total.isfinite():
            names = ", ".join(map(str, targets.get("image_ids", ())))
            rate = self.optimizer.param_groups[-1]["lr"]
            raise RunError(
                f"step {self.step}",
                f"the loss is {total.item()} (images {names}; learning rate {rate:.2g})",
                "nothing of it was saved; lower --learning-rate, or --amp none, and --resume",
            )
        (self.scaler.scale(total) if self.scaler else total).backward()
        return {name: value.detach() for name, value in losses.items()}

    def update(self) -> None:
        """One optimiser step with the gradient that has been added up."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.clip > 0:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.ema_source or self.model)


@dataclass
class EpochProgress:
    """How far an epoch has come, so that it can be taken up in its middle.

    Args:
        batch: batches done.
        images: images seen.
        sums: each loss, summed over images.
    """

    batch: int
    images: int
    sums: dict[str, float]

    def means(self) -> dict[str, float]:
        """Mean losses so far."""
        return {name: value / max(self.images, 1) for name, value in self.sums.items()}


def train_epoch(
    trainer: Trainer,
    batches: Iterable[tuple[Tensor, dict[str, Any]]],
    num_batches: int,
    title: str,
    progress: EpochProgress | None = None,
    show: bool = True,
) -> tuple[EpochProgress, bool]:
    """Train on the rest of an epoch.

    Args:
        batches: (images, targets) from `progress.batch` on.
        num_batches: of the whole epoch.
        title: at the left of the bar.
        progress: where an interrupted epoch stood.
        show: whether to draw the bar.

    Returns:
        The progress, and whether the epoch is whole (False: `should_stop` ended it).
    """
    progress = progress or EpochProgress(0, 0, {})
    trainer.model.train()
    for module in trainer.frozen:
        module.eval()
    bar = tqdm(total=num_batches, initial=progress.batch, desc=title, disable=not show, dynamic_ncols=True, unit="batch")
    started, seen = time.perf_counter(), 0
    with bar:
        for images, targets in batches:
            first = progress.batch // trainer.accumulate * trainer.accumulate
            share = 1 / min(trainer.accumulate, num_batches - first)
            trainer.set_rate()
            losses = {name: float(v) for name, v in trainer.backward(images, targets, share).items()}
            progress.batch += 1
            progress.images += len(images)
            seen += len(images)
            for name, value in losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value * len(images)
            whole_step = progress.batch % trainer.accumulate == 0 or progress.batch == num_batches
            if whole_step:
                trainer.update()
                trainer.after_step(trainer.step, losses)
            bar.update()
            speed = f"{seen / (time.perf_counter() - started):.1f}img/s"
            bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in progress.means().items()) + " " + speed)
            if whole_step and trainer.should_stop():
                return progress, progress.batch == num_batches
    return progress, True
