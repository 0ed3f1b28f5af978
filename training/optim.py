"""Parameter groups, optimisers, learning-rate schedules and the exponential moving average of weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# learning rate for a batch of 16 images. SGD's scales with the batch (https://arxiv.org/abs/1706.02677, section 2.1),
# Adam's with its square root (https://arxiv.org/abs/2205.10287).
BASE_BATCH = 16
# 5e-3 is large for Adam. It is right here because batch-normed convolutions are scale-invariant: the effective rate is
# relative to the size of the weights, which is large after He initialisation. 1e-3 learnt half as much in the same
# number of steps (docs/EXPERIMENTS.md).
BASE_RATES = {"sgd": 1e-2, "adam": 5e-3, "adamw": 5e-3}
# step schedule: multiply by 0.1 after these parts of the run (YOLOv4, section 4.1: 0.8 and 0.9)
STEPS = (0.8, 0.9)
EMA_HORIZON = 0.1  # horizon of the automatic average, as a fraction of the run


def scaled_lr(optimizer: str, batch: int, rate: float | None = None) -> float:
    """Scale the learning rate from a batch of 16 to `batch` images per step (None: the optimiser's default rate)."""
    rate = BASE_RATES[optimizer] if rate is None else rate
    ratio = batch / BASE_BATCH
    return rate * (ratio if optimizer == "sgd" else math.sqrt(ratio))


def parameter_groups(model: nn.Module, rate: float, weight_decay: float, backbone_rate: float) -> list[dict]:
    """Four groups: backbone or not, convolution weights (decayed) or norms and biases (never decayed)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(b, d): [] for b in (False, True) for d in (True, False)}
    for name, parameter in model.named_parameters():
        groups[name.startswith("backbone."), parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * (backbone_rate if of_backbone else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
            "name": f"{'backbone' if of_backbone else 'neck and head'}, {'decayed' if decayed else 'not decayed'}",
        }
        for (of_backbone, decayed), parameters in groups.items()
        if parameters
    ]


def learning_rates(optimizer: torch.optim.Optimizer, key: str = "base_rate") -> dict[str, float]:
    """The rates of `neck` (with head) and `backbone`: `base_rate` before the schedule, or the current `lr`."""
    names = {group["name"].split()[0].rstrip(","): group[key] for group in optimizer.param_groups}
    return {name: float(names[name]) for name in ("neck", "backbone") if name in names}


def build_optimizer(kind: str, groups: list[dict], momentum: float, fused: bool = False) -> torch.optim.Optimizer:
    """Build one of OPTIMIZERS on parameter groups with their own learning rate and weight decay.

    `momentum` is Adam's first beta. With `fused`, a step is one kernel (for a model of 2.7 million parameters on one
    CPU core, 3.8 ms instead of 11.6).
    """
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused or None)
    cls = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return cls(groups, betas=(momentum, 0.999), fused=fused or None)


def lr_factor(schedule: str, warmup_steps: int, total_steps: int, final: float) -> Callable[[int], float]:
    """Return a function from step number (from 0) to the factor of the learning rate.

    Linear warm-up from a hundredth, then `cosine` down to `final`, `step` (x 0.1 at 80 % and 90 %), or `constant`.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return 0.01 + 0.99 * (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        if schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if schedule == "step":
            return 0.1 ** sum(progress >= part for part in STEPS)
        return 1.0

    return factor


class ModelEMA:
    """Exponential moving average of a model's weights, which is evaluated and saved.

    Args:
        model: the model that is trained.
        decay: weight of the old average at each step, 0 to 1. It starts lower, (1 + n) / (10 + n) after n steps, to
            forget the random initial weights.

    Source: used in detection by https://arxiv.org/abs/1711.07971; the ramp is TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0
        self._source: nn.Module | None = None
        self._floats: list[tuple[Tensor, Tensor]] = []
        self._others: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average from `model`."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        if self._source is not model:  # cached: iterating over the modules takes longer than the update
            pairs = [(a, b.detach()) for a, b in zip(_tensors(self.model), _tensors(model), strict=True)]
            self._source = model
            self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
            self._others = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in self._floats], [b for _, b in self._floats], 1 - decay)
        for average, value in self._others:
            average.copy_(value)


def automatic_decay(total_steps: int) -> float:
    """Decay with a horizon of a tenth of the run, at most 0.9999 (YOLOv5's); 0 for up to ten steps."""
    return min(0.9999, 1 - 1 / max(EMA_HORIZON * total_steps, 1.0))


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return model.state_dict().values()
