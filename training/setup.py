"""From options to what a training works with: data, model, loader, optimiser, in this order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.class_names import read_class_names
from data.image_cache import build_image_cache
from data.index import DatasetIndex
from data.index_cache import cache_folder
from data.loader import TrainLoader, build_train_loader, multi_scale_sizes
from data.open import default_splits, open_dataset
from data.quick_check import quick_check
from data.shards import ShardSet, build_shard_loader, open_shards
from data.skips import skips_summary, warn_skips
from data.tools.findings import INFO
from nets.backbones.base import TIMM_PREFIX
from nets.loss_config import LossConfig
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig, check_input_size, scale_anchors
from nets.weights.bundled import bundled_names, find_model
from nets.weights.checkpoint import Checkpoint, load_checkpoint
from nets.weights.pretrained import NONE, load_pretrained, pretrained_settings
from nets.weights.transfer import transfer_weights
from nets.yolov4 import YOLOv4
from training.checks import build_augment
from training.engine import Trainer
from training.optim import ModelEMA, build_optimizer, parameter_groups, rate_factor, scaled_rate
from training.recipe import Choice, choose_recipe
from training.sync_batch_norm import synchronise_batch_norms
from training.teacher import add_teacher
from utils import distributed
from utils.distributed import say
from utils.errors import warn

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_SIZE = (416, 416)
START = "small"  # of the bundled weights, where --auto chooses the network
PRETRAINED_RATE = 0.1  # of the backbone, beside a neck that starts at random (docs/EXPERIMENTS.md)

# `options` is train.TrainOptions everywhere here

# ---- data


def open_data(options: Any) -> tuple[DatasetIndex, DatasetIndex, ShardSet | None]:
    """The split to learn from, the one to score, and the shards that hold the first one's pictures, if any."""
    names = read_class_names(Path(options.classes)) if options.classes else None
    train_split, val_split = options.train_split, options.val_split
    if train_split is None or val_split is None:
        found = default_splits(options.data)
        train_split, val_split = train_split or found[0], val_split or found[1]
    shards = None if options.shards is None else open_shards(options.shards)
    train = shards.index if shards is not None else open_dataset(options.data, train_split, class_names=names)
    val = open_dataset(options.val_data or options.data, val_split, class_names=names or train.class_names)
    if options.limit and options.limit < len(train):
        chosen = np.random.default_rng(options.seed).permutation(len(train))[: options.limit]
        train = train.subset(np.sort(chosen))
    if options.teacher:
        train = add_teacher(train, options.teacher)
    findings = quick_check(train, val)
    if distributed.is_main():
        for finding in (each for each in findings if each.severity != INFO):
            warn(finding.where, finding.what, finding.todo)
        warn_skips(train)
        warn_skips(val)
    for index, name in ((train, "train"), (val, "val")):
        say(f"{skips_summary(index, name)} ({index.name}, {index.num_boxes} boxes)")
    return train, val, shards


def choose_options(options: Any, index: DatasetIndex) -> Any:
    """`--auto`: the options with those that the user left alone chosen by the data."""
    defaults = type(options)()
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    classes = len(index.class_names)
    images = np.bincount(np.unique(owner * classes + index.labels) % classes, minlength=classes)
    boxes = np.bincount(index.labels, minlength=classes)
    is_ours = not (options.backbone or "").startswith(TIMM_PREFIX)
    epochs = None if options.epochs == defaults.epochs else options.epochs
    network = _choose_network(options, defaults)
    is_detector = options.weights is not None or bool(network)
    is_pretrained = _is_pretrained(options) or is_detector
    choices = [*network, *choose_recipe(len(index), boxes, images, is_pretrained, is_ours, epochs, is_detector)]
    fixed = ("epochs", "eval_every") if options.minutes else ()  # these are for `fit_epochs` to choose
    if options.optimizer != defaults.optimizer:
        fixed = (*fixed, "learning_rate")  # another's rate
    free = [c for c in choices if getattr(options, c.option) == getattr(defaults, c.option) and c.option not in fixed]
    say("\n".join([f"preset auto, for {len(index)} images and {index.num_boxes} boxes:", *map(str, free)]))
    return dataclasses.replace(options, auto=False, **{c.option: c.value for c in free})


def _choose_network(options: Any, defaults: Any) -> list[Choice]:
    """The bundled detector as the start, where neither a network nor a start was asked for."""
    names = ("weights", "pretrained", "backbone", "alpha", "neck", "neck_conv", "neck_width", "se_order", "padding")
    if any(getattr(options, name) != getattr(defaults, name) for name in (*names, "scale_xy", "anchors")):
        return []
    if START not in bundled_names():
        return []
    return [Choice("weights", START, "a bundled detector needs fewer images and steps, and is quick on a CPU, too")]


def build_loader(
    options: Any, config: ModelConfig, batch_size: int, index: DatasetIndex, shards: ShardSet | None
) -> TrainLoader:
    """Batches of the training split; `batch_size` is this process's own."""
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": options.workers,
        "seed": options.seed,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
    }
    augment = build_augment(options)
    if shards is not None:
        return build_shard_loader(shards, config.input_size, augment, config.letterbox, **common)
    common |= {"balance": options.repeat_rare, "sizes": multi_scale_sizes(config.input_size, options.multi_scale)}
    scale = max(*options.scale, *options.mosaic_scale)
    cache = build_image_cache(index, config.input_size, options.cache, cache_folder() / "images", scale)
    common |= {"image_cache": cache, "score_range": options.label_scores}
    return build_train_loader(index, config.input_size, augment, config.letterbox, **common)


def epoch_sizes(options: Any, input_size: tuple[int, int], epoch: int) -> list[tuple[int, int]] | None:
    """The input sizes of an epoch's steps where sizes grow; None leaves those of the loader."""
    if not options.grow_sizes:
        return None
    size = input_size
    for smaller, until in zip(options.grow_sizes, options.grow_until, strict=True):
        if epoch < round(until * options.epochs):
            factor = smaller / min(input_size)
            size = tuple(max(round(side * factor / 32) * 32, 32) for side in input_size)  # type: ignore[assignment]
            break
    return multi_scale_sizes(size, options.multi_scale) or [size]


# ---- model


def build_model(options: Any, index: DatasetIndex) -> YOLOv4:
    """A new run's network: of random, of pretrained, or of weights that another run has learnt."""
    start = load_checkpoint(find_model(options.weights)) if options.weights else None
    model = YOLOv4(_model_config(options, start, index))
    report = (
        load_pretrained(model, options.pretrained) if start is None else transfer_weights(model, start, options.weights)
    )
    say(str(report))
    return model


def _model_config(options: Any, start: Checkpoint | None, index: DatasetIndex) -> ModelConfig:
    """What was asked for, over what the checkpoint has, over what the pretrained weights expect."""
    backbone = options.backbone or (start.config.backbone if start else "mobilenet_v2")
    fields: dict[str, Any] = (
        pretrained_settings(backbone, options.pretrained) if start is None else start.config.to_dict()
    )
    fields |= {"class_names": index.class_names, "backbone": backbone}
    if options.input_size is not None:
        fields["input_size"] = check_input_size(options.input_size)
    for name in ("alpha", "neck", "neck_conv", "neck_width", "se_order", "padding", "scale_xy", "resize_mode"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    if start is None:
        fields["anchors"] = scale_anchors(fields.setdefault("input_size", DEFAULT_SIZE))
    config = ModelConfig(**fields)
    if options.anchors == "auto":
        from data.tools.anchors import propose_anchors

        report = propose_anchors(index, config.letterbox, config.anchors, options.seed)
        say(str(report))
        config = config.replace(anchors=report.anchors) if report.accepted else config
    return config


def _is_pretrained(options: Any) -> bool:
    return options.pretrained != NONE or options.weights is not None


# ---- optimiser


def build_trainer(
    options: Any, model: YOLOv4, ema: ModelEMA | None, batch_size: int, steps_per_epoch: int, index: DatasetIndex
) -> Trainer:
    """Loss, optimiser, schedule and precision around a network that is on its device."""
    device = next(model.parameters()).device
    batch = batch_size * options.accumulate * distributed.world_size()
    rate = scaled_rate(options.optimizer, batch, options.learning_rate)
    usual = PRETRAINED_RATE if _is_pretrained(options) else 1.0
    factor = usual if options.backbone_rate is None else options.backbone_rate
    groups = parameter_groups(model, rate, options.weight_decay, factor)
    for group in groups:
        group["base_rate"] = group["lr"]
    wrapped = _join_processes(options, model, device)
    is_fast = options.fast and _make_fast(wrapped, device, options.multi_scale > 0)
    amp = AMP[resolve_amp(options.amp, device)]
    total_steps = steps_per_epoch * options.epochs
    warmup = min(round(options.warmup_epochs * steps_per_epoch), total_steps // 2)
    return Trainer(
        model=wrapped,
        loss=YOLOLoss(
            model.config,
            _loss_config(options),
            distributed.total,
            distributed.world_size(),
            class_weights(index, options.class_balance),
        ),
        optimizer=build_optimizer(options.optimizer, groups, options.momentum, fused=is_fast or device.type == "cpu"),
        factor=rate_factor(options.schedule, warmup, total_steps, options.final_rate),
        device=device,
        amp=amp,
        scaler=torch.amp.GradScaler(device.type) if amp is torch.float16 else None,
        ema=ema,
        ema_source=model,
        accumulate=options.accumulate,
        clip=options.clip,
    )


def freeze(trainer: Trainer, backbone: nn.Module, options: Any, epoch: int) -> None:
    """Hold still what the options say: the backbone in phase one of the reference's recipe, or its first layers.

    Frozen batch norms keep their averages too, so that the frozen part computes what it was pretrained to.
    """
    backbone.requires_grad_(True)
    layers = list(getattr(backbone, "features", backbone).children())[: options.freeze_layers]
    frozen = [backbone] if epoch < options.freeze_epochs else layers
    for module in frozen:
        module.requires_grad_(False)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    trainer.frozen = (*frozen, *(norms if options.freeze_norms else ()))


def resolve_amp(amp: str, device: torch.device) -> str:
    """`auto` to the precision that the device does well."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "none"


def _loss_config(options: Any) -> LossConfig:
    return LossConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(LossConfig)})


def class_weights(index: DatasetIndex, power: float) -> tuple[float, ...]:
    """One factor a class, 1 / frequency to a power, whose mean over all boxes is 1; empty for power 0."""
    if not power:
        return ()
    counts = np.bincount(index.labels, minlength=len(index.class_names)).clip(1)
    raw = (counts.mean() / counts) ** power
    return tuple(float(w) for w in raw / np.average(raw, weights=counts))


def _join_processes(options: Any, model: nn.Module, device: torch.device) -> nn.Module:
    """The network as one of several processes trains it; alone, the network."""
    if distributed.world_size() == 1:
        return model
    if options.sync_bn:
        model = synchronise_batch_norms(model, device)
    ids = [device.index] if device.type == "cuda" else None
    has_frozen = options.freeze_epochs > 0 or options.freeze_layers > 0
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=has_frozen)


def _make_fast(model: nn.Module, device: torch.device, sizes_vary: bool) -> bool:
    """Compile the network where that pays: on a GPU. Returns whether it did."""
    if device.type != "cuda":
        if distributed.is_main():
            warn("--fast", f"does nothing on {device.type}: compiled was no quicker there", "leave it out")
        return False
    torch.backends.cudnn.benchmark = not sizes_vary
    torch.set_float32_matmul_precision("high")
    model.compile()  # in place: the weights keep their names, and what is copied to be scored is not compiled
    return True
