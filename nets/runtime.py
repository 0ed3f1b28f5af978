"""Base class of the runtimes, which run a network on uint8 images."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from imaging.detections import Detections
from nets.model_config import ModelConfig
from nets.postprocess import postprocess, postprocess_decoded
from utils.errors import UserError
from utils.thresholds import OWN_THRESHOLDS, Thresholds

GPU_BATCH = 8  # default batch size on a GPU


class Runtime(ABC):
    """A network that is ready to run.

    Attributes:
        name: the name shown to the user.
        config: the model's configuration.
        decodes: whether `run` returns [boxes (B, N, 4) xyxy input pixels, scores (B, N, C)] instead of three raw maps.
        fixed_batch: the only supported batch size, or None for any.
        fixed_size: whether the configuration's input size is the only supported one.
        usual_batch: default batch size; larger batches are slower on a CPU (docs/SPEED.md).
    """

    name: str
    config: ModelConfig
    decodes: bool = False
    fixed_batch: int | None = None
    fixed_size: bool = False
    usual_batch: int = 1

    @abstractmethod
    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the network on images (B, H, W, 3), uint8 RGB, of the input size."""

    def warm_up(self, batch: int = 1) -> None:
        """Run once on a grey image, so that memory and kernels are set up before the first real image."""
        height, width = self.config.input_size
        self.run(np.full((self.fixed_batch or batch, height, width, 3), 127, np.uint8))

    def read(self, outputs: Sequence[np.ndarray], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        """Detections of each image, in input pixels."""
        if self.decodes:
            return postprocess_decoded(*outputs, self.config, thresholds)
        return postprocess(outputs, self.config, thresholds)


DEVICES = ("cpu", "cuda", "mps")
# device files that the GPU drivers create: NVIDIA's, WSL's, Jetson's, AMD's
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/kfd")


def _check_cuda(torch: Any, device: str, index: int) -> None:
    """Check that a CUDA device can be used. Raises UserError with the reason if not."""
    if torch.version.cuda is None:
        what = f"{device!r}: this PyTorch ({torch.__version__}) is built without CUDA"
        raise UserError("--device", what, "install a CUDA build of PyTorch, or use --device cpu")
    if not torch.cuda.is_available():
        what = f"{device!r}: PyTorch's CUDA {torch.version.cuda} finds no GPU"
        raise UserError("--device", what, "check the driver with nvidia-smi, or use --device cpu")
    if index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError("--device", f"{device!r}: the last GPU is cuda:{last}", "choose a smaller index")


def resolve_device(device: str) -> str:
    """Resolve `auto` to a device name. Raises UserError if the device is not available."""
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch  # imported here: without a GPU, exported files run without PyTorch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError("--device", f"{device!r} is not a device", "give auto, cpu, cuda or cuda:N") from error
    if kind.type not in DEVICES or (kind.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError("--device", f"{device!r} is not available", "give auto, cpu, cuda or cuda:N")
    if kind.type == "cuda":
        _check_cuda(torch, device, kind.index or 0)
    return device


def _may_have_gpu() -> bool:
    """Whether there may be a GPU; avoids the import of PyTorch, which takes seconds."""
    if "torch" in sys.modules or sys.platform == "win32":
        return True
    return sys.platform == "linux" and any(os.path.exists(file) for file in GPU_FILES)
