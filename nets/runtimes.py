"""The same network on PyTorch and on what exports run on: uint8 images in, its outputs out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.checkpoint import load_checkpoint
from nets.fuse import fuse_batch_norms
from nets.model_config import ModelConfig
from nets.postprocess import postprocess, postprocess_decoded
from nets.yolov4 import YOLOv4
from utils.detections import Detections
from utils.errors import UserError


class Runtime(ABC):
    """A network that is ready to run.

    Attributes:
        name: what to call it to the user.
        config: the model's configuration.
        decodes: whether `run` gives [boxes (B, N, 4) xyxy input pixels, scores (B, N, C)] instead of the three raw maps.
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

    def read(self, outputs: Sequence[Tensor], **thresholds: object) -> list[Detections]:
        """Detections of each image, in input pixels; thresholds as in `postprocess`."""
        if self.decodes:
            return postprocess_decoded(*outputs, self.config, **thresholds)  # type: ignore[arg-type]
        return postprocess(outputs, self.config, **thresholds)  # type: ignore[arg-type]


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


def load_model(path: str | Path) -> YOLOv4:
    """The network of a checkpoint, with its weights, in eval mode.

    Raises:
        UserError: if the file is no checkpoint, or its weights are not those of the network it describes.
    """
    checkpoint = load_checkpoint(path)
    model = YOLOv4(checkpoint.config)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(path, f"its weights do not fit the network it describes: {reason}", "use another copy") from error
    return model.eval()


def _load_torch(path: Path, device: str) -> Runtime:
    return TorchRuntime(load_model(path), device)


# suffix of a model file -> how to run it
LOADERS: dict[str, Callable[[Path, str], Runtime]] = {".pth": _load_torch, ".pt": _load_torch, ".safetensors": _load_torch}


def load_runtime(path: str | Path, device: str = "auto", runtime: str = "auto") -> Runtime:
    """Make a model file ready to run.

    Args:
        path: a checkpoint or an exported file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`...
        runtime: `auto` or the name of one.
    """
    path = Path(path)
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise UserError(path, f"unknown kind of model file {path.suffix!r}", f"known: {', '.join(LOADERS)}")
    return loader(path, resolve_device(device))


def resolve_device(device: str) -> str:
    """`auto` to a device's name. Raises UserError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError("--device", f"{device!r} is no device", "give auto, cpu, cuda or cuda:N") from error
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise UserError("--device", f"{device!r} is not there", "use --device cpu")
    return device
