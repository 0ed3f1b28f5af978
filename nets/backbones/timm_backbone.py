"""Any timm model with feature maps as a backbone: `timm:NAME` (needs the extra `timm`)."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn

from nets.backbones.base import TIMM_PREFIX, Backbone
from nets.layers import set_bn_eps
from nets.model_config import STRIDES, ModelConfig
from utils.errors import UserError, require_packages


class TimmBackbone(Backbone):
    """A timm model cut at strides 8, 16 and 32; `features` is timm's own feature extractor.

    Raises:
        MissingExtra: timm is not installed.
        UserError: timm has no such model, the model has no maps at these strides, or `alpha` or `padding` is set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.alpha != 1.0:
            todo = "choose a timm model of another width"
            raise UserError("alpha", f"{config.alpha} cannot be set for {config.backbone}", todo)
        if config.padding != "symmetric":
            todo = "use symmetric; timm's tf_ models have this padding built in"
            raise UserError("padding", f"{config.padding} cannot be set for {config.backbone}", todo)
        self.features = build_timm_features(config.backbone)
        c3, c4, c5 = self.features.feature_info.channels()  # type: ignore[union-attr, operator]
        self.out_channels = (c3, c4, c5)
        if config.bn_eps is not None:
            set_bn_eps(self.features, config.bn_eps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.features(images)
        return c3, c4, c5


def import_timm() -> Any:
    """Import timm. Raises MissingExtra if it is not installed."""
    require_packages("backbone timm:NAME", ["timm"], "timm")
    import timm

    return timm


def build_timm_features(backbone: str, pretrained: bool = False, pretrained_file: str | None = None) -> nn.Module:
    """Build timm's feature extractor of `timm:NAME`, with maps at strides 8, 16 and 32.

    Args:
        backbone: the name, with or without `timm:`.
        pretrained: download timm's weights.
        pretrained_file: load this file of timm weights instead.
    """
    timm = import_timm()
    name = backbone.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        todo = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise UserError("backbone", f"timm has no model {name!r}", todo)
    indices = _stride_indices(timm, name)
    overlay = {"file": pretrained_file} if pretrained_file else None
    return timm.create_model(
        name,
        features_only=True,
        out_indices=indices,
        pretrained=pretrained or pretrained_file is not None,
        pretrained_cfg_overlay=overlay,
    )


def _stride_indices(timm: Any, name: str) -> tuple[int, ...]:
    """Indices of the model's last maps at strides 8, 16 and 32."""
    import torch

    try:
        with torch.device("meta"):
            probe = timm.create_model(name, features_only=True)
        reductions = [entry["reduction"] for entry in probe.feature_info.info]
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        raise UserError("backbone", f"timm:{name} returns no feature maps", "use a convolutional model") from error
    if any(stride not in reductions for stride in STRIDES) or str(getattr(probe, "output_fmt", "NCHW")) == "NHWC":
        raise UserError(
            "backbone", f"timm:{name} has maps at strides {reductions}, not 8, 16 and 32", "use another model"
        )
    return tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
