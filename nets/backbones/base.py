"""Base class of the backbones, which return feature maps at strides 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """A network that returns three feature maps.

    A subclass sets `out_channels`, the channels of the maps. Its `forward` takes normalised images (B, 3, H, W) and
    returns (c3, c4, c5): maps (B, C, H/s, W/s) at strides s = 8, 16 and 32.
    """

    out_channels: tuple[int, int, int]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError
