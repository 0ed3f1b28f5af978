"""Schedules, rates, weight averages and parameter groups, compared with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.optim import (
    BASE_RATES,
    ModelEMA,
    automatic_decay,
    build_optimizer,
    learning_rates,
    lr_factor,
    parameter_groups,
    scaled_lr,
)


def test_the_cosine_by_hand() -> None:
    factor = lr_factor("cosine", 4, 24, 0.1)
    for step in range(4):
        assert factor(step) == pytest.approx(0.01 + 0.99 * (step + 1) / 5)
    for step, value in ((4, 1.0), (9, 0.1 + 0.45 * (1 + math.sqrt(0.5))), (14, 0.55), (24, 0.1), (30, 0.1)):
        assert factor(step) == pytest.approx(value)


def test_the_steps_by_hand() -> None:
    factor = lr_factor("step", 0, 100, 0.5)
    assert [factor(step) for step in (0, 79, 80, 89, 90, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor("cosine", 0, 1, 0.5)(1) == 0.5
    assert lr_factor("constant", 0, 100, 0.5)(99) == 1.0 and lr_factor("cosine", 0, 0, 0.5)(0) == 1.0


def test_rates_by_hand() -> None:
    assert BASE_RATES == {"sgd": 1e-2, "adam": 5e-3, "adamw": 5e-3}
    assert scaled_lr("sgd", 32) == pytest.approx(0.02) and scaled_lr("adamw", 64) == pytest.approx(0.01)
    assert scaled_lr("adam", 4, 0.1) == pytest.approx(0.05) and scaled_lr("sgd", 4, 0.1) == pytest.approx(0.025)


def test_the_automatic_decay_looks_back_over_a_tenth() -> None:
    assert automatic_decay(1000) == pytest.approx(0.99) and automatic_decay(10) == 0.0
    assert automatic_decay(11) == pytest.approx(1 - 1 / 1.1) and automatic_decay(10**7) == 0.9999


class Network(nn.Module):
    """A convolution and a norm in the backbone, a convolution and a linear layer in the neck."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 4))


def test_groups_by_hand() -> None:
    groups = parameter_groups(Network(), 0.2, 0.05, 0.1)
    shown = [(g["name"], len(g["params"]), pytest.approx(g["lr"]), g["weight_decay"]) for g in groups]
    assert shown == [
        ("neck and head, decayed", 2, 0.2, 0.05),
        ("neck and head, not decayed", 1, 0.2, 0.0),
        ("backbone, decayed", 1, 0.02, 0.05),
        ("backbone, not decayed", 3, 0.02, 0.0),
    ]
    optimizer = build_optimizer("adamw", groups, 0.8)
    assert learning_rates(optimizer, "lr") == {"neck": 0.2, "backbone": pytest.approx(0.02)}
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999) and type(optimizer) is torch.optim.AdamW
    assert type(build_optimizer("adam", groups, 0.8)) is torch.optim.Adam
    for kind in ("sgd", "adamw"):
        for fused, expected in ((True, True), (False, None)):
            assert build_optimizer(kind, groups, 0.8, fused).defaults["fused"] is expected
    sgd = build_optimizer("sgd", groups, 0.8).param_groups[0]
    assert sgd["momentum"] == 0.8 and sgd["nesterov"] is True
    groups = parameter_groups(Network(), 0.2, 0.05, 0.1)  # an optimiser writes its settings into its groups
    assert build_optimizer("sgd", groups, 0.0).param_groups[0]["nesterov"] is False


def test_the_average_takes_counters_over_as_they_are() -> None:
    model = nn.BatchNorm2d(2)
    average = ModelEMA(model, 0.9)
    for count in (7, 9):
        model.num_batches_tracked.fill_(count)
        average.update(model)
        assert average.model.num_batches_tracked.item() == count


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = ModelEMA(model, 0.3)
    nn.init.constant_(model.weight, 1.0)
    expected = 0.0
    for step in (1, 2, 3, 4):
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * 1.0
        assert average.model.weight.item() == pytest.approx(expected) and average.steps == step
    assert not average.model.training and not average.model.weight.requires_grad
