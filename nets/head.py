"""One prediction map for each stride: three anchors with box, objectness and class logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nets.layers import ResidualSeparable, build_conv3x3, initialize
from nets.model_config import ANCHORS_PER_LEVEL, STRIDES, ModelConfig

_PRIOR_OBJECTS = 8  # objects that an image of _PRIOR_SIZE pixels is taken to hold, at each level
_PRIOR_SIZE = 640
_PRIOR_CLASS = 0.6  # the classes' probabilities sum to about this


class Head(nn.Module):
    """A 3x3 convolution and a 1x1 one with bias for each level.

    Args:
        in_channels: of p3, p4, p5, as the neck states them.
        config: gives the classes, `neck_conv`, and through the anchors the outputs of a cell.
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
    """Start the last convolution near its biases, and those at what an image without learning should answer.

    Nearly every anchor is background. A start at probability 1/2 spends the first steps unlearning it; this one
    expects 8 objects in 640 x 640 pixels among the cells of a level, and classes that sum to about 0.6.

    Source: focal loss, section 4.1, https://arxiv.org/abs/1708.02002; the numbers are YOLOv5's (biases of `Detect`).
    """
    nn.init.normal_(conv.weight, 0.0, 0.01)
    assert conv.bias is not None
    bias = conv.bias.view(ANCHORS_PER_LEVEL, -1)
    probability = _PRIOR_OBJECTS / (_PRIOR_SIZE / stride) ** 2
    bias[:, :4] = 0.0
    bias[:, 4] = -math.log((1 - probability) / probability)
    bias[:, 5:] = math.log(_PRIOR_CLASS / (num_classes - 0.99999))
