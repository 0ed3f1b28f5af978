"""Convolution blocks shared by backbones, neck and head, and their initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ActivationType = Callable[..., nn.Module]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, without reducing it by more than 10 %.

    Source: the MobileNet authors' code, tensorflow/models research/slim/nets/mobilenet/mobilenet.py.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise convolution of stride 2 with a faster backward on CPUs.

    The backward inserts zeros between the output gradients and uses the backward of stride 1. The values are the same.
    oneDNN has no fast backward for stride 2: the first such layer of MobileNetV2 alone took a tenth of a training step
    on a CPU (docs/EXPERIMENTS.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, 2, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        height, width = (x.shape[i] + 2 * ctx.padding - weight.shape[i] + 1 for i in (2, 3))
        shape = (*gradient.shape[:2], height, width)
        # Allocated as channels last: a conversion afterwards took longer than the convolution's backward.
        spread = torch.empty(shape, dtype=gradient.dtype, device=x.device, memory_format=torch.channels_last).zero_()
        spread[:, :, ::2, ::2] = gradient
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            spread, x, weight, None, [1, 1], [ctx.padding] * 2, [1, 1], False, [0, 0], x.shape[1], mask
        )
        return of_x, of_weight, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None


class StridedConv2d(nn.Conv2d):
    """A convolution of stride 2 with a square kernel; if depthwise, it has a fast backward on CPUs."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_slow = self.groups == self.in_channels and self.training and not input.is_cuda and torch.is_grad_enabled()
        if not is_slow:
            return super()._conv_forward(input, weight, bias)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        bias = None if bias is None else bias.to(dtype)
        padding = self.padding[0]
        assert isinstance(padding, int)
        result: Tensor = _StridedDepthwise.apply(input.to(dtype), weight.to(dtype), bias, padding)
        return result


class Conv2dSamePadding(StridedConv2d):
    """A convolution of stride 2 with TensorFlow's SAME padding for feature maps of even size.

    Of the k - 2 rows and columns of padding, the larger half is at the bottom and the right (k = 3: only there).
    Inputs of a stride-2 convolution always have even sizes here, so the padding is constant and can be exported.
    Parameters are those of `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel_size, stride=2, padding=0, groups=groups, bias=bias)
        before = (kernel_size - 2) // 2
        after = kernel_size - 2 - before
        self.same_padding = (before, after, before, after)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(input, self.same_padding), weight, bias)


def conv_norm(x: Tensor, conv: Any, norm: Any) -> Tensor:
    """Convolution and batch norm. In training with frozen running statistics, the norm is folded into the kernel.

    The outputs and the gradients of `conv.weight`, `norm.weight` and `norm.bias` are the same. It saves two passes over
    memory in the forward and in the backward (docs/EXPERIMENTS.md).
    """
    folds = isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)  # False if fused or quantised
    if not folds or norm.training or not torch.is_grad_enabled():
        result: Tensor = norm(conv(x))
        return result
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * factor
    return conv._conv_forward(x, conv.weight * factor[:, None, None, None], bias)


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: children 0, 1, 2 (torchvision's parameter names).

    Args:
        activation: the activation's class, or None.
        eps: epsilon of the batch norm.
        padding: `symmetric` or `tf_same` (see `Conv2dSamePadding`); they differ only for stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: ActivationType | None = nn.ReLU6,
        eps: float = 1e-5,
        padding: str = "symmetric",
    ) -> None:
        conv: nn.Conv2d
        if padding == "tf_same" and stride == 2:
            conv = Conv2dSamePadding(in_channels, out_channels, kernel_size, groups)
        else:
            kind = StridedConv2d if stride == 2 else nn.Conv2d
            conv = kind(
                in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
            )
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels, eps=eps)]
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)
        self.out_channels = out_channels

    def forward(self, input: Tensor) -> Tensor:
        x = conv_norm(input, self[0], self[1])
        return self[2](x) if len(self) > 2 else x


class SeparableConv(nn.Sequential):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with batch norm and ReLU6: children 0 and 1.

    Source: MobileNetV1, section 3.1, https://arxiv.org/abs/1704.04861
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            ConvBNAct(in_channels, in_channels, kernel_size, stride, groups=in_channels),
            ConvBNAct(in_channels, out_channels),
        )
        self.out_channels = out_channels


class ResidualSeparable(SeparableConv):
    """A separable convolution with a residual connection; input and output channels are equal."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def build_conv3x3(kind: str, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """Build the 3x3 convolution of neck and head: `separable` or `standard`."""
    if kind == "separable":
        return SeparableConv(in_channels, out_channels, 3, stride)
    return ConvBNAct(in_channels, out_channels, 3, stride)


def initialize(module: nn.Module, identity_depthwise: bool = False) -> None:
    """He initialisation of every convolution in `module`; batch norms get weight 1 and bias 0.

    Args:
        module: what to initialise.
        identity_depthwise: initialise depthwise kernels near the identity: 1 at the centre plus a tenth of the usual
            noise. Features of a pretrained backbone then pass through a deep neck almost unchanged, and training
            converges sooner (docs/EXPERIMENTS.md).

    The fan-out of a depthwise convolution is counted within its group. With all channels counted, its initial weights
    would be too small by a factor of sqrt(channels).

    Source: https://arxiv.org/abs/1502.01852, section 2.2
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if identity_depthwise and layer.groups == layer.in_channels == layer.out_channels > 1:
                with torch.no_grad():
                    layer.weight.mul_(0.1)
                    layer.weight[:, :, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] += 1.0
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def set_bn_eps(module: nn.Module, eps: float) -> None:
    """Set the epsilon of every batch norm in `module`."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eps = eps
