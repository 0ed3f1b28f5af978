"""Checkpoints: self-contained model files. They are written atomically, and loading them runs no code."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nets.backbones.base import TIMM_PREFIX
from nets.model_config import FORMAT, ModelConfig
from nets.weights.model_file import open_model_file
from nets.weights.torch_file import read_torch_file, seal
from nets.yolov4 import YOLOv4
from utils.errors import RunError, UserError, brief, wrap_errors
from utils.files import write_atomically

FORMAT_VERSION = 1
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
USUAL_WIDTH, USUAL_CLASSES = 1.5, 1000  # networks up to this size need a few hundred MB at most
MISMATCH = "its weights do not fit the network it describes"
MAX_HEADER_BYTES = 8 << 20  # of a .safetensors file: names, shapes and our configuration


@dataclass
class Checkpoint:
    """Content of a model file.

    Args:
        config: rebuilds the network.
        weights: the network's state dict (of the EMA, if training keeps one).
        metrics: results of the last evaluation, plain numbers by name.
        info: origin: versions, dataset, epoch, options; plain types.
        training: state for resuming (optimiser, schedule, random states...); None in a file for inference only.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    metrics: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, half: bool = False) -> None:
    """Write a checkpoint atomically: to a temporary file, which is read back and then renamed.

    Args:
        path: with the suffix `.safetensors`, weights and configuration are written in that format, without the training
            state; with any other suffix, a PyTorch file.
        half: store floating-point weights as float16, which halves the file.

    Raises:
        RunError: if it cannot be written (for a full disk, the message has the missing size), or if a weight is not
            finite. The old file is then unchanged.
    """
    path = Path(path)
    weights = {strip_prefixes(name): _portable(tensor, half) for name, tensor in checkpoint.weights.items()}
    bad = [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise RunError(path, f"not saved: {bad[0]} is not finite", "resume from the last checkpoint at a lower rate")
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "weights": weights,
        "metrics": checkpoint.metrics,
        "info": checkpoint.info,
        "training": checkpoint.training,
    }
    if path.suffix.lower() == ".safetensors":
        data = _safetensors_bytes(content)
    else:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = seal(buffer.getvalue())
    write_atomically(path, data)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint to the CPU, with weights in float32.

    Raises:
        UserError: if the file is not a checkpoint of this platform (empty, truncated, damaged, HTML, another model...).
    """
    path = Path(path)
    content = read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_torch_file(path, FORMAT)
    return parse_checkpoint(path, content)


def is_checkpoint(content: Any) -> bool:
    """Whether `content`, read from a file, is a checkpoint of this platform."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def parse_checkpoint(path: Path, content: Any) -> Checkpoint:
    """Convert the content of a file into a checkpoint. `path` is only for messages. Raises UserError."""
    if not is_checkpoint(content):
        todo = "to import weights of the reference, run: python -m nets.weights.import_reference IN.pth OUT.pth"
        raise UserError(path, "not a checkpoint of this platform", todo)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        what = f"has format version {brief(version)}; this platform reads version {FORMAT_VERSION}"
        raise UserError(path, what, "update this platform")
    with wrap_errors(path, "damaged", "use another copy"):
        config = ModelConfig.from_dict(content["config"])
        weights = _check_weights(path, content["weights"])
        metrics, info, training = content.get("metrics") or {}, content.get("info") or {}, content.get("training")
        if not isinstance(metrics, dict) or not isinstance(info, dict) or not isinstance(training, dict | None):
            raise ValueError("metrics, info or training is not a dictionary")
    _check_fit(path, config, weights)
    return Checkpoint(config, weights, metrics, info, training)


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a .safetensors file: `weights`, and the content of a checkpoint if its metadata holds one."""
    from safetensors.torch import load

    with open_model_file(path) as file, wrap_errors(path, "truncated or damaged", "use another copy"):
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise UserError(path, "is not a .safetensors file, or damaged", "use another copy")
        entries = json.loads(file.read(length))
        ends = (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        # checked before the whole file is read
        if 8 + length + max(ends, default=0) != os.fstat(file.fileno()).st_size:
            raise ValueError("its size differs from its header")
        metadata = entries.get("__metadata__") or {}
        content = json.loads(metadata["checkpoint"]) if "checkpoint" in metadata else {}
        file.seek(0)
        weights = load(file.read())
        if content and metadata.get("sha256") != _digest_of(weights, metadata["checkpoint"]):
            raise ValueError("its tensors differ from those that were written")
    return {**content, "weights": weights}


def strip_prefixes(name: str, prefixes: tuple[str, ...] = WRAPPER_PREFIXES) -> str:
    """Remove the prefixes of DataParallel and torch.compile, or others such as `model.`, from a tensor's name."""
    while name.startswith(prefixes):
        name = name.partition(".")[2]
    return name


def _check_weights(path: Path, weights: Any) -> dict[str, Tensor]:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(path, "contains no weights", "use another copy")
    result = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(path, f"{brief(name)} is not a tensor", "use another copy")
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise UserError(path, f"weights {name} contain NaN or infinity", "use an earlier checkpoint")
        result[strip_prefixes(name)] = tensor
    return result


def _check_fit(path: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Compare the weights of a large network with its configuration before memory for the network is allocated."""
    is_known = not config.backbone.startswith(TIMM_PREFIX) and config.num_classes <= USUAL_CLASSES
    if is_known and max(config.alpha, config.neck_width) <= USUAL_WIDTH:
        return  # loading the weights reports a mismatch
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in YOLOv4(config).state_dict().items()}
    missing = [name for name in expected if name not in weights]
    wrong = [name for name, shape in expected.items() if name in weights and weights[name].shape != shape]
    if missing:
        what = f"{len(missing)} of {len(expected)} tensors are missing, such as {missing[0]}"
    elif wrong:
        what = f"{wrong[0]} is {tuple(weights[wrong[0]].shape)}, not {tuple(expected[wrong[0]])}"
    elif len(weights) > len(expected):
        what = f"{next(name for name in weights if name not in expected)} does not belong to it"
    else:
        return
    raise UserError(path, f"{MISMATCH}: {what}", "use another copy")


def _portable(tensor: Tensor, half: bool) -> Tensor:
    """A contiguous copy on the CPU with its own storage (saving a view would save the whole storage behind it)."""
    tensor = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return tensor.half() if half and tensor.is_floating_point() else tensor


def _safetensors_bytes(content: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    weights = content["weights"]
    plain = {k: v for k, v in content.items() if k not in ("weights", "training")}
    text = json.dumps(plain)
    return save(weights, metadata={"checkpoint": text, "sha256": _digest_of(weights, text)})


def _digest_of(weights: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_model(path: str | Path) -> YOLOv4:
    """Load the network of a checkpoint, with its weights, in eval mode.

    Raises:
        UserError: if the file is not a checkpoint, or if its weights do not fit the network it describes.
    """
    checkpoint = load_checkpoint(path)
    model = YOLOv4(checkpoint.config)
    with wrap_errors(path, MISMATCH, "use another copy"):
        model.load_state_dict(checkpoint.weights)
    return model.eval()
