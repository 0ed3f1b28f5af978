"""MobileNetV2: inverted residuals with linear bottlenecks, https://arxiv.org/abs/1801.04381."""

from __future__ import annotations

from torch import Tensor, nn

from nets.backbones.base import Backbone
from nets.backbones.registry import register_backbone
from nets.layers import ConvBNAct, conv_norm, initialize, make_divisible
from nets.model_config import ModelConfig

# Table 2: expansion t, output channels c, repeats n, stride s. The last 1x1 convolution belongs to the classifier.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; a residual connection if the shapes are equal (figure 4).

    There is no activation after the projection: ReLU would destroy information in the narrow output (section 3.2).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, eps: float, padding: str):
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBNAct(in_channels, hidden, eps=eps))
        layers.append(ConvBNAct(hidden, hidden, 3, stride, hidden, eps=eps, padding=padding))
        # Two entries instead of a ConvBNAct, to match torchvision's parameter names.
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels, eps=eps)]
        self.conv = nn.Sequential(*layers)
        self.out_channels = out_channels
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        *layers, conv, norm = self.conv
        y = x
        for layer in layers:
            y = layer(y)
        y = conv_norm(y, conv, norm)
        return x + y if self.has_residual else y


class MobileNetV2(Backbone):
    """Features of MobileNetV2, with torchvision's parameter names (`features.0` to `features.17`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        eps = 1e-5 if config.bn_eps is None else config.bn_eps
        channels = make_divisible(32 * config.alpha)
        layers: list[nn.Module] = [ConvBNAct(3, channels, 3, stride=2, eps=eps, padding=config.padding)]
        widths = [channels]
        for expansion, out_channels, repeats, stride in _STAGES:
            out_channels = make_divisible(out_channels * config.alpha)
            for repeat in range(repeats):
                block_stride = stride if repeat == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, block_stride, expansion, eps, config.padding))
                channels = out_channels
                widths.append(channels)
        self.features = nn.Sequential(*layers)
        self.out_channels = (widths[6], widths[13], widths[17])
        initialize(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.features[:7](images)
        c4 = self.features[7:14](c3)
        return c3, c4, self.features[14:](c4)


@register_backbone
def mobilenet_v2(config: ModelConfig) -> MobileNetV2:
    """32, 96 and 320 channels at alpha 1."""
    return MobileNetV2(config)
