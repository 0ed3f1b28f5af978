"""Load pretrained backbone weights of other projects: rename their parameters and report what was loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nets.backbones.base import TIMM_PREFIX
from nets.weights import IMAGENET, NONE
from nets.weights.bundled import find_model
from nets.weights.checkpoint import WRAPPER_PREFIXES, read_safetensors, strip_prefixes
from nets.weights.model_file import open_model_file
from nets.weights.torch_file import read_legacy_torch_file, read_torch_file
from nets.yolov4 import YOLOv4
from utils.download import download
from utils.errors import RunError, UserError, reason_of

_MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's, and most of timm's
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # TensorFlow's x / 127.5 - 1, and timm's mobilenetv1_100
}
_TENSORFLOW_EPS = {"mobilenet_v1": 1e-3, "mobilenet_v2": 1e-5, "mobilenet_v3_large": 1e-3, "mobilenet_v3_small": 1e-3}
_TIMM_V1 = f"{TIMM_PREFIX}mobilenetv1_100"
_TIMM_V1_STAGES = (0, 1, 3, 5, 11)  # depthwise-separable blocks before each of timm's stages
_WRAPPERS = (*WRAPPER_PREFIXES, "model.", "backbone.")
_SHOWN = 4  # names of each kind in the report


@dataclass(frozen=True)
class PretrainedReport:
    """Result of loading pretrained weights; `print(report)` shows it in a few lines.

    Args:
        source: `none`, `imagenet` or the file.
        loaded, missing, unexpected, mismatched: names of the tensors that were copied, that are missing in the source,
            that do not exist in the backbone, and whose shape differs (with both shapes).
        total: number of tensors of the backbone, without batch counters.
    """

    source: str
    total: int = 0
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.source == NONE:
            return "pretrained: none, the backbone is initialised randomly"
        lines = [f"pretrained: {len(self.loaded)} of the backbone's {self.total} tensors from {self.source}"]
        kinds = {
            "not in the source, initialised randomly": self.missing,
            "of another shape, initialised randomly": self.mismatched,
            "in the source, not used (classifier)": self.unexpected,
        }
        for text, names in kinds.items():
            if names:
                more = ", ..." if len(names) > _SHOWN else ""
                lines.append(f"  {len(names)} {text}: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)


def pretrained_settings(backbone: str, source: str) -> dict[str, Any]:
    """Settings of the network that the weights of `source` (see `load_pretrained`) require.

    Returns:
        Fields of `ModelConfig`: `mean`, `std`, `bn_eps`, `padding`; empty for `none`. They are defaults, which the
        user's options override.

    Raises:
        UserError: for a file that cannot be read.
        MissingExtra: for `timm:NAME` if timm is not installed.
    """
    if source == NONE:
        return {}
    if source != IMAGENET and not backbone.startswith(TIMM_PREFIX):
        content = read_weights_file(Path(source))
        own = content.get("config") if isinstance(content, Mapping) else None
        if isinstance(own, Mapping) and {"mean", "std", "bn_eps", "padding"} <= set(own):
            return {name: own[name] for name in ("mean", "std", "bn_eps", "padding")}
        weights = extract_state_dict(content, source)
        if _is_tensorflow(weights):
            return _settings("inception", _TENSORFLOW_EPS.get(backbone), "tf_same")
        return _settings("inception" if "conv_stem.weight" in weights else "imagenet")
    if backbone.startswith(TIMM_PREFIX):
        from nets.backbones.timm_backbone import import_timm

        cfg = import_timm().get_pretrained_cfg(backbone.removeprefix(TIMM_PREFIX))
        return {"mean": cfg.mean, "std": cfg.std, "bn_eps": None, "padding": "symmetric"} if cfg else {}
    return _settings("inception" if backbone == "mobilenet_v1" else "imagenet")


def load_pretrained(model: YOLOv4, source: str) -> PretrainedReport:
    """Load backbone weights into `model`.

    Args:
        model: a network built with the settings of `pretrained_settings`.
        source: `none`; `imagenet`: torchvision's published weights for V2 and V3, timm's for V1 and `timm:NAME`; or a
            file: of torchvision, of timm (V1, `timm:NAME`), dequantised TensorFlow weights, or a checkpoint.

    Raises:
        UserError: for a file that cannot be read, or that matches less than half of the backbone.
        RunError: if a download fails.
        MissingExtra: if timm is needed and not installed.
    """
    if source == NONE:
        return PretrainedReport(NONE)
    backbone = model.config.backbone
    if source == IMAGENET:
        if model.config.alpha != 1.0:
            what = f"no weights are published for {backbone} at alpha {model.config.alpha:g}"
            raise UserError("--pretrained imagenet", what, "use --alpha 1, --pretrained FILE or --pretrained none")
        return load_pretrained_state(model.backbone, _download(backbone), backbone, source)
    weights = extract_state_dict(read_weights_file(Path(source)), source)
    if backbone.startswith(TIMM_PREFIX):
        weights = _timm_names(backbone, weights, model, source)
    return load_pretrained_state(model.backbone, weights, backbone, source)


def read_weights_file(path: Path) -> Any:
    """Read a .pth (new or old format) or .safetensors file: tensors and plain types. It runs no code of the file.

    Raises:
        UserError: if the file cannot be read.
    """
    path = find_model(path) if path.is_dir() else path
    if not os.path.lexists(path):
        raise UserError(path, "no such file", "give none, imagenet or a weights file")
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    with open_model_file(path) as file:
        is_legacy = file.read(2) == b"\x80\x02"
    return read_legacy_torch_file(path) if is_legacy else read_torch_file(path)


def extract_state_dict(content: Any, source: object) -> dict[str, Tensor]:
    """Extract the backbone's tensors from a file's content, with torchvision's or timm's names without prefixes.

    It searches `weights`, `state_dict` and `model`, and removes the prefixes of wrappers. If there are names with
    `backbone.`, only those are kept.

    Raises:
        UserError: if there are no tensors.
    """
    for key in ("weights", "state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(source, "contains no named tensors", "give a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    backbone_only = {name: tensor for name, tensor in tensors.items() if "backbone." in name}
    return {_rename(strip_prefixes(name, _WRAPPERS)): tensor for name, tensor in (backbone_only or tensors).items()}


def _settings(normalization: str, bn_eps: float | None = None, padding: str = "symmetric") -> dict[str, Any]:
    mean, std = _MEAN_STD[normalization]
    return {"mean": mean, "std": std, "bn_eps": bn_eps, "padding": padding}


def _is_tensorflow(weights: Mapping[str, Tensor]) -> bool:
    """Whether they are dequantised TensorFlow weights: float16 convolutions, float32 norms, no classifier."""
    conv, norm = weights.get("features.0.0.weight"), weights.get("features.0.1.weight")
    if conv is None or norm is None or any(name.startswith("classifier.") for name in weights):
        return False
    return conv.dtype == torch.float16 and norm.dtype == torch.float32


def _rename(name: str) -> str:
    """Convert timm's and TensorFlow's names of MobileNetV1 to ours; other names are unchanged."""
    name = re.sub(r"^(features\.\d+)\.conv\.(weight)$", r"\1.0.\2", name)
    return re.sub(r"^(features\.\d+)\.bn\.", r"\1.1.", name)


def _timm_v1_name(name: str) -> str:
    name = re.sub(r"^conv_stem\.", "features.0.0.", re.sub(r"^bn1\.", "features.0.1.", name))
    match = re.match(r"blocks\.(\d)\.(\d)\.(conv_dw|bn1|conv_pw|bn2)\.(.*)", name)
    if match is None:
        return name
    stage, block, layer, rest = match.groups()
    depthwise = 2 * (_TIMM_V1_STAGES[int(stage)] + int(block)) + 1
    number = depthwise + (layer in ("conv_pw", "bn2"))
    return f"features.{number}.{int(layer.startswith('bn'))}.{rest}"


def _timm_names(backbone: str, weights: dict[str, Tensor], model: YOLOv4, source: str) -> dict[str, Tensor]:
    """Rename the tensors of a timm file for the feature extractor; for a classifier's file, timm converts the names."""
    own = model.backbone.state_dict()
    if sum(name in own for name in weights) * 2 >= len(own):
        return weights
    bare = {f"features.{name}": tensor for name, tensor in weights.items()}
    if sum(name in own for name in bare) * 2 >= len(own):
        return bare
    from nets.backbones.timm_backbone import build_timm_features

    features = build_timm_features(backbone, pretrained_file=source)
    return {f"features.{name}": tensor for name, tensor in features.state_dict().items()}


def load_pretrained_state(
    backbone: nn.Module, weights: Mapping[str, Tensor], name: str, source: str
) -> PretrainedReport:
    """Copy the tensors with matching names and shapes into a backbone, and report the others.

    Args:
        backbone: the module of the backbone called `name`.
        weights: a state dict with torchvision's names, timm's or ours.
        source: for the report and for errors.

    Raises:
        UserError: if less than half of the backbone's tensors match, or one is not finite.
    """
    if name == "mobilenet_v1":
        weights = {_timm_v1_name(key): tensor for key, tensor in weights.items()}
    own, theirs = (
        {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
        for state in (backbone.state_dict(), weights)
    )
    common = [key for key in own if key in theirs]
    fits = [key for key in common if own[key].shape == theirs[key].shape]
    report = PretrainedReport(
        source=source,
        total=len(own),
        loaded=tuple(fits),
        missing=tuple(key for key in own if key not in theirs),
        unexpected=tuple(key for key in theirs if key not in own),
        mismatched=tuple(
            f"{key} {tuple(theirs[key].shape)} for {tuple(own[key].shape)}" for key in common if key not in fits
        ),
    )
    if 2 * len(fits) < len(own):
        raise UserError(source, *_why_not(name, report))
    for key in fits:
        if not theirs[key].isfinite().all():
            raise UserError(source, f"{key} contains NaN or infinity", "use another copy")
    with torch.no_grad():
        for key in fits:
            own[key].copy_(theirs[key])
    return report


def _why_not(name: str, report: PretrainedReport) -> tuple[str, str]:
    what = f"only {len(report.loaded)} of the {report.total} tensors of {name} match"
    if report.mismatched:
        return f"{what}: {report.mismatched[0]}", "give the --alpha of these weights, or other weights"
    first = f" (the file has {report.unexpected[0]})" if report.unexpected else ""
    return what + first, "give weights of this backbone, or the --backbone of these weights"


def _download(backbone: str) -> Mapping[str, Tensor]:
    """Download the published ImageNet weights of a backbone, with our names."""
    if backbone == "mobilenet_v1":
        return _download_timm(_TIMM_V1).state_dict()
    if backbone.startswith(TIMM_PREFIX):
        return {f"features.{name}": tensor for name, tensor in _download_timm(backbone).state_dict().items()}
    return _download_torchvision(backbone)


def _download_timm(backbone: str) -> nn.Module:
    from nets.backbones.timm_backbone import build_timm_features

    try:
        return build_timm_features(backbone, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the exception classes of Hugging Face's client change between versions
        name = backbone.removeprefix(TIMM_PREFIX)
        todo = f"download https://huggingface.co/timm (model {name}) on another machine and give --pretrained FILE"
        what = f"timm cannot download the weights of {name}: {reason_of(error)}"
        raise RunError("--pretrained imagenet", what, todo) from error


def torchvision_weights(backbone: str) -> Any:
    """torchvision's weights entry (`.url`, `.get_state_dict`) of a backbone. Raises UserError if there is none."""
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(backbone).DEFAULT
    except ValueError as error:
        what = f"no weights are published for {backbone}"
        raise UserError("--pretrained imagenet", what, "use --pretrained none or FILE") from error


def _download_torchvision(backbone: str) -> Mapping[str, Tensor]:
    """Download torchvision's file into torch's cache; its name ends in the first digits of its SHA-256."""
    entry = torchvision_weights(backbone)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[1]
    try:
        download(entry.url, cached, sha256=cached.stem.rpartition("-")[2])
    except (RunError, OSError) as error:
        reason = error.what if isinstance(error, RunError) else error.strerror
        todo = f"download {entry.url} on another machine and save it as {cached}, or give --pretrained FILE"
        raise RunError("--pretrained imagenet", f"cannot download {entry.url}: {reason}", todo) from error
    return extract_state_dict(read_weights_file(cached), cached)
