"""Options of a training that cannot work, alone or together: refused before minutes go by in reading data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data.augment import AugmentConfig
from data.loader import SMALLEST
from nets.backbones.base import TIMM_PREFIX
from nets.backbones.registry import list_backbones
from nets.model_config import input_size_option
from nets.weights.bundled import find_model
from nets.weights.pretrained import IMAGENET, NONE
from training.run_folder import RUNS, check_run_dir
from utils.errors import UserError
from utils.output_rules import check_output_folder

NOT_WITH_SHARDS = ("limit", "repeat_rare", "multi_scale", "train_split", "classes", "teacher", "grow_sizes")


def check_before_loading(options: Any, is_resumed: bool = False) -> None:
    """Refuse what cannot work. A resumed run no longer needs what it started from.

    Args:
        options: `train.TrainOptions`, each value within its own range.
        is_resumed: whether a checkpoint of this run is there.

    Raises:
        UserError: naming the option, its value and what is allowed.
    """
    if options.data is None:
        raise UserError("--data", "is missing", "give a VOCdevkit folder, a COCO folder or JSON, or a data.yaml")
    if options.input_size is not None and input_size_option(options.input_size) == SMALLEST:
        what = "32 32: batch norm needs more than one cell of the coarsest map"
        raise UserError("--input-size", what, "give multiples of 32, such as 416")
    backbone = options.backbone
    if backbone is not None and backbone not in list_backbones() and not backbone.startswith(TIMM_PREFIX):
        known = ", ".join([*list_backbones(), f"{TIMM_PREFIX}NAME"])
        raise UserError("--backbone", f"{backbone!r} is not known", f"choose from {known}")
    if options.anchors not in ("yolov4", "auto"):
        raise UserError("--anchors", f"{options.anchors!r} is not known", "give yolov4 or auto")
    build_augment(options)
    _check_sizes(options)
    _check_labels(options)
    for name in NOT_WITH_SHARDS:
        if options.shards is not None and getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}", "cannot be had with --shards", "leave one of them out")
    if options.weights is not None and options.pretrained not in (NONE, IMAGENET):
        raise UserError("--weights", "cannot go with --pretrained: both say where to start", "give one of them")
    if options.freeze_layers and options.weights is None and options.pretrained == NONE:
        raise UserError("--freeze-layers", "would freeze layers that start at random", "give --pretrained, or 0")
    if options.freeze_norms and options.weights is None and options.pretrained == NONE:
        raise UserError("--freeze-norms", "would keep averages of nothing seen", "give --pretrained, or leave it out")
    if options.nan == "rollback" and "WORLD_SIZE" in os.environ:
        raise UserError("--nan", "rollback works with one process only", "give stop")
    if options.resume is None:
        check_run_dir(options.run_dir)
        check_output_folder("--run-dir", options.run_dir or RUNS, [options.data, options.val_data])
    if options.weights is not None and not is_resumed:
        find_model(options.weights, "--weights")
    for name in ("data", "val_data", "classes", *(() if is_resumed else ("pretrained",))):
        path = getattr(options, name)
        is_file = path is not None and path not in (NONE, IMAGENET)
        if is_file and not Path(path).exists():
            raise UserError(f"--{name.replace('_', '-')}", f"{path} is not there", "give the path of one that is")


def _check_sizes(options: Any) -> None:
    """`--grow-sizes` and `--grow-until` belong together, both ascending."""
    sizes, ends = options.grow_sizes, options.grow_until
    if len(sizes) != len(ends):
        todo = "give each size the part of the run at which it ends"
        raise UserError("--grow-until", f"{len(ends)} values for {len(sizes)} of --grow-sizes", todo)
    for size in sizes:
        input_size_option(size, "--grow-sizes")
    if sizes and options.input_size is None:
        raise UserError("--grow-sizes", "needs the size to grow to", "give --input-size, too")
    if list(sizes) != sorted(set(sizes)) or any(size >= min(options.input_size) for size in sizes):
        given, final = " ".join(map(str, sizes)), " ".join(map(str, options.input_size))
        raise UserError("--grow-sizes", f"{given} must ascend and stay below --input-size {final}", "reorder them")
    if list(ends) != sorted(set(ends)):
        raise UserError("--grow-until", f"{' '.join(f'{end:g}' for end in ends)} must ascend", "reorder them")


def _check_labels(options: Any) -> None:
    """`--label-scores` is a range, and the teacher's files are there."""
    low, high = options.label_scores
    if low >= high:
        raise UserError("--label-scores", f"{low:g} {high:g}: the first must be below the second", "swap them")
    for path in options.teacher:
        if not os.path.exists(path):
            raise UserError("--teacher", f"{path} is not there", "give the path of a file of detections")


def build_augment(options: Any) -> AugmentConfig:
    """The options of augmentation. Raises UserError for those that do not go together."""
    names: tuple[str, ...] = ("mosaic", "mixup", "copy_paste", "flip", "hue", "saturation", "value", "scale")
    names += ("mosaic_scale", "translate", "aspect", "rotate", "albumentations")
    try:
        return AugmentConfig(**{name: getattr(options, name) for name in names})
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        raise UserError(f"--{name.replace('_', '-')}", what, "see --help") from error
