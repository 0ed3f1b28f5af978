"""What a runtime is: uint8 images in, outputs of the network out; and the network itself on PyTorch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nets.fuse import fuse_batch_norms
from nets.model_config import ModelConfig
from nets.postprocess import postprocess, postprocess_decoded
from nets.yolov4 import YOLOv4
from utils.detections import Detections
from utils.errors import UserError
from utils.thresholds import OWN_THRESHOLDS, Thresholds


class Runtime(ABC):
    """A network that is ready to run.

    Attributes:
        name: what to call it to the user.
        config: the model's configuration.
        decodes: whether `run` gives [boxes (B, N, 4) xyxy input pixels, scores (B, N, C)] instead of three raw maps.
        fixed_batch: the only batch size it takes, or None for any.
        fixed_size: whether it takes no other input size than the configuration's.
    """

    name: str
    config: ModelConfig
    decodes: bool = False
    fixed_batch: int | None = None
    fixed_size: bool = False

    @abstractmethod
    def run(self, images: np.ndarray) -> list[Tensor]:
        """The outputs for images (B, H, W, 3) uint8 RGB of the input size."""

    def warm_up(self, batch: int = 1) -> None:
        """Run once on grey, so that the first real image does not pay for memory and kernels."""
        height, width = self.config.input_size
        self.run(np.full((self.fixed_batch or batch, height, width, 3), 127, np.uint8))

    def read(self, outputs: Sequence[Tensor], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        """Detections of each image, in input pixels."""
        if self.decodes:
            return postprocess_decoded(*outputs, self.config, thresholds)
        return postprocess(outputs, self.config, thresholds)


class TorchRuntime(Runtime):
    """The network itself: batch norms folded, channels last."""

    name = "torch"

    def __init__(self, model: YOLOv4, device: torch.device | str = "cpu") -> None:
        self.config = model.config
        self.device = torch.device(device)
        fused = fuse_batch_norms(copy.deepcopy(model)).to(self.device, memory_format=torch.channels_last)
        self.model = fused.requires_grad_(False)

    @torch.inference_mode()
    def run(self, images: np.ndarray) -> list[Tensor]:
        # (B, H, W, 3) read as (B, 3, H, W) is channels last without a copy
        return self.model(torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2))


DEVICES = ("cpu", "cuda", "mps")


def resolve_device(device: str) -> str:
    """`auto` to a device's name. Raises UserError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError("--device", f"{device!r} is no device", "give auto, cpu, cuda or cuda:N") from error
    if kind.type not in DEVICES or (kind.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError("--device", f"{device!r} is not there", "give auto, cpu, cuda or cuda:N")
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise UserError("--device", f"{device!r} is not there", "use --device cpu")
    return device
