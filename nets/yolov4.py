"""The YOLOv4 network: backbone, neck and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets.backbones.registry import build_backbone
from nets.head import Head
from nets.model_config import ModelConfig
from nets.neck import Neck, SlimNeck


class YOLOv4(nn.Module):
    """YOLOv4 with a MobileNet or timm backbone, SPP and PANet, and a head with three anchors per level.

    Args:
        config: everything that defines the network; kept as `.config`.

    Raises:
        UserError: for an unknown backbone.
        MissingExtra: for a timm backbone if timm is not installed.

    Source: YOLOv4, https://arxiv.org/abs/2004.10934, section 3
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.neck = (SlimNeck if config.neck == "slim" else Neck)(self.backbone.out_channels, config)
        self.head = Head(self.neck.out_channels, config)
        self._is_normalized = any(config.mean) or any(std != 1 for std in config.std)
        # Constants, so not in the state dict. They are on the CPU even if the model is built on the `meta` device.
        std = torch.tensor(config.std, device="cpu").view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -torch.tensor(config.mean, device="cpu").view(1, 3, 1, 1) / std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images to raw predictions.

        Args:
            images: (B, 3, H, W), RGB, uint8 in [0, 255] or float in [0, 1]; H and W multiples of 32.

        Returns:
            Three tensors (B, A, H/s, W/s, 5 + C) for the strides s = 8, 16, 32: tx, ty, tw, th, objectness logit,
            class logits.
        """
        return self.head(self.neck(*self.backbone(self.normalize(images))))

    def normalize(self, images: Tensor) -> Tensor:
        """(image - mean) / std on the [0, 1] scale, in the weights' dtype; one multiplication and one addition."""
        scale = self.scale / 255 if images.dtype == torch.uint8 else self.scale
        images = images.to(self.scale.dtype)
        if self._is_normalized:
            return images * scale + self.shift
        return images if scale is self.scale else images * scale
