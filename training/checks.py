"""Check training options, alone and in combination, before the data set is read."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from data.class_names import KNOWN_LISTS
from data.loader import SMALLEST
from nets.backbones.base import TIMM_PREFIX
from nets.backbones.registry import list_backbones
from nets.model_config import input_size_option
from nets.weights import BUNDLED, IMAGENET, NONE
from nets.weights.bundled import find_model
from training.options import AUTO_ANCHORS, KEPT_ANCHORS, YOLOV4, TrainOptions
from training.run_folder import RUNS, check_run_dir
from utils.config import flag, get_option
from utils.errors import UserError
from utils.output_rules import check_output_folder

NOT_WITH_SHARDS = ("limit", "repeat_rare", "multi_scale", "train_split", "classes", "teacher", "grow_sizes", "tile")
ANCHORS = (YOLOV4, AUTO_ANCHORS, KEPT_ANCHORS)


def check_before_loading(options: TrainOptions, is_resumed: bool = False) -> None:
    """Check the options of a run. A resumed run no longer needs its start checkpoint.

    Args:
        options: options whose single values are in range.
        is_resumed: whether a checkpoint of this run exists.

    Raises:
        UserError: naming the option, its value and what is allowed.
    """
    dataset, network, start = options.dataset, options.network, options.start
    if dataset.data is None:
        raise UserError("--data", "is required", "give a VOCdevkit folder, a COCO folder or JSON file, or a data.yaml")
    if network.input_size is not None and input_size_option(network.input_size) == SMALLEST:
        what = "32 32: batch norm needs more than one cell of the coarsest map"
        raise UserError("--input-size", what, "give multiples of 32, such as 416")
    backbone = network.backbone
    if backbone is not None and backbone not in list_backbones() and not backbone.startswith(TIMM_PREFIX):
        known = ", ".join([*list_backbones(), f"{TIMM_PREFIX}NAME"])
        raise UserError("--backbone", f"{backbone!r} is not known", f"choose from {known}")
    if network.anchors not in ANCHORS:
        raise UserError("--anchors", f"{network.anchors!r} is not known", f"give {', '.join(ANCHORS)}")
    _check_sizes(options)
    _check_labels(options)
    for name in NOT_WITH_SHARDS:
        if dataset.shards is not None and get_option(options, name) and not is_resumed:
            raise UserError(flag(name), "cannot be combined with --shards", "leave out one of them")
    if start.weights is not None and start.pretrained not in (NONE, IMAGENET, BUNDLED):
        raise UserError(
            "--weights", "cannot be combined with --pretrained: both set the initial weights", "give one of them"
        )
    starts_at_random = start.weights is None and start.pretrained == NONE and not options.duration.auto
    if start.freeze_layers and starts_at_random:
        raise UserError("--freeze-layers", "would freeze randomly initialised layers", "give --pretrained, or use 0")
    if start.freeze_norms and starts_at_random:
        raise UserError(
            "--freeze-norms", "would keep statistics of an untrained backbone", "give --pretrained, or leave it out"
        )
    if options.run.nan == "rollback" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("--nan", "rollback works only in a single process", "use stop")
    if options.run.resume is None:
        check_run_dir(options.run.run_dir)
        check_output_folder("--run-dir", options.run.run_dir or RUNS, [dataset.data, dataset.val_data])
    if start.weights is not None and not is_resumed:
        find_model(start.weights, "--weights")
    for name in ("data", "val_data", "classes", *(() if is_resumed else ("pretrained",))):
        path = get_option(options, name)
        names: Collection[str] = KNOWN_LISTS if name == "classes" else (NONE, IMAGENET, BUNDLED)
        if path is not None and path not in names and not Path(path).exists():
            todo = f"give its present path with {flag(name)}" if is_resumed else "check the path"
            raise UserError(flag(name), f"{path} does not exist", todo)


def _check_sizes(options: TrainOptions) -> None:
    """Check that `--grow-sizes` and `--grow-until` are given together and ascending."""
    sizes, ends, input_size = options.duration.grow_sizes, options.duration.grow_until, options.network.input_size
    if len(sizes) != len(ends):
        todo = "give the end of each size as a fraction of the run"
        raise UserError("--grow-until", f"{len(ends)} values for {len(sizes)} of --grow-sizes", todo)
    for size in sizes:
        input_size_option(size, "--grow-sizes")
    if not sizes:
        return
    if input_size is None:
        raise UserError("--grow-sizes", "needs the final size", "give --input-size, too")
    if list(sizes) != sorted(set(sizes)) or any(size >= min(input_size) for size in sizes):
        given, final = " ".join(map(str, sizes)), " ".join(map(str, input_size))
        raise UserError("--grow-sizes", f"{given} must be ascending and below --input-size {final}", "reorder them")
    if list(ends) != sorted(set(ends)):
        raise UserError("--grow-until", f"{' '.join(f'{end:g}' for end in ends)} must be ascending", "reorder them")


def _check_labels(options: TrainOptions) -> None:
    """Check that `--label-scores` is a range and that the teacher's files exist."""
    low, high = options.dataset.label_scores
    if low >= high:
        raise UserError("--label-scores", f"{low:g} {high:g}: the first must be below the second", "swap them")
    for path in options.dataset.teacher:
        if not os.path.exists(path):
            raise UserError("--teacher", f"{path} does not exist", "give a file of detections or a checkpoint")
