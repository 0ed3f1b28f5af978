"""Fuse layers for inference: the same outputs with fewer memory accesses."""

from __future__ import annotations

import copy
import platform
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nets.layers import Conv2dSamePadding, ConvBNAct

# activation -> oneDNN's name of it, and its parameters
ONEDNN_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
MAX_SHAPES = 4  # of inputs whose weights a convolution keeps


def copy_network(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own, like `copy.deepcopy` in a third of the time.

    A module from outside of PyTorch and this repository, or with hooks, is copied by `copy.deepcopy`.
    """
    has_hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if has_hooks or not type(module).__module__.startswith(("torch.nn.", "nets.")):
        return copy.deepcopy(module)
    other = copy.copy(module)
    other._parameters = {
        name: None if each is None else nn.Parameter(each.detach().clone(), each.requires_grad)
        for name, each in module._parameters.items()
    }
    other._buffers = {name: None if each is None else each.clone() for name, each in module._buffers.items()}
    other._modules = {name: None if each is None else copy_network(each) for name, each in module._modules.items()}
    return other


def fuse_batch_norms(model: nn.Module) -> nn.Module:
    """Fold every BatchNorm2d that follows a Conv2d in a Sequential. In place; returns `model` in eval mode."""
    model.eval()
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        names = list(module._modules)
        for first, second in pairwise(names):
            conv, norm = module._modules[first], module._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                module._modules[second] = nn.Identity()
    return model


def pack_convolutions(model: nn.Module) -> nn.Module:
    """Run every Conv2d in a Sequential, with the activation that follows it, as one call of oneDNN. In place.

    For inference on an x86 CPU, after `fuse_batch_norms`; elsewhere, and without oneDNN, `model` stays as it is. On one
    thread PyTorch multiplies the matrices of 1x1 convolutions by MKL, which leaves AVX-512 alone on AMD's processors,
    and writes bias and activation in passes of their own (docs/SPEED.md).
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return model
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        children: dict[str, Any] = {n: m for n, m in module._modules.items() if not isinstance(m, nn.Identity)}
        for name, following in zip(children, [*list(children)[1:], ""], strict=True):
            conv, activation = children[name], children.get(following)
            is_float = isinstance(conv, nn.Conv2d) and conv.weight.dtype == torch.float32  # oneDNN has no float64
            if is_float and not isinstance(conv.padding, str) and conv.padding_mode == "zeros":
                known = type(activation) in ONEDNN_ACTIVATIONS
                module._modules[name] = _PackedConv(conv, activation if known else None)
                if known:
                    module._modules[following] = nn.Identity()
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, nn.Module) and type(child) in (nn.Sequential, ConvBNAct):
                layers = [each for each in child.children() if not isinstance(each, nn.Identity)]
                if len(layers) == 1:  # calling the others takes a twentieth of the time of a small network
                    module._modules[name] = layers[0]
    return model


class _PackedConv(nn.Module):
    """A convolution and its activation by oneDNN, with its weights in oneDNN's layout; with gradients, by PyTorch."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        weight, padding = conv.weight.detach(), [int(p) for p in conv.padding]
        self._pad: list[int] = []
        if isinstance(conv, Conv2dSamePadding) and conv.groups == 1:
            self._pad = list(conv.same_padding)
        elif isinstance(conv, Conv2dSamePadding):  # zeros in the kernel cost less than a padded copy of the input
            before, after = conv.same_padding[:2]
            weight, padding = F.pad(weight, (after - before, 0, after - before, 0)), [after, after]
        self._geometry = padding, list(conv.stride), list(conv.dilation), conv.groups
        name, parameters = ("none", []) if activation is None else ONEDNN_ACTIVATIONS[type(activation)]
        self._activation = name, parameters, ""
        self._weight, self._bias = weight, None if conv.bias is None else conv.bias.detach()
        self._packed: dict[torch.Size, Tensor] = {}  # the best layout differs with the shape of the input

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = self.conv(x)
            return x if self.activation is None else self.activation(x)
        x = F.pad(x, self._pad) if self._pad else x
        weight = self._packed.get(x.shape)
        if weight is None:
            if len(self._packed) == MAX_SHAPES:
                self._packed.pop(next(iter(self._packed)))
            weight = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, list(x.shape))
            self._packed[x.shape] = weight
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self._bias, *self._geometry, *self._activation
        )
        return result
