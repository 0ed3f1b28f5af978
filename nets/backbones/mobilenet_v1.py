"""MobileNetV1: a stack of depthwise-separable convolutions, https://arxiv.org/abs/1704.04861."""

from __future__ import annotations

from torch import Tensor, nn

from nets.backbones.base import Backbone
from nets.backbones.registry import register_backbone
from nets.layers import ConvBNAct, initialize, make_divisible
from nets.model_config import ModelConfig

# Table 1, the 13 depthwise-separable blocks: output channels c, repeats n, stride s of the first.
_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
_EPS = 1e-5  # timm's value; TensorFlow's weights were trained with 1e-3, which `bn_eps` sets


class MobileNetV1(Backbone):
    """Features of MobileNetV1: `features.N` is the N-th convolution, with its batch norm and ReLU6.

    The paper says ReLU. The authors' code (tensorflow/models, slim), timm and the reference use ReLU6.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        eps = _EPS if config.bn_eps is None else config.bn_eps
        channels = make_divisible(32 * config.alpha)
        layers = [ConvBNAct(3, channels, 3, stride=2, eps=eps, padding=config.padding)]
        for out_channels, repeats, stride in _STAGES:
            out_channels = make_divisible(out_channels * config.alpha)
            for block_stride in (stride, *[1] * (repeats - 1)):
                layers.append(ConvBNAct(channels, channels, 3, block_stride, channels, eps=eps, padding=config.padding))
                layers.append(ConvBNAct(channels, out_channels, eps=eps))
                channels = out_channels
        self.features = nn.Sequential(*layers)
        # c3, c4, c5: outputs of the last blocks before the strides 16 and 32, and of the last block
        self.out_channels = (layers[10].out_channels, layers[22].out_channels, layers[26].out_channels)
        initialize(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.features[:11](images)
        c4 = self.features[11:23](c3)
        return c3, c4, self.features[23:](c4)


@register_backbone
def mobilenet_v1(config: ModelConfig) -> MobileNetV1:
    """256, 512 and 1024 channels at alpha 1."""
    return MobileNetV1(config)
