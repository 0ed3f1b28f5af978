"""MobileNetV3, large and small: blocks with squeeze-and-excitation found by search, https://arxiv.org/abs/1905.02244."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nets.backbones.base import Backbone
from nets.backbones.registry import register_backbone
from nets.layers import ActivationType, ConvBNAct, initialize, make_divisible
from nets.model_config import ModelConfig


@dataclass(frozen=True)
class _Block:
    """A row of table 1 or 2: kernel, expanded and output channels, squeeze-and-excitation, nonlinearity, stride."""

    kernel: int
    expanded: int
    out: int
    has_se: bool
    nonlinearity: str
    stride: int


_LARGE = (
    _Block(3, 16, 16, False, "RE", 1),
    _Block(3, 64, 24, False, "RE", 2),
    _Block(3, 72, 24, False, "RE", 1),
    _Block(5, 72, 40, True, "RE", 2),
    _Block(5, 120, 40, True, "RE", 1),
    _Block(5, 120, 40, True, "RE", 1),
    _Block(3, 240, 80, False, "HS", 2),
    _Block(3, 200, 80, False, "HS", 1),
    _Block(3, 184, 80, False, "HS", 1),
    _Block(3, 184, 80, False, "HS", 1),
    _Block(3, 480, 112, True, "HS", 1),
    _Block(3, 672, 112, True, "HS", 1),
    _Block(5, 672, 160, True, "HS", 2),
    _Block(5, 960, 160, True, "HS", 1),
    _Block(5, 960, 160, True, "HS", 1),
)
_SMALL = (
    _Block(3, 16, 16, True, "RE", 2),
    _Block(3, 72, 24, False, "RE", 2),
    _Block(3, 88, 24, False, "RE", 1),
    _Block(5, 96, 40, True, "HS", 2),
    _Block(5, 240, 40, True, "HS", 1),
    _Block(5, 240, 40, True, "HS", 1),
    _Block(5, 120, 48, True, "HS", 1),
    _Block(5, 144, 48, True, "HS", 1),
    _Block(5, 288, 96, True, "HS", 2),
    _Block(5, 576, 96, True, "HS", 1),
    _Block(5, 576, 96, True, "HS", 1),
)
_NONLINEARITIES: dict[str, ActivationType] = {"RE": nn.ReLU, "HS": nn.Hardswish}
_STEM_CHANNELS = 16
_EPS = 1e-3  # torchvision's value, taken from the authors' code


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the pooled map (section 5.3), then apply `activation` if given.

    The gate has a quarter of the channels of the expanded map, and a hard sigmoid instead of a sigmoid (section 5.2).
    torchvision.ops has the same module, but its import takes two seconds of CPU, also at each start of a prediction.
    """

    def __init__(self, channels: int, activation: ActivationType | None = None) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid()
        self.gated_activation = nn.Identity() if activation is None else activation(inplace=True)

    def gate(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) in [0, 1] from (N, C, H, W)."""
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.gated_activation(self.gate(x) * x)


class InvertedResidual(nn.Module):
    """MobileNetV2's block with squeeze-and-excitation on the expanded map (figure 4).

    With `se_order` `before`, the gate is between batch norm and activation, but only in blocks with an expansion.
    In the one block without expansion, the reference's code also has the gate after the activation.
    """

    def __init__(self, in_channels: int, block: _Block, config: ModelConfig, eps: float) -> None:
        super().__init__()
        hidden, out_channels = make_divisible(block.expanded * config.alpha), make_divisible(block.out * config.alpha)
        activation = _NONLINEARITIES[block.nonlinearity]
        expands = hidden != in_channels
        gate_first = block.has_se and expands and config.se_order == "before"
        layers: list[nn.Module] = []
        if expands:
            layers.append(ConvBNAct(in_channels, hidden, activation=activation, eps=eps))
        depthwise_activation = None if gate_first else activation
        layers.append(
            ConvBNAct(
                hidden, hidden, block.kernel, block.stride, hidden, depthwise_activation, eps, padding=config.padding
            )
        )
        if block.has_se:
            layers.append(SqueezeExcitation(hidden, activation if gate_first else None))
        layers.append(ConvBNAct(hidden, out_channels, activation=None, eps=eps))
        self.block = nn.Sequential(*layers)
        self.out_channels = out_channels
        self.has_residual = block.stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.has_residual else self.block(x)


class MobileNetV3(Backbone):
    """Features of MobileNetV3, with torchvision's parameter names; the last 1x1 convolution is the classifier's.

    Args:
        blocks: the table of large or small.
        last_blocks: numbers (from 1) of the last blocks at strides 8 and 16.
    """

    def __init__(self, config: ModelConfig, blocks: Sequence[_Block], last_blocks: tuple[int, int]) -> None:
        super().__init__()
        eps = _EPS if config.bn_eps is None else config.bn_eps
        channels = make_divisible(_STEM_CHANNELS * config.alpha)
        layers: list[nn.Module] = [
            ConvBNAct(3, channels, 3, 2, activation=nn.Hardswish, eps=eps, padding=config.padding)
        ]
        widths = [channels]
        for block in blocks:
            layers.append(InvertedResidual(widths[-1], block, config, eps))
            widths.append(make_divisible(block.out * config.alpha))
        self.features = nn.Sequential(*layers)
        self.last_blocks = last_blocks
        self.out_channels = (widths[last_blocks[0]], widths[last_blocks[1]], widths[-1])
        initialize(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last3, last4 = self.last_blocks
        c3 = self.features[: last3 + 1](images)
        c4 = self.features[last3 + 1 : last4 + 1](c3)
        return c3, c4, self.features[last4 + 1 :](c4)


@register_backbone
def mobilenet_v3_large(config: ModelConfig) -> MobileNetV3:
    """40, 112 and 160 channels at alpha 1."""
    return MobileNetV3(config, _LARGE, (6, 12))


@register_backbone
def mobilenet_v3_small(config: ModelConfig) -> MobileNetV3:
    """24, 48 and 96 channels at alpha 1."""
    return MobileNetV3(config, _SMALL, (3, 8))
