"""Batch norm over the images of all processes of a run."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from utils import distributed
from utils.errors import RunError


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device (`nn.SyncBatchNorm` does not support CPUs).

    One small all-reduce per layer and direction, of count, sum and sum of squares. It is in float64, because the
    variance is a difference of large numbers. The last, smaller batch may differ in size between processes.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        axes, channels = (0, 2, 3), x.shape[1]
        own = x.new_tensor([x.numel() // channels], dtype=torch.float64)
        own_variance, own_mean = (value.double() for value in torch.var_mean(x, axes, correction=0))
        sums = _sum(torch.cat([own, own * own_mean, own * (own_variance + own_mean.square())]))
        count = sums[0].detach()
        mean64 = sums[1 : channels + 1] / count
        variance = (sums[channels + 1 :] / count - mean64.square()).clamp(min=0).to(x.dtype)
        mean, count = mean64.to(x.dtype), count.to(x.dtype)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                part = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), part)
                self.running_var.lerp_(variance.detach() * count / (count - 1).clamp(min=1), part)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = (x - mean[:, None, None]) * scale[:, None, None]
        return (out if self.bias is None else out + self.bias[:, None, None]).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum of all gradients, as the loss of every process uses it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return distributed.total(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.total(gradients[0].contiguous())


def _sum(value: Tensor) -> Tensor:
    return _Sum.apply(value)


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm2d by a synchronised one with the same parameters, in place. Returns `model`.

    Raises:
        RunError: on a CPU, for timm's batch norms that include an activation.
    """
    if device.type == "cuda":
        timm = sys.modules.get("timm.layers")  # timm's function handles its own norms and PyTorch's
        return (timm.convert_sync_batchnorm if timm else nn.SyncBatchNorm.convert_sync_batchnorm)(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
        elif isinstance(module, nn.BatchNorm2d):
            raise RunError("--sync-bn", f"does not support {type(module).__name__} on the CPU", "leave it out")
    return model
