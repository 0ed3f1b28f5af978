"""`--fast`: the features it enables on a GPU, and no effect on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.optim import build_optimizer
from training.setup import _make_fast
from utils import distributed


class _Network(nn.Module):
    compiled = 0

    def compile(self) -> None:
        self.compiled += 1


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)


@pytest.mark.parametrize("sizes_vary", [False, True])
def test_on_a_gpu_the_network_is_compiled_in_place_and_sizes_that_vary_are_not_searched_for(sizes_vary: bool) -> None:
    network = _Network()
    assert _make_fast(network, torch.device("cuda"), sizes_vary)
    assert network.compiled == 1
    assert torch.backends.cudnn.benchmark is not sizes_vary


def test_on_a_cpu_it_does_nothing_and_the_main_process_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    assert not _make_fast(network, torch.device("cpu"), False)
    assert "--fast: has no effect on cpu" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    assert not _make_fast(network, torch.device("cpu"), False)
    assert capsys.readouterr().err == ""
    assert network.compiled == 0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_fused_optimiser_takes_the_steps_of_a_plain_one(name: str) -> None:
    steps = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.01, "base_rate": 0.1}]
        optimizer = build_optimizer(name, groups, 0.9, fused=fused)
        for step in range(3):
            weight.grad = torch.sin(weight.detach() * (step + 1))
            optimizer.step()
        steps.append(weight.detach())
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-6, atol=1e-7)
    assert not torch.equal(steps[0], torch.linspace(-1, 1, 12).reshape(3, 4))
