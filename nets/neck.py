"""SPP and PANet: mixes the backbone's three maps from the top down and from the bottom up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.layers import ConvBNAct, ResidualSeparable, SeparableConv, build_conv3x3, initialize, make_divisible
from nets.model_config import ModelConfig

_WIDTHS = (128, 256, 512)  # of the three levels at neck width 1, as in the reference


class SPP(nn.Module):
    """Concatenates max pools of 13, 9 and 5, and the input itself: 4 times the channels.

    A pool of 9 is a pool of 5 over a pool of 5, and one of 13 another 5 over that: the same maxima for a third of
    the comparisons.

    Source: YOLOv4, section 3.4, https://arxiv.org/abs/2004.10934; spatial pyramids, https://arxiv.org/abs/1406.4729
    """

    def forward(self, x: Tensor) -> Tensor:
        pool5 = F.max_pool2d(x, 5, 1, 2)
        pool9 = F.max_pool2d(pool5, 5, 1, 2)
        pool13 = F.max_pool2d(pool9, 5, 1, 2)
        return torch.cat((pool13, pool9, pool5, x), dim=1)


class ConvBlock(nn.Sequential):
    """Convolutions 1x1 and 3x3 in turn, beginning and ending with 1x1: `width`, `2 * width`, `width`, ...

    Args:
        count: 3 or 5.
    """

    def __init__(self, kind: str, in_channels: int, width: int, count: int) -> None:
        layers: list[nn.Module] = [ConvBNAct(in_channels, width)]
        for _ in range(count // 2):
            layers += [build_conv3x3(kind, width, 2 * width), ConvBNAct(2 * width, width)]
        super().__init__(*layers)


class Neck(nn.Module):
    """SPP and PANet over (c3, c4, c5), shared by all backbones.

    Args:
        in_channels: of c3, c4, c5, as the backbone states them.
        config: gives `neck_conv` and `neck_width`.

    `out_channels` are those of (p3, p4, p5), at the strides of the input.

    Source: PANet, https://arxiv.org/abs/1803.01534, as YOLOv4 uses it (section 3.4)
    """

    def __init__(self, in_channels: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        kind = config.neck_conv
        c3, c4, c5 = in_channels
        w3, w4, w5 = (make_divisible(width * config.neck_width) for width in _WIDTHS)
        self.out_channels = (w3, w4, w5)
        self.before_spp = ConvBlock(kind, c5, w5, 3)
        self.spp = SPP()
        self.after_spp = ConvBlock(kind, 4 * w5, w5, 3)
        self.reduce5 = ConvBNAct(w5, w4)
        self.lateral4 = ConvBNAct(c4, w4)
        self.top_down4 = ConvBlock(kind, 2 * w4, w4, 5)
        self.reduce4 = ConvBNAct(w4, w3)
        self.lateral3 = ConvBNAct(c3, w3)
        self.top_down3 = ConvBlock(kind, 2 * w3, w3, 5)
        self.downsample3 = build_conv3x3(kind, w3, w4, stride=2)
        self.bottom_up4 = ConvBlock(kind, 2 * w4, w4, 5)
        self.downsample4 = build_conv3x3(kind, w4, w5, stride=2)
        self.bottom_up5 = ConvBlock(kind, 2 * w5, w5, 5)
        initialize(self, identity_depthwise=True)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p5 = self.after_spp(self.spp(self.before_spp(c5)))
        p4 = self.top_down4(torch.cat((self.lateral4(c4), upsample(self.reduce5(p5))), dim=1))
        p3 = self.top_down3(torch.cat((self.lateral3(c3), upsample(self.reduce4(p4))), dim=1))
        p4 = self.bottom_up4(torch.cat((self.downsample3(p3), p4), dim=1))
        p5 = self.bottom_up5(torch.cat((self.downsample4(p4), p5), dim=1))
        return p3, p4, p5


class SlimBlock(nn.Sequential):
    """A 1x1 convolution that joins two maps, and a residual separable one, without the double widths of `ConvBlock`."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(ConvBNAct(in_channels, width), ResidualSeparable(width))


class SlimNeck(nn.Module):
    """SPP and PANet as in `Neck`, with one `SlimBlock` where that has five or six convolutions.

    The pyramid pools half of the deepest level's width (YOLOX's bottleneck), because a concatenation of four whole ones
    is the widest map of the network.
    """

    def __init__(self, in_channels: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        c3, c4, c5 = in_channels
        w3, w4, w5 = (make_divisible(width * config.neck_width) for width in _WIDTHS)
        self.out_channels = (w3, w4, w5)
        self.before_spp = ConvBNAct(c5, w5 // 2)
        self.spp = SPP()
        self.after_spp = ConvBNAct(4 * (w5 // 2), w5)
        self.reduce5 = ConvBNAct(w5, w4)
        self.lateral4 = ConvBNAct(c4, w4)
        self.top_down4 = SlimBlock(2 * w4, w4)
        self.reduce4 = ConvBNAct(w4, w3)
        self.lateral3 = ConvBNAct(c3, w3)
        self.top_down3 = SlimBlock(2 * w3, w3)
        self.downsample3 = SeparableConv(w3, w4, 3, 2)
        self.bottom_up4 = SlimBlock(2 * w4, w4)
        self.downsample4 = SeparableConv(w4, w5, 3, 2)
        self.bottom_up5 = SlimBlock(2 * w5, w5)
        initialize(self, identity_depthwise=True)

    forward = Neck.forward


def upsample(x: Tensor) -> Tensor:
    """Twice the size, nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
