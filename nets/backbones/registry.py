"""The table of backbones, by name, and `timm:NAME`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from nets.backbones.base import TIMM_PREFIX, Backbone
from nets.backbones.timm_backbone import TimmBackbone
from nets.model_config import ModelConfig
from utils.errors import UserError, brief

Builder = Callable[[ModelConfig], Backbone]
_BUILDERS: dict[str, Builder] = {}
_discovered = False


def register_backbone(builder: Builder) -> Builder:
    """Decorator that adds a builder to the table; the function's name becomes a value of `--backbone`."""
    _BUILDERS[builder.__name__] = builder
    return builder


def list_backbones() -> list[str]:
    """The registered names, sorted. `timm:NAME` is also accepted, for any timm model."""
    _discover()
    return sorted(_BUILDERS)


def build_backbone(config: ModelConfig) -> Backbone:
    """Build the backbone `config.backbone` with random weights.

    Raises:
        UserError: for an unknown name.
        MissingExtra: for `timm:NAME` without timm.
    """
    _discover()
    if config.backbone.startswith(TIMM_PREFIX):
        return TimmBackbone(config)
    if config.backbone not in _BUILDERS:
        known = ", ".join(list_backbones())
        raise UserError("backbone", f"unknown name {brief(config.backbone)}", f"choose from {known} or timm:NAME")
    return _BUILDERS[config.backbone](config)


def _discover() -> None:
    """Import every file of this package once, which registers its builders."""
    global _discovered
    if not _discovered:
        _discovered = True
        package = importlib.import_module("nets.backbones")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"nets.backbones.{module.name}")
