"""Train one epoch: gradients, optimiser steps and mean losses."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from training.optim import ModelEMA
from utils import distributed
from utils.errors import Interrupted, RunError, is_out_of_memory, warn

Batch = tuple[Tensor, dict[str, Any]]


class NotFinite(RunError):
    """A loss or gradient is NaN or infinite; the weights were not updated by that step."""


@dataclass
class Trainer:
    """The objects and settings of an epoch, and its training step.

    Args:
        model: maps images (B, 3, H, W) uint8 to predictions.
        loss: maps (predictions, targets) to named scalars; the total loss is their sum.
        optimizer: its groups carry `base_rate`, which the schedule multiplies.
        factor: maps a step number to the factor of the learning rate.
        device: device of the model.
        amp: torch.bfloat16, torch.float16 or None for full precision.
        scaler: gradient scaler of float16.
        ema: the moving average to update, or None.
        accumulate: number of batches whose gradients are accumulated in one step.
        clip: maximum norm of the gradient; 0 for no limit.
        frozen: modules kept in eval mode, so that their batch norms keep their statistics.
        step: optimiser steps done so far.
        parts: number of parts that each batch is split into; doubled when memory runs out.
        should_stop: called after each step; true ends the epoch (a signal was received).
        interruptible: context of a step except its update; may raise Interrupted.
        after_step: called with the losses of each step's last batch, for logging.
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
    parts: int = 1
    should_stop: Callable[[], bool] = lambda: False
    interruptible: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    after_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None
    _error: NotFinite | None = None  # of a loss of this step, in a run of several processes
    _compared: bool = False  # whether the gradients of all processes were compared, at the first step
    _buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # buffers with their values before the step

    def set_train_mode(self) -> None:
        """Set the model to train mode, except the frozen modules."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def set_rate(self) -> None:
        """Set the learning rate of the current step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * self.factor(self.step)

    def gradient(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Compute the gradient of one step and the losses of each batch. `discard` reverts it.

        Raises:
            NotFinite: naming the images.
            RunError: if memory is insufficient even for one image at a time.
        """
        self.set_rate()
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        while True:
            try:
                return [
                    self.backward(images, targets, 1 / len(batches), number == len(batches))
                    for number, (images, targets) in enumerate(batches, 1)
                ]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the `except` block, because the exception keeps the failed tensors in memory.
            self.discard()
            self._cut(max(len(images) for images, _ in batches))

    def backward(
        self, images: Tensor, targets: Mapping[str, Any], share: float, is_last: bool = True
    ) -> dict[str, float]:
        """Accumulate the gradient of one batch, weighted by `share`. Returns its losses.

        Several processes exchange gradients with the last batch of a step only.
        """
        sums: dict[str, float] = {}
        pieces = list(_pieces(images, targets, self.parts))
        for number, (part_images, part_targets) in enumerate(pieces, 1):
            part = len(part_images) / len(images)
            waits = isinstance(self.model, DistributedDataParallel) and not (is_last and number == len(pieces))
            with self.model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                losses = self._backward(part_images, part_targets, share * part)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value * part
        return sums

    def _backward(self, images: Tensor, targets: Mapping[str, Any], share: float) -> dict[str, float]:
        images = images.to(self.device, non_blocking=True)
        targets = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in targets.items()}
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            predictions = self.model(images)
        losses = self.loss(predictions, targets)
        total = torch.stack(list(losses.values())).sum() * share
        if not total.isfinite():
            error = self._not_finite("loss", total.item() / share, targets.get("image_ids", ()))
            if distributed.world_size() == 1:
                raise error
            self._error = self._error or error  # passed on with the gradients: all processes raise in `update`
        (self.scaler.scale(total) if self.scaler else total).backward()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _not_finite(self, what: str, value: float, image_ids: Iterable[object]) -> NotFinite:
        names = ", ".join(map(str, image_ids))
        rate = self.optimizer.param_groups[-1]["lr"]
        return NotFinite(
            f"step {self.step}",
            f"the {what} is {value} (images {names}; learning rate {rate:.2g})",
            "it was not saved; use a lower --learning-rate, --amp none or --nan rollback",
        )

    def _cut(self, largest: int) -> None:
        """Halve the batch and double the accumulation."""
        if distributed.world_size() > 1:  # the others wait for gradients: one process cannot split its batch alone
            todo = "halve --batch-size and double --accumulate: the result is the same"
            raise RunError("memory", f"not enough for {largest} images at once", todo)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.parts >= largest:
            raise RunError("memory", "not enough for one image at this size", "use a smaller --input-size or model")
        self.parts *= 2
        size = -(-largest // self.parts)
        warn(
            "memory", f"not enough for {largest} images at once", f"continuing with {size} at a time in the same steps"
        )

    def discard(self) -> None:
        """Discard the accumulated gradient, and restore the batch-norm buffers."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def update(self, image_ids: Iterable[object] = ()) -> None:
        """Run one optimiser step with the accumulated gradient.

        Raises:
            NotFinite: naming `image_ids`. (The float16 scaler skips such a step.)
        """
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self._error is not None and self.scaler:
            raise self._error
        if self.clip > 0 or distributed.world_size() > 1:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip or math.inf)
            if not self.scaler and not norm.isfinite():  # seen by all processes, as the gradients are reduced
                errors = [error for error in distributed.gather(self._error) if error is not None]
                raise errors[0] if errors else self._not_finite("gradient", norm.item(), image_ids)
            if not self._compared and norm.isfinite():
                distributed.check_equal("gradient", norm.item())
                self._compared = True
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.ema_source or self.model)
        self._buffers, self._error = [], None  # a completed step cannot be discarded


@dataclass
class EpochProgress:
    """Progress within an epoch, to resume in the middle of it.

    Args:
        batch: batches done.
        images: images seen; in a run of several processes, on average.
        sums: each loss, summed over images.
    """

    batch: int
    images: float
    sums: dict[str, float]

    def add(self, num_images: int, losses: Mapping[str, float]) -> None:
        """Count one batch."""
        self.batch += 1
        self.images += num_images
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * num_images

    def merged(self, parts: Sequence[EpochProgress]) -> EpochProgress:
        """The mean over processes, each of which has processed its own images."""
        names = dict.fromkeys(name for part in parts for name in part.sums)
        sums = {name: sum(part.sums.get(name, 0.0) for part in parts) / len(parts) for name in names}
        return EpochProgress(self.batch, sum(part.images for part in parts) / len(parts), sums)

    def scaled(self, factor: float) -> EpochProgress:
        """The same means with `factor` times as many images: for all processes, or for one of them."""
        sums = {name: value * factor for name, value in self.sums.items()}
        return EpochProgress(self.batch, float(self.images * factor), sums)  # float, so that a resumed run is identical

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
        batches: (images, targets) from `progress.batch` on, at the start of a step.
        num_batches: of the whole epoch.
        title: label of the progress bar.
        progress: progress of an interrupted epoch.
        show: whether to show the progress bar.

    Returns:
        The progress, and whether the epoch is complete (False if `should_stop` ended it).
    """
    progress = progress or EpochProgress(0, 0, {})
    trainer.set_train_mode()
    done = progress.batch
    bar = tqdm(total=num_batches, initial=done, desc=title, disable=not show, dynamic_ncols=True, unit="batch")
    started, seen = time.perf_counter(), 0
    batches = iter(batches)
    with bar:
        while progress.batch < num_batches:
            try:
                with trainer.interruptible():
                    step = list(itertools.islice(batches, min(trainer.accumulate, num_batches - progress.batch)))
                    losses = trainer.gradient(step)
            except Interrupted:
                trainer.discard()
                return progress, False
            trainer.update(name for _, targets in step for name in targets.get("image_ids", ()))
            for (images, _), values in zip(step, losses, strict=True):
                progress.add(len(images), values)
                seen += len(images)
            trainer.after_step(trainer.step, losses[-1])
            bar.update(len(step))
            speed = f"{seen / (time.perf_counter() - started):.1f}img/s"
            rate = max(group["lr"] for group in trainer.optimizer.param_groups)
            losses_text = " ".join(f"{k} {v:.3f}" for k, v in progress.means().items())
            bar.set_postfix_str(f"{losses_text} lr {rate:.2g} {speed}")
            if trainer.should_stop():
                return progress, progress.batch == num_batches
    return progress, True


def _pieces(images: Tensor, targets: Mapping[str, Any], parts: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """Split a batch into at most `parts` pieces of nearly equal size, each with its targets."""
    if parts == 1:
        yield images, targets
        return
    first = 0
    for piece in images.chunk(parts):
        last = first + len(piece)
        own = (targets["image_index"] >= first) & (targets["image_index"] < last)
        yield (
            piece,
            {
                "boxes": targets["boxes"][own],
                **{name: targets[name][own] for name in ("labels", "weights") if name in targets},
                "image_index": targets["image_index"][own] - first,
                "image_ids": targets["image_ids"][first:last],
            },
        )
        first = last
