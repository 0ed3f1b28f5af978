"""Inputs and outputs of an exported file, and the metadata that describes them. Importing it needs no PyTorch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nets.model_config import FORMAT, STRIDES, ModelConfig
from utils.errors import UserError, wrap_errors

if TYPE_CHECKING:
    from torch import Tensor

METADATA_VERSION = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RAW_OUTPUTS = tuple(f"raw_stride{stride}" for stride in STRIDES)
DECODED_OUTPUTS = ("boxes", "scores")


@dataclass(frozen=True)
class Form:
    """Inputs and outputs of an exported file.

    Args:
        uint8_input: input (B, H, W, 3) uint8 RGB, as decoders return it, instead of (B, 3, H, W) float in [0, 1].
        decodes: outputs are boxes (B, N, 4) xyxy input pixels and scores (B, N, C), objectness x class probability,
            instead of three raw maps (B, 3 * (5 + C), H/s, W/s).
        nms: NMS is part of the graph. Outputs are boxes (K, 4), scores (K,), labels (K,) and images (K,), the index of
            the image in the batch.
        dynamic: accepts any batch size, and any input size in multiples of 32.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
    """

    uint8_input: bool = False
    decodes: bool = True
    nms: bool = False
    dynamic: bool = False
    precision: str = "fp32"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs (before suppression)."""
        return DECODED_OUTPUTS if self.decodes else RAW_OUTPUTS

    def example(self, config: ModelConfig) -> Tensor:
        """A random input for tracing."""
        import torch  # imported here: only tracing needs it

        height, width = config.input_size
        if self.uint8_input:
            return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
        return torch.rand(1, 3, height, width)


def write_metadata(config: ModelConfig, form: Form, info: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The metadata of a file, as texts by name: `format`; `model`, `form` and `info` as JSON; and readable hints."""
    height, width = config.input_size
    image = "uint8 (B, H, W, 3) RGB" if form.uint8_input else "float32 (B, 3, H, W) RGB in [0, 1]"
    return {
        "format": FORMAT,
        "format_version": str(METADATA_VERSION),
        "model": json.dumps(config.to_dict()),
        "form": json.dumps(dataclasses.asdict(form)),
        "info": json.dumps(dict(info or {})),
        "names": json.dumps(list(config.class_names)),
        "input": f"{image}, {height} x {width}, {config.resize_mode}",
        "description": "MobileNet-YOLOv4 detector; `model` contains classes, sizes and thresholds as JSON",
    }


def read_metadata(where: object, texts: Mapping[str, str]) -> tuple[ModelConfig, Form]:
    """The inverse of `write_metadata`.

    Raises:
        UserError: if the file was not exported by this platform, or by a newer version.
    """
    if texts.get("format") != FORMAT:
        raise UserError(where, "was not exported by this platform: it has no metadata", "use export.py")
    if (version := texts.get("format_version")) != str(METADATA_VERSION):
        what = f"has metadata version {version}; this platform reads version {METADATA_VERSION}"
        raise UserError(where, what, "update this platform")
    with wrap_errors(where, "its metadata is damaged", "export it again"):
        return ModelConfig.from_dict(json.loads(texts["model"])), Form(**json.loads(texts["form"]))
