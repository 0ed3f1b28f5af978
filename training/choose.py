"""Resolve every option to its final value and its origin: checkpoint, data, device or default."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.image_cache import available_memory, cache_bytes, free_memory
from data.index import DatasetIndex
from data.loader import fitting_workers, multi_scale_sizes
from data.open import default_splits
from imaging.letterbox import Letterbox
from nets.backbones.base import TIMM_PREFIX
from nets.model_config import STRIDES, YOLOV4_ANCHORS, ModelConfig, check_input_size, scale_anchors
from nets.weights import BUNDLED, IMAGENET, NONE
from nets.weights.bundled import MODEL_DATA, bundled_names, find_model
from nets.weights.checkpoint import Checkpoint, load_checkpoint
from nets.weights.pretrained import pretrained_settings
from training.optim import BASE_RATES
from training.options import AUTO_ANCHORS, KEPT_ANCHORS, YOLOV4, TrainOptions
from training.recipe import GPU_BATCH, USUAL_BATCH, choose_recipe
from training.summary import training_bytes
from utils import distributed
from utils.config import AUTO, CHECKPOINT, DEFAULT, Settings, get_option
from utils.cpus import usable_cpus
from utils.errors import UserError
from utils.text import counted

TrainSettings = Settings[TrainOptions]

# options of the network that are fields of ModelConfig under the same name
NETWORK = ("backbone", "alpha", "neck", "neck_conv", "neck_width", "se_order", "padding", "scale_xy", "resize_mode")
DEFAULT_SIZE = (416, 416)
START = "small"  # the bundled detector that --auto starts from
# If more than this fraction of the objects is narrower than a cell of the finest map, the input is enlarged.
NARROW_SHARE, CELL = 0.25, 8.0
LARGER_SIZES = (320, 416, 512)
TRIMMED_SHARE = 0.95  # the input is trimmed to what this fraction of the images fills
TRIMMED_AREA = 0.67  # if that is at most this fraction of the input; at 0.8, accuracy fell (docs/EXPERIMENTS.md, 20)
PRETRAINED_RATE = 0.1  # of a pretrained backbone, with a randomly initialised neck (docs/EXPERIMENTS.md)
MEMORY_SHARE = 0.7  # maximum share of the free memory for a training step
GPU_WORKERS = 8
CACHE_SHARE = 0.25  # share of the free memory for --cache auto
# paths of the data: free when a run is resumed, because the content is compared
DATA_PATHS = ("data", "val_data", "classes", "shards", "image_folder", "teacher")
MACHINE = ("device", "threads", "workers", "amp")  # chosen again when a run is resumed, unless given by the user


# ---- where to start and which network


def choose_start(settings: TrainSettings) -> TrainSettings:
    """Resolve `--weights` and `--pretrained`.

    The option with the stronger origin takes precedence; `bundled` becomes the file that fits the network.

    Raises:
        UserError: if no bundled detector has this network.
    """
    start = settings.options.start
    is_free = settings.options.duration.auto and not settings.is_given("weights", "pretrained", "anchors", *NETWORK)
    if is_free and START in bundled_names():
        why = "a bundled detector needs fewer images and steps than a backbone or random weights"
        return settings.choose(AUTO, {"weights": START}, {"weights": why})
    is_stronger = settings.rank("pretrained") > settings.rank("weights")
    if start.weights is not None and start.pretrained != NONE and not is_stronger:
        return settings.choose(AUTO, {"pretrained": NONE}, {"pretrained": "--weights sets the initial weights"})
    if start.weights is not None and is_stronger:
        settings = _take_network(settings, load_checkpoint(find_model(start.weights)), start.weights)
        why = "--pretrained sets the initial weights; the network is that of the preset"
        settings = settings.choose(AUTO, {"weights": None}, {"weights": why})
        if settings.options.network.anchors == KEPT_ANCHORS:  # the head is random, so there are no anchors to keep
            settings = settings.choose(DEFAULT, {"anchors": YOLOV4})
    if settings.options.start.pretrained == BUNDLED:
        settings = _choose_bundled(settings)
    return settings


def _choose_bundled(settings: TrainSettings) -> TrainSettings:
    network = settings.options.network
    origin = settings.origins["pretrained"]
    for name in bundled_names():
        path = MODEL_DATA / f"{name}.pth"
        config = load_checkpoint(path).config
        given = {each: getattr(network, each) for each in NETWORK if settings.is_given(each)}
        other = [each for each, value in given.items() if getattr(config, each) != value]
        if {"backbone", "alpha"} & set(other):
            continue
        if not other:
            reasons = {
                "weights": "the bundled detector of this network",
                "pretrained": "--weights sets the initial weights",
            }
            return settings.choose(origin, {"weights": name, "pretrained": NONE}, reasons)
        reason = f"the backbone of {path.name}; no bundled detector has this neck"
        return settings.choose(origin, {"pretrained": str(path)}, {"pretrained": reason})
    what = f"no bundled detector has the backbone {network.backbone} at this width"
    raise UserError("--pretrained bundled", what, f"leave out the options of the network, or use {IMAGENET} or {NONE}")


def choose_network(settings: TrainSettings, index: DatasetIndex) -> tuple[TrainSettings, Checkpoint | None]:
    """Resolve the options of the network, and the checkpoint to start from.

    The checkpoint's geometry is used unless an option overrides it with an origin at least as strong as that of
    the checkpoint: a typed value overrides a typed or preset checkpoint, a preset's value a preset checkpoint.
    """
    weights = settings.options.start.weights
    start = None if weights is None else load_checkpoint(find_model(weights))
    network = settings.options.network
    if start is not None:
        settings = _take_network(settings, start, str(weights))
    else:
        backbone = network.backbone or "mobilenet_v2"
        usual = {each.name: each.default for each in dataclasses.fields(ModelConfig)}
        usual |= pretrained_settings(backbone, settings.options.start.pretrained)
        missing = {name: usual[name] for name in NETWORK if getattr(network, name) is None and name != "backbone"}
        missing |= {} if network.backbone else {"backbone": backbone}
        missing |= {} if network.input_size else {"input_size": DEFAULT_SIZE}
        settings = settings.choose(DEFAULT, missing)
        if network.anchors == KEPT_ANCHORS:
            raise UserError("--anchors", f"{KEPT_ANCHORS} needs --weights", f"give {YOLOV4} or {AUTO_ANCHORS}")
    size = check_input_size(settings.options.network.input_size or DEFAULT_SIZE)
    settings = settings.choose(settings.origins["input_size"], {"input_size": size})
    if settings.options.duration.auto and not settings.is_given("input_size"):
        settings = _trim(_enlarge(_enlarge_on_gpu(settings, start, index), index), index)
    return settings, start


def _take_network(settings: TrainSettings, start: Checkpoint, name: str) -> TrainSettings:
    """Use the checkpoint's network, except for options with an origin as strong as that of the checkpoint."""
    rank = settings.rank("weights")
    kept = start.config.to_dict()
    free = [each for each in (*NETWORK, "input_size", "anchors") if settings.rank(each) < max(rank, 1)]
    values = {each: KEPT_ANCHORS if each == "anchors" else _tuple(kept[each]) for each in free}
    return settings.choose(f"{CHECKPOINT} {name}", values)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _enlarge_on_gpu(settings: TrainSettings, start: Checkpoint | None, index: DatasetIndex) -> TrainSettings:
    """Enlarge the input on a GPU whose free memory holds a step at that size."""
    size, free = settings.options.network.input_size, gpu_memory(settings.options.machine.device)
    if free is None or size is None or max(size) >= max(DEFAULT_SIZE):
        return settings
    larger = settings.choose(AUTO, {"input_size": DEFAULT_SIZE})
    batch = settings.options.duration.batch_size if settings.is_given("batch_size") else GPU_BATCH
    config = model_config(larger.options, start, index)
    needed = training_bytes(config, batch, settings.options.machine.amp)
    if needed > MEMORY_SHARE * free:
        return settings
    why = f"{free / 1e9:.1f} GB of GPU memory are free, and a step of {batch} images takes about {needed / 1e9:.1f} GB"
    return settings.choose(AUTO, {"input_size": DEFAULT_SIZE}, {"input_size": why})


def fit_batch(settings: TrainSettings, config: ModelConfig) -> TrainSettings:
    """With `--auto`, halve a batch that was not given until a step fits into memory; `--accumulate` keeps its size."""
    duration, machine = settings.options.duration, settings.options.machine
    if not duration.auto or settings.is_given("batch_size", "accumulate"):
        return settings
    on_gpu = gpu_memory(machine.device)
    free, where = (available_memory(), "memory") if on_gpu is None else (on_gpu, "GPU memory")
    batch = duration.batch_size
    while batch > 1 and training_bytes(config, batch, machine.amp) > MEMORY_SHARE * free:
        batch //= 2
    if batch == duration.batch_size:
        return settings
    whole = training_bytes(config, duration.batch_size, machine.amp)
    why = (
        f"{counted(duration.batch_size, 'image')} at once: about {whole / 1e9:.1f} GB; "
        f"{free / 1e9:.1f} GB of {where} are free"
    )
    parts = duration.batch_size // batch
    reasons = {"batch_size": why, "accumulate": f"{parts} batches of {batch} make a step of {parts * batch} images"}
    return settings.choose(AUTO, {"batch_size": batch, "accumulate": parts}, reasons)


def is_gpu(device: str) -> bool:
    """Whether a device name means a CUDA GPU."""
    return device.startswith("cuda")


def gpu_memory(device: str) -> int | None:
    """Free bytes of a GPU's memory; None on another device."""
    return torch.cuda.mem_get_info(device)[0] if is_gpu(device) else None


def _enlarge(settings: TrainSettings, index: DatasetIndex) -> TrainSettings:
    """Enlarge the input if many objects would be narrower than a cell of the finest feature map."""
    size = settings.options.network.input_size
    assert size is not None
    known = np.asarray((index.sizes > 0).all(1))
    owner = index.image_of_box
    counted = known[owner] & ~index.crowd
    if not counted.any():
        return settings
    longest = index.sizes[owner[counted]].max(1)
    sides = (index.boxes[counted, 2:] - index.boxes[counted, :2]).min(
        1
    ) / longest  # as a fraction of the image's longer side
    narrow = {side: float((sides * side < CELL).mean()) for side in (max(size), *LARGER_SIZES)}
    larger = [side for side in LARGER_SIZES if side > max(size)]
    if narrow[max(size)] <= NARROW_SHARE or not larger:
        return settings
    chosen = next((side for side in larger if narrow[side] <= NARROW_SHARE), larger[-1])
    why = f"at {max(size)}, {narrow[max(size)]:.0%} of the objects are narrower than {CELL:g} pixels"
    return settings.choose(AUTO, {"input_size": (chosen, chosen)}, {"input_size": why})


def _trim(settings: TrainSettings, index: DatasetIndex) -> TrainSettings:
    """Remove rows or columns of the input that would be padding in nearly all images, which keep their scale."""
    network = settings.options.network
    letterbox = Letterbox(check_input_size(network.input_size or DEFAULT_SIZE), network.resize_mode or "letterbox")
    sizes = _known_sizes(index).tolist()
    trimmed = letterbox.trimmed(sizes, STRIDES[-1], TRIMMED_SHARE).input_size if sizes else letterbox.input_size
    if math.prod(trimmed) > TRIMMED_AREA * math.prod(letterbox.input_size):
        return settings
    (height, width), (whole_height, whole_width) = trimmed, letterbox.input_size
    why = (
        f"{TRIMMED_SHARE:.0%} of the images fit into {height} x {width} as large as into {whole_height} x {whole_width}"
    )
    return settings.choose(AUTO, {"input_size": trimmed}, {"input_size": f"{why}; the rest would be padding"})


def _known_sizes(index: DatasetIndex) -> np.ndarray:
    """(I, 2) the (height, width) of the images whose size the annotations state."""
    return index.sizes[(index.sizes > 0).all(1)]


def _scales(sizes: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
    """(I,) input pixels per image pixel in the letterbox; `sizes` is (I, 2), the (height, width) of the images."""
    return np.asarray((np.array(input_size) / sizes).min(1))


def _relative_scale(index: DatasetIndex, size: tuple[int, int], other: tuple[int, int]) -> float:
    """Median size of the objects at input size `size`, divided by that at `other`, in the letterbox."""
    sizes = _known_sizes(index)
    if not len(sizes):
        return min(size) / min(other)
    return float(np.median(_scales(sizes, size) / _scales(sizes, other)))


def model_config(options: TrainOptions, start: Checkpoint | None, index: DatasetIndex) -> ModelConfig:
    """Build the network configuration from resolved options; anchors in input pixels."""
    network = options.network
    fields: dict[str, Any] = (
        pretrained_settings(network.backbone or "", options.start.pretrained)
        if start is None
        else start.config.to_dict()
    )
    fields |= {name: getattr(network, name) for name in NETWORK}
    size = check_input_size(network.input_size or DEFAULT_SIZE)
    anchors, designed = YOLOV4_ANCHORS, DEFAULT_SIZE
    if start is not None and network.anchors != YOLOV4:
        anchors, designed = start.config.anchors, start.config.input_size
    anchors = scale_anchors(anchors, _relative_scale(index, size, designed))
    return ModelConfig(**fields | {"class_names": index.class_names, "input_size": size, "anchors": anchors})


# ---- the recipe


def choose_splits(settings: TrainSettings) -> TrainSettings:
    """Choose the splits of the data set that the user did not name."""
    dataset = settings.options.dataset
    if dataset.train_split is not None and dataset.val_split is not None:
        return settings
    train, val = default_splits(dataset.data or "", dataset.image_folder)
    found = {"train_split": train, "val_split": val}
    if dataset.shards is not None:
        del found["train_split"]
    return settings.choose(AUTO, {name: split for name, split in found.items() if getattr(dataset, name) is None})


def is_pretrained(options: TrainOptions) -> bool:
    """Whether the backbone starts from weights."""
    return options.start.pretrained != NONE or options.start.weights is not None


def choose_recipe_options(settings: TrainSettings, index: DatasetIndex) -> TrainSettings:
    """Choose the recipe options of `--auto` that are not given, based on the data."""
    options = settings.options
    if options.duration.auto:
        owner = index.image_of_box
        classes = len(index.class_names)
        images = np.bincount(np.unique(owner * classes + index.labels) % classes, minlength=classes)
        boxes = np.bincount(index.labels, minlength=classes)
        is_ours = not (options.network.backbone or "").startswith(TIMM_PREFIX)
        duration, world_size = options.duration, distributed.world_size()
        epochs = duration.epochs if settings.is_given("epochs") else None
        batch = duration.batch_size * duration.accumulate * world_size if settings.is_given("batch_size") else None
        choices = choose_recipe(
            len(index),
            boxes,
            images,
            pretrained=is_pretrained(options),
            layers_are_known=is_ours,
            given_epochs=epochs,
            given_batch=batch,
            is_detector=options.start.weights is not None,
            world_size=world_size,
            usual_batch=GPU_BATCH if is_gpu(options.machine.device) else USUAL_BATCH,
        )
        fixed = ("epochs", "eval_every") if options.duration.minutes else ()  # chosen by the time budget
        if settings.is_given("optimizer") and options.optim.optimizer != "adamw":
            fixed = (*fixed, "learning_rate")  # the default rate is for another optimiser
        free = [c for c in choices if not settings.is_given(c.option) and c.option not in fixed]
        settings = settings.choose(AUTO, {c.option: c.value for c in free}, {c.option: c.why for c in free})
    return settings


def choose_optimizer(settings: TrainSettings) -> TrainSettings:
    """Choose the learning rates that are not given."""
    options = settings.options
    if options.optim.learning_rate is None:
        kind = options.optim.optimizer
        settings = settings.choose(DEFAULT, {"learning_rate": BASE_RATES[kind]}, {"learning_rate": f"usual for {kind}"})
    if options.optim.backbone_rate_factor is None:
        factor, why = (
            (PRETRAINED_RATE, "it is pretrained") if is_pretrained(options) else (1.0, "it is initialised randomly")
        )
        settings = settings.choose(DEFAULT, {"backbone_rate_factor": factor}, {"backbone_rate_factor": why})
    return settings


def choose_new_run(settings: TrainSettings, index: DatasetIndex) -> tuple[TrainSettings, Checkpoint | None]:
    """Choose all options of a new run that are not given, based on its data; returns the start checkpoint, if any."""
    settings, start = choose_network(choose_start(settings), index)
    settings = choose_optimizer(choose_recipe_options(settings, index))
    settings = fit_batch(settings, model_config(settings.options, start, index))
    return choose_loading(settings, index), start


def choose_schedule(settings: TrainSettings, automatic_decay: float) -> TrainSettings:
    """Choose the options that depend on the number of steps."""
    duration, optim = settings.options.duration, settings.options.optim
    if optim.ema and not optim.ema_decay:
        why = "averages over a tenth of the run"
        settings = settings.choose(AUTO, {"ema_decay": automatic_decay}, {"ema_decay": why})
    if optim.warmup_epochs > duration.epochs / 2:
        why = f"at most half of the run, instead of {optim.warmup_epochs:g}"
        settings = settings.choose(AUTO, {"warmup_epochs": duration.epochs / 2}, {"warmup_epochs": why})
    return settings


# ---- the machine


def choose_machine(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """Choose device, precision, threads and loader workers for this machine; sets PyTorch's threads."""
    machine = settings.options.machine
    if machine.device != str(device):
        origin = AUTO if machine.device == "auto" else settings.origins["device"]
        settings = settings.choose(origin, {"device": str(device)})
    if machine.amp == "auto":
        amp = resolve_amp("auto", device)
        why = "this device is fast in it" if amp != NONE else "this device is not faster in half precision"
        settings = settings.choose(AUTO, {"amp": amp}, {"amp": why})
    if machine.threads:
        torch.set_num_threads(machine.threads)
    else:
        why = "by OMP_NUM_THREADS"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
            why = "number of CPUs available to this process"
        settings = settings.choose(AUTO, {"threads": torch.get_num_threads()}, {"threads": why})
    return settings


def choose_loading(settings: TrainSettings, index: DatasetIndex) -> TrainSettings:
    """Choose loader workers and image cache for this machine, once the network's size is known."""
    options = settings.options
    size = check_input_size(options.network.input_size or DEFAULT_SIZE)
    wanted = options.machine.workers
    limit, reason = wanted, "limited by the number of CPUs"
    if options.duration.auto and is_gpu(options.machine.device):
        limit, reason = GPU_WORKERS, f"a GPU waits for images: a worker for each CPU, {GPU_WORKERS} at most"
    if not settings.is_given("workers"):
        wanted = min(limit, usable_cpus())
    cache, needed = options.machine.cache, 0
    if options.dataset.shards is None and cache in ("auto", "ram"):
        needed = cache_bytes(index, size, max(*options.augment.scale, *options.augment.mosaic_scale))
    if cache == "auto":
        free = free_memory()
        cache = "ram" if options.dataset.shards is None and needed <= CACHE_SHARE * free else NONE
        why = f"decoded images need {needed / 2**20:.0f} MB, {free / 2**20:.0f} MB are free"
        settings = settings.choose(AUTO, {"cache": cache}, {"cache": why})
    largest = max([size, *multi_scale_sizes(size, options.network.multi_scale)], key=math.prod)
    taken = needed if cache == "ram" else 0  # the cache is in shared memory, too
    workers, why = fitting_workers(wanted, options.duration.batch_size, largest, taken)
    if workers != options.machine.workers:
        settings = settings.choose(AUTO, {"workers": workers}, {"workers": why or reason})
    return settings


def resolve_amp(amp: str, device: torch.device) -> str:
    """Resolve `auto` to the best precision of the device."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else NONE


def absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Make paths absolute, so that a run can be resumed from another working folder."""
    for name in (*DATA_PATHS, "weights", "pretrained"):
        value = get_option(settings.options, name)
        if value:
            value = tuple(map(_absolute, value)) if isinstance(value, tuple) else _absolute(value)
            reasons = {name: settings.reasons[name]} if name in settings.reasons else {}
            settings = settings.choose(settings.origins[name], {name: value}, reasons)
    return settings


def _absolute(path: str) -> str:
    return os.path.abspath(path) if "://" not in path and Path(path).exists() else path
