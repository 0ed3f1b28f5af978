"""The PyTorch runtime."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nets.fuse import copy_network, fuse_batch_norms, pack_convolutions
from nets.runtime import GPU_BATCH, Runtime
from nets.yolov4 import YOLOv4
from utils.allocator import keep_freed_memory


class TorchRuntime(Runtime):
    """Runs the network in PyTorch: fused layers (`nets.fuse`), channels-last memory format."""

    name = "torch"

    def __init__(self, model: YOLOv4, device: torch.device | str = "cpu") -> None:
        keep_freed_memory()
        self.config = model.config
        self.device = torch.device(device)
        self.usual_batch = 1 if self.device.type == "cpu" else GPU_BATCH
        fused = fuse_batch_norms(copy_network(model)).to(self.device).to(memory_format=torch.channels_last)
        self.model = fused.requires_grad_(False)
        if self.device.type == "cpu":
            pack_convolutions(self.model)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return [raw.cpu().numpy() for raw in self.forward(images)]

    @torch.inference_mode()
    def forward(self, images: np.ndarray) -> list[Tensor]:
        """The outputs for images (B, H, W, 3) uint8 RGB, on the device."""
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels last without a copy
        return list(self.model(torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)))
