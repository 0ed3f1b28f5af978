"""Base class of the backbones, which return feature maps at strides 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """A network that gives three feature maps.

    A subclass sets `out_channels` and its `forward` takes (B, 3, H, W) normalised images and returns (c3, c4, c5):
    maps at strides 8, 16 and 32 with those channels.
    """

    out_channels: tuple[int, int, int]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError
