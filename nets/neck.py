"""The neck, SPP and PANet: fuses the backbone's three feature maps top-down and bottom-up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.layers import ConvBNAct, ResidualSeparable, SeparableConv, build_conv3x3, initialize, make_divisible
from nets.model_config import ModelConfig

_WIDTHS = (128, 256, 512)  # channels of the three levels at neck width 1, as in the reference


class SPP(nn.Module):
    """Spatial pyramid pooling: concatenates max pools of size 13, 9 and 5 and the input (4 times the channels).

    Two pools of size 5 in a row equal one of size 9, and three equal one of size 13. The outputs are the same with a
    third of the comparisons.

    Source: YOLOv4, section 3.4, https://arxiv.org/abs/2004.10934; spatial pyramids, https://arxiv.org/abs/1406.4729
    """

    def forward(self, x: Tensor) -> Tensor:
        pool5 = F.max_pool2d(x, 5, 1, 2)
        pool9 = F.max_pool2d(pool5, 5, 1, 2)
        pool13 = F.max_pool2d(pool9, 5, 1, 2)
        return torch.cat((pool13, pool9, pool5, x), dim=1)


class ConvBlock(nn.Sequential):
    """Alternating 1x1 and 3x3 convolutions, first and last 1x1, of `width`, `2 * width`, `width`, ... channels.

    Args:
        count: number of convolutions, 3 or 5.
    """

    def __init__(self, kind: str, in_channels: int, width: int, count: int) -> None:
        layers: list[nn.Module] = [ConvBNAct(in_channels, width)]
        for _ in range(count // 2):
            layers += [build_conv3x3(kind, width, 2 * width), ConvBNAct(2 * width, width)]
        super().__init__(*layers)


class Neck(nn.Module):
    """SPP and PANet on (c3, c4, c5), used with all backbones.

    Args:
        in_channels: channels of c3, c4, c5 (the backbone's `out_channels`).
        config: sets `neck_conv` and `neck_width`.

    `out_channels` are the channels of (p3, p4, p5), which have the strides of (c3, c4, c5).

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
        # Top-down: semantics of the deep maps reach the high resolution. Bottom-up (PANet's addition to FPN): positions
        # of the high resolution reach the deep maps. YOLOv4 concatenates where PANet adds (figure 6).
        p5 = self.after_spp(self.spp(self.before_spp(c5)))
        p4 = self.top_down4(torch.cat((self.lateral4(c4), upsample(self.reduce5(p5))), dim=1))
        p3 = self.top_down3(torch.cat((self.lateral3(c3), upsample(self.reduce4(p4))), dim=1))
        p4 = self.bottom_up4(torch.cat((self.downsample3(p3), p4), dim=1))
        p5 = self.bottom_up5(torch.cat((self.downsample4(p4), p5), dim=1))
        return p3, p4, p5


class SlimBlock(nn.Sequential):
    """A 1x1 convolution that fuses two maps, then a residual separable one; no doubled widths as in `ConvBlock`."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(ConvBNAct(in_channels, width), ResidualSeparable(width))


class SlimNeck(nn.Module):
    """SPP and PANet as in `Neck`, with one `SlimBlock` in place of five or six convolutions.

    SPP takes half of the deepest level's channels (YOLOX's bottleneck), because with all of them its concatenation of
    four maps would be the widest feature map of the network.
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
    """Nearest-neighbour upsampling by a factor of 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
