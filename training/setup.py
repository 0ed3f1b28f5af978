"""Build the parts of a training run from its options: data, model, loader, optimiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.class_names import read_class_names
from data.division import AUTO_SEED
from data.image_cache import build_image_cache
from data.index import DatasetIndex
from data.index_cache import cache_folder
from data.loader import TrainLoader, build_train_loader, multi_scale_sizes
from data.open import AUTO_TRAIN, AUTO_VAL, open_dataset
from data.quick_check import quick_check
from data.shards import ShardSet, build_shard_loader, open_shards
from data.skips import skips_summary, warn_skips
from data.tools.anchors import propose_anchors
from data.tools.findings import INFO
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint
from nets.weights.pretrained import load_pretrained
from nets.weights.transfer import transfer_weights
from nets.yolov4 import YOLOv4
from training.choose import model_config, resolve_amp
from training.engine import Trainer
from training.optim import ModelEMA, build_optimizer, lr_factor, parameter_groups, scaled_lr
from training.options import AUTO_ANCHORS, TrainOptions
from training.sync_batch_norm import synchronise_batch_norms
from training.teacher import add_teacher
from utils import distributed
from utils.distributed import say
from utils.errors import warn
from utils.text import counted, quoted

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# ---- data


def open_data(options: TrainOptions) -> tuple[DatasetIndex, DatasetIndex, ShardSet | None]:
    """Open the training split, the validation split, and the shards of the training images, if any."""
    dataset = options.dataset
    names = read_class_names(Path(dataset.classes)) if dataset.classes else None
    shards = None if dataset.shards is None else open_shards(dataset.shards)
    data, split = dataset.data or "", dataset.train_split or "train"
    pictures = dataset.image_folder
    train = shards.index if shards is not None else open_dataset(data, split, names, image_folder=pictures)
    val_data, val_names = dataset.val_data or data, names or train.class_names
    val = open_dataset(val_data, dataset.val_split or "val", val_names, image_folder=pictures)
    if train.source.get("split") == AUTO_TRAIN and val.source.get("split") == AUTO_VAL:
        say(
            f"{data} has no training and validation splits: divided into {len(train)} training and {len(val)} "
            f"validation images with seed {AUTO_SEED}, every class in both, near-duplicates together "
            f"(lists: split/ of the run; to write such a division, run: python dataset.py split {quoted(data)})"
        )
    if dataset.limit and dataset.limit < len(train):
        chosen = np.random.default_rng(options.run.seed).permutation(len(train))[: dataset.limit]
        train = train.subset(np.sort(chosen))
    if dataset.teacher:
        train = add_teacher(train, dataset.teacher)
    findings = quick_check(train, val)
    if distributed.is_main():
        for finding in (each for each in findings if each.severity != INFO):
            warn(finding.where, finding.what, finding.todo)
        warn_skips(train)
        warn_skips(val, known=train.skips)
    for index, name in ((train, "train"), (val, "val")):
        say(f"{skips_summary(index, name)} ({index.name}, {counted(index.num_boxes, 'box')})")
    return train, val, shards


def build_loader(
    options: TrainOptions, config: ModelConfig, batch_size: int, index: DatasetIndex, shards: ShardSet | None
) -> TrainLoader:
    """Build the loader of the training split; `batch_size` is that of this process."""
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": options.machine.workers,
        "seed": options.run.seed,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
    }
    augment, dataset = options.augment, options.dataset
    if shards is not None:
        return build_shard_loader(shards, config.input_size, augment, config.letterbox, **common)
    sizes = multi_scale_sizes(config.input_size, options.network.multi_scale)
    scale = max(*augment.scale, *augment.mosaic_scale)
    cache = build_image_cache(index, config.input_size, options.machine.cache, cache_folder() / "images", scale)
    common |= {"balance": dataset.repeat_rare, "sizes": sizes, "image_cache": cache}
    common |= {"score_range": dataset.label_scores}
    return build_train_loader(index, config.input_size, augment, config.letterbox, **common)


def epoch_sizes(
    options: TrainOptions, input_size: tuple[int, int], epoch: int, epochs: int
) -> list[tuple[int, int]] | None:
    """The input sizes of an epoch's steps with `--grow-sizes`; None if the loader's sizes are used."""
    duration = options.duration
    if not duration.grow_sizes:
        return None
    size = input_size
    for smaller, until in zip(duration.grow_sizes, duration.grow_until, strict=True):
        if epoch < round(until * epochs):
            factor = smaller / min(input_size)
            size = tuple(max(round(side * factor / 32) * 32, 32) for side in input_size)  # type: ignore[assignment]
            break
    return multi_scale_sizes(size, options.network.multi_scale) or [size]


def has_mosaic(close_mosaic: float, epoch: int, epochs: int) -> bool:
    """Whether an epoch has mosaic, mixup and copy-paste: all but the last share `close_mosaic` of the run."""
    return epoch < epochs - round(close_mosaic * epochs)


# ---- model


def build_model(options: TrainOptions, start: Checkpoint | None, index: DatasetIndex) -> YOLOv4:
    """Build a new run's network, with random or pretrained weights, or with those of a checkpoint.

    Args:
        options: the options with their final values.
        start: the checkpoint of `--weights`, if any.
        index: the training split.
    """
    config = model_config(options, start, index)
    if options.network.anchors == AUTO_ANCHORS:
        proposal = propose_anchors(index, config.letterbox, config.anchors, options.run.seed)
        say(str(proposal))
        config = config.replace(anchors=proposal.anchors) if proposal.accepted else config
    model = YOLOv4(config)
    pretrained, weights = options.start.pretrained, options.start.weights
    report = load_pretrained(model, pretrained) if start is None else transfer_weights(model, start, weights)
    say(str(report))
    return model


# ---- optimiser


def build_trainer(
    options: TrainOptions,
    model: YOLOv4,
    ema: ModelEMA | None,
    batch_size: int,
    steps_per_epoch: int,
    index: DatasetIndex,
) -> Trainer:
    """Build loss, optimiser, schedule and mixed precision for a network that is already on its device."""
    device = next(model.parameters()).device
    optim = options.optim
    batch = batch_size * options.duration.accumulate * distributed.world_size()
    rate = scaled_lr(optim.optimizer, batch, optim.learning_rate)
    factor = 1.0 if optim.backbone_rate_factor is None else optim.backbone_rate_factor
    groups = parameter_groups(model, rate, optim.weight_decay, factor)
    for group in groups:
        group["base_rate"] = group["lr"]
    wrapped = _join_processes(options, model, device)
    is_fast = options.machine.fast and _make_fast(wrapped, device, options.network.multi_scale > 0)
    amp = AMP[resolve_amp(options.machine.amp, device)]
    weights = class_weights(index, options.loss.class_balance)
    is_fused = is_fast or device.type == "cpu"
    return Trainer(
        model=wrapped,
        loss=YOLOLoss(model.config, options.loss, distributed.total, distributed.world_size(), weights),
        optimizer=build_optimizer(optim.optimizer, groups, optim.momentum, fused=is_fused),
        factor=schedule(options, steps_per_epoch, steps_per_epoch * options.duration.epochs),
        device=device,
        amp=amp,
        scaler=torch.amp.GradScaler(device.type) if amp is torch.float16 else None,
        ema=ema,
        ema_source=model,
        accumulate=options.duration.accumulate,
        clip=optim.clip,
    )


def schedule(options: TrainOptions, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The function from step to learning-rate factor, for a run of `total_steps`."""
    warmup = min(round(options.optim.warmup_epochs * steps_per_epoch), total_steps // 2)
    return lr_factor(options.optim.schedule, warmup, total_steps, options.optim.final_rate)


def freeze(trainer: Trainer, backbone: nn.Module, options: TrainOptions, epoch: int) -> None:
    """Freeze parts of the backbone as the options say: all of it in the first epochs, or its first layers.

    Frozen batch norms also keep their running statistics, so that the frozen part computes the same as after
    pretraining.
    """
    start = options.start
    backbone.requires_grad_(True)
    layers = list(getattr(backbone, "features", backbone).children())[: start.freeze_layers]
    frozen = [backbone] if epoch < start.freeze_epochs else layers
    for module in frozen:
        module.requires_grad_(False)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    trainer.frozen = (*frozen, *(norms if start.freeze_norms else ()))


def class_weights(index: DatasetIndex, power: float) -> tuple[float, ...]:
    """(1 / frequency) ** power of each class, scaled to a mean of 1 over all boxes; empty for power 0."""
    if not power:
        return ()
    counts = np.bincount(index.labels, minlength=len(index.class_names)).clip(1)
    raw = (counts.mean() / counts) ** power
    return tuple(float(w) for w in raw / np.average(raw, weights=counts))


def _join_processes(options: TrainOptions, model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the network for training in several processes; returns it unchanged for a single process."""
    if distributed.world_size() == 1:
        return model
    if options.machine.sync_bn:
        model = synchronise_batch_norms(model, device)
    ids = [device.index] if device.type == "cuda" else None
    has_frozen = options.start.freeze_epochs > 0 or options.start.freeze_layers > 0
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=has_frozen)


def _make_fast(model: nn.Module, device: torch.device, sizes_vary: bool) -> bool:
    """Compile the network on a GPU, where it is faster. Returns whether it was compiled."""
    if device.type != "cuda":
        if distributed.is_main():
            warn("--fast", f"has no effect on {device.type}: a compiled network was not faster there", "leave it out")
        return False
    torch.backends.cudnn.benchmark = not sizes_vary
    torch.set_float32_matmul_precision("high")
    model.compile()  # in place: the weights keep their names, and the copy for evaluation is not compiled
    return True
