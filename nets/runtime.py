"""The same network on PyTorch and on what exports run on: uint8 images in, its outputs out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.fuse import fuse_batch_norms
from nets.model_config import ModelConfig
from nets.postprocess import postprocess, postprocess_decoded
from nets.weights.checkpoint import load_checkpoint
from nets.weights.torch_file import refuse_no_model
from nets.yolov4 import YOLOv4
from utils.detections import Detections
from utils.errors import UserError


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
        what = f"its weights do not fit the network it describes: {reason}"
        raise UserError(path, what, "use another copy") from error
    return model.eval()


def load_runtime(path: str | Path, device: str = "auto", runtime: str = "auto") -> Runtime:
    """Make a model file ready to run.

    Args:
        path: a checkpoint, an exported file, or the folder that holds an OpenVINO file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`...
        runtime: `auto`, or a name of `RUNTIMES`. A checkpoint is exported for another runtime than torch, once, into
            the cache folder. `fastest` measures those that are installed, once, and remembers; from then on `auto`
            takes what was found.

    Raises:
        UserError: for a file that is no model, or that the named runtime does not run.
        MissingExtra: if what the file needs is not installed.
    """
    if runtime not in RUNTIMES:
        raise UserError("--runtime", f"{runtime!r} is not known", f"choose from {', '.join(RUNTIMES)}")
    path = _file_of(Path(path))
    kind = file_kind(path)
    device = resolve_device(device)
    if kind == "checkpoint":
        return _load_checkpoint(path, device, runtime)
    refuse_no_model(path)
    allowed = FILE_RUNTIMES[kind]
    if runtime not in ("auto", "fastest", *allowed):
        raise UserError("--runtime", f"{runtime} does not run {path.name}", f"choose from {', '.join(allowed)}")
    return LOADERS[runtime if runtime in allowed else allowed[0]](path, device)


def _load_checkpoint(path: Path, device: str, runtime: str) -> Runtime:
    if runtime == "torch" or not device.startswith("cpu"):
        return TorchRuntime(load_model(path), device)
    from nets.export.cache import choose_fastest, export_cached, remembered

    if runtime == "fastest":
        runtime = choose_fastest(path)
    elif runtime == "auto":
        runtime = remembered(path) or "torch"
    if runtime == "torch":
        return TorchRuntime(load_model(path))
    return LOADERS[runtime](export_cached(path, runtime), device)


def _load_onnx(path: Path, device: str) -> Runtime:
    from nets.export.onnx_file import OnnxRuntime

    return OnnxRuntime(path, device)


def _load_openvino(path: Path, device: str) -> Runtime:
    from nets.export.openvino_file import OpenVinoRuntime

    return OpenVinoRuntime(path, device)


def _load_torchscript(path: Path, device: str) -> Runtime:
    from nets.export.torchscript_file import TorchScriptRuntime

    return TorchScriptRuntime(path, device)


# runtime -> how it loads an exported file; a checkpoint needs `torch`, which is here, or an export first
LOADERS: dict[str, Callable[[Path, str], Runtime]] = {
    "onnxruntime": _load_onnx,
    "openvino": _load_openvino,
    "torchscript": _load_torchscript,
}
RUNTIMES = ("auto", "fastest", "torch", *LOADERS)
DEVICES = ("cpu", "cuda", "mps")
# kind of file -> the runtimes that take it, the usual one first
FILE_RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "torchscript": ("torchscript",)}
SUFFIXES = {
    ".pth": "checkpoint",
    ".pt": "checkpoint",
    ".safetensors": "checkpoint",
    ".onnx": "onnx",
    ".xml": "openvino",
    ".torchscript": "torchscript",
}


def file_kind(path: Path) -> str:
    """`checkpoint`, `onnx`, `openvino` or `torchscript`. Raises UserError for another suffix."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UserError(path, f"unknown kind of model file {path.suffix!r}", f"known: {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".pt":  # PyTorch's name for anything
        from nets.export.torchscript_file import is_torchscript

        return "torchscript" if is_torchscript(path) else kind
    return kind


def _file_of(path: Path) -> Path:
    """A folder stands for the one OpenVINO file in it."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(path, "is not there", "give a checkpoint or an exported file")
        return path
    files = sorted(path.glob("*.xml"))
    if len(files) != 1:
        raise UserError(path, f"is a folder with {len(files)} OpenVINO files (.xml), not one", "name the file")
    return files[0]


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
