"""The detection head: per level, box offsets, objectness and class logits of three anchors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nets.layers import ResidualSeparable, build_conv3x3, initialize
from nets.model_config import ANCHORS_PER_LEVEL, STRIDES, ModelConfig

_PRIOR_OBJECTS = 8  # expected objects per level in an image of _PRIOR_SIZE x _PRIOR_SIZE pixels
_PRIOR_SIZE = 640
_PRIOR_CLASS = 0.6  # approximate sum of the class probabilities


class Head(nn.Module):
    """A 3x3 convolution and a 1x1 convolution with bias for each level. The outputs are logits: no activation.

    Args:
        in_channels: channels of p3, p4, p5 (the neck's `out_channels`).
        config: sets the number of classes, `neck_conv`, and the number of anchors per cell.
    """

    def __init__(self, in_channels: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        self.outputs_per_anchor = 5 + config.num_classes
        out_channels = ANCHORS_PER_LEVEL * self.outputs_per_anchor
        if config.neck == "slim":
            blocks: list[nn.Module] = [ResidualSeparable(width) for width in in_channels]
            widths = list(in_channels)
        else:
            blocks = [build_conv3x3(config.neck_conv, width, 2 * width) for width in in_channels]
            widths = [2 * width for width in in_channels]
        self.levels = nn.ModuleList(
            nn.Sequential(block, nn.Conv2d(width, out_channels, 1)) for block, width in zip(blocks, widths, strict=True)
        )
        initialize(self, identity_depthwise=True)
        for level, stride in zip(self.levels, STRIDES, strict=True):
            conv = level.get_submodule("1")
            assert isinstance(conv, nn.Conv2d)
            initialize_prediction(conv, config.num_classes, stride)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """(p3, p4, p5) to raw predictions: three views (B, A, H, W, 5 + C) of the convolutions' outputs."""
        return [self._split_anchors(level(x)) for level, x in zip(self.levels, maps, strict=True)]

    def _split_anchors(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return x.view(batch, ANCHORS_PER_LEVEL, self.outputs_per_anchor, height, width).permute(0, 1, 3, 4, 2)


@torch.no_grad()
def initialize_prediction(conv: nn.Conv2d, num_classes: int, stride: int) -> None:
    """Initialise the last convolution with small weights, and biases that give the prior probabilities.

    Nearly every anchor is background. With an initial objectness of 1/2, the loss of the background would dominate the
    first steps. This prior assumes 8 objects per level in 640 x 640 pixels, and class probabilities with a sum of
    about 0.6.

    Source: focal loss, section 4.1, https://arxiv.org/abs/1708.02002; the numbers are YOLOv5's (biases of `Detect`).
    """
    nn.init.normal_(conv.weight, 0.0, 0.01)
    assert conv.bias is not None
    bias = conv.bias.view(ANCHORS_PER_LEVEL, -1)
    probability = _PRIOR_OBJECTS / (_PRIOR_SIZE / stride) ** 2
    bias[:, :4] = 0.0
    bias[:, 4] = -math.log((1 - probability) / probability)
    # log(p / (1 - p)) for p = 0.6 / C, approximately; 0.99999 avoids a division by zero for one class
    bias[:, 5:] = math.log(_PRIOR_CLASS / (num_classes - 0.99999))
