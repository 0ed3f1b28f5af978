"""Import weights of bubbliiiing/mobilenet-yolov4-pytorch as a checkpoint that gives the same boxes.

A checkpoint of this platform that another program has saved again, and that therefore lacks the digest, is also
imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.class_names import decode_text, read_class_names
from data.formats.shapes import numbers_of
from nets.model_config import ANCHORS_PER_LEVEL, STRIDES, YOLOV4_ANCHORS, Anchors, ModelConfig, input_size_option
from nets.weights.bundled import MODEL_DATA
from nets.weights.checkpoint import (
    Checkpoint,
    is_checkpoint,
    load_checkpoint,
    parse_checkpoint,
    save_checkpoint,
    strip_prefixes,
)
from nets.weights.pretrained import read_weights_file
from nets.yolov4 import YOLOv4
from utils.config import option, parse_options
from utils.errors import UserError, run_command, warn
from utils.files import MEGABYTE, read_file
from utils.output_rules import check_output_file
from utils.text import counted

CLASS_LISTS = {20: MODEL_DATA / "voc_classes.txt", 80: MODEL_DATA / "coco_classes.txt"}
WRITTEN = (".pth", ".pt", ".safetensors")
PREDICTION = "yolo_head3.1.weight"  # (3 * (5 + classes), channels, 1, 1), of stride 8

# a tensor that exists only in files of this backbone
_MARKS = {
    "mobilenet_v1": "backbone.model.stage1.0.0.weight",
    "mobilenet_v2": "backbone.model.features.1.conv.0.0.weight",
    "mobilenet_v3_large": "backbone.model.features.1.conv.0.weight",
}
# the ImageNet classifier, which is in the files and not used for detection
_CLASSIFIER = re.compile(r"backbone\.model\.(fc|classifier|conv|features\.18)\.")
_BACKBONE = "backbone.model."
_PARTS = {
    "conv1.": "neck.before_spp.",
    "conv2.": "neck.after_spp.",
    "upsample1.upsample.0.": "neck.reduce5.",
    "conv_for_P4.": "neck.lateral4.",
    "make_five_conv1.": "neck.top_down4.",
    "upsample2.upsample.0.": "neck.reduce4.",
    "conv_for_P3.": "neck.lateral3.",
    "make_five_conv2.": "neck.top_down3.",
    "down_sample1.": "neck.downsample3.",
    "make_five_conv3.": "neck.bottom_up4.",
    "down_sample2.": "neck.downsample4.",
    "make_five_conv4.": "neck.bottom_up5.",
    "yolo_head3.": "head.levels.0.",
    "yolo_head2.": "head.levels.1.",
    "yolo_head1.": "head.levels.2.",
}
# In the reference, a depthwise-separable convolution is one flat Sequential: conv, norm, ReLU6, conv, norm, ReLU6.
_SEPARABLE = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1"}
_V1_BLOCKS_BEFORE = {"1": 0, "2": 5, "3": 11}


@dataclass(frozen=True)
class ImportOptions:
    """Options of `python -m nets.weights.import_reference`."""

    input: str = option("", "the reference's weights, .pth", positional=True, metavar="IN.pth")
    output: str = option("", "the checkpoint to write", positional=True, metavar="OUT.pth")
    classes: str | None = option(
        None, "file of class names, one per line (default for 20 classes: VOC's; for 80: COCO's)"
    )
    anchors: str | None = option(
        None, "yolo_anchors.txt of the training, if it is not the reference's own: 18 numbers, smallest anchor first"
    )
    input_size: tuple[int, ...] | None = option(
        None, "input_shape of the training: height [width] (default: 416)", low=32, high=8192, nargs="+"
    )
    overwrite: bool = option(False, "replace OUT.pth if it exists")


def import_reference(
    weights: Mapping[str, Tensor],
    class_names: tuple[str, ...] | None = None,
    where: object = "import",
    anchors: Anchors = YOLOV4_ANCHORS,
    input_size: tuple[int, int] = (416, 416),
) -> Checkpoint:
    """Turn a reference state dict into a checkpoint.

    Args:
        weights: the reference's state dict; it determines the backbone and the number of classes.
        class_names: in the order of training. None: VOC's names for 20 classes, COCO's for 80, else numbered names.
        where: the file, for errors.
        anchors, input_size: of its training.

    Raises:
        UserError: if it is not such a state dict, or if the number of names differs from the number of classes.
    """
    weights = {strip_prefixes(name): tensor for name, tensor in weights.items()}
    backbone = next((name for name, mark in _MARKS.items() if mark in weights), None)
    if backbone is None and PREDICTION in weights:
        what = "the backbone is not MobileNetV1, V2 or V3; weights of other backbones cannot be imported"
        raise UserError(where, what, "train again with --backbone timm:NAME")
    if backbone is None or PREDICTION not in weights:
        what = "not a weight file of mobilenet-yolov4-pytorch with MobileNetV1, V2 or V3"
        raise UserError(where, what, "give a file written by its train.py")
    outputs = len(weights[PREDICTION])
    num_classes = outputs // ANCHORS_PER_LEVEL - 5
    if outputs % ANCHORS_PER_LEVEL or num_classes < 1:
        raise UserError(where, f"{outputs} outputs per cell are not 3 x (5 + classes)", "give the reference's file")
    config = reference_config(backbone, class_names or default_class_names(num_classes))
    if config.num_classes != num_classes:
        what = f"{counted(config.num_classes, 'name')} for the file's {counted(num_classes, 'class')}"
        raise UserError("--classes", what, "give one name for each class")
    renamed = {_rename(backbone, name, weights): t for name, t in weights.items() if not _CLASSIFIER.match(name)}
    config = config.replace(anchors=anchors, input_size=input_size)
    return Checkpoint(config, _fit(config, renamed, where), info={"source": "mobilenet-yolov4-pytorch"})


def reference_config(backbone: str, class_names: tuple[str, ...]) -> ModelConfig:
    """Configuration of the reference's network, preprocessing and postprocessing (from its yolo.py)."""
    return ModelConfig(
        class_names=class_names,
        backbone=backbone,
        se_order="before",
        bn_eps=1e-5,
        anchors=YOLOV4_ANCHORS,
        scale_xy=(1.0, 1.0, 1.0),
        input_size=(416, 416),
        resize_mode="stretch",
        interpolation="bicubic",
        pad_value=128,
        score_threshold=0.5,
        score_threshold_source="the reference's default",
        iou_threshold=0.3,
        max_detections=100_000,  # the reference has no limit
    )


def read_anchors(path: str) -> Anchors:
    """Read the reference's yolo_anchors.txt: nine pairs of width and height in input pixels, strides ascending.

    Raises:
        UserError: if it does not contain 18 positive numbers.
    """
    words = re.split(r"[,\s]+", decode_text(read_file(path, MEGABYTE), path).strip())
    values = numbers_of(words) or []
    if len(values) != 2 * ANCHORS_PER_LEVEL * len(STRIDES) or min(values) <= 0:
        raise UserError(path, "is not a list of 18 numbers above 0", "give nine pairs `width,height`, smallest first")
    pairs = list(zip(values[::2], values[1::2], strict=True))
    return tuple(tuple(pairs[k : k + ANCHORS_PER_LEVEL]) for k in range(0, len(pairs), ANCHORS_PER_LEVEL))


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """VOC's 20 names, COCO's 80, or numbered names with a warning."""
    if num_classes in CLASS_LISTS:
        return read_class_names(CLASS_LISTS[num_classes])
    todo = "they are called class_0...; give their names with --classes"
    warn("import", f"the file does not name its {counted(num_classes, 'class')}", todo)
    return tuple(f"class_{number}" for number in range(num_classes))


def _rename(backbone: str, name: str, names: Collection[str]) -> str:
    """Convert a tensor's name from the reference to this platform. Unknown names are unchanged and rejected later."""
    if name.startswith(_BACKBONE):
        rest = name.removeprefix(_BACKBONE)
        if backbone == "mobilenet_v1":
            rest = _rename_v1(rest)
        elif backbone == "mobilenet_v3_large":
            rest = _rename_v3(rest, names)
        return "backbone." + rest
    for theirs, ours in _PARTS.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            return ours + (rest if ours.startswith("head.") and rest.startswith("1.") else _rename_block(rest))
    return name


def _rename_block(rest: str) -> str:
    """Names within a block: `conv` and `bn` belong to a standard convolution, bare numbers to a separable one."""
    plain = re.fullmatch(r"(\d\.)?(conv|bn)\.(\w+)", rest)
    if plain:
        return f"{plain[1] or ''}{int(plain[2] == 'bn')}.{plain[3]}"
    separable = re.fullmatch(r"(\d\.)?([0134])\.(\w+)", rest)
    return f"{separable[1] or ''}{_SEPARABLE[separable[2]]}.{separable[3]}" if separable else rest


def _rename_v1(rest: str) -> str:
    match = re.fullmatch(r"stage([123])\.(\d)\.([0134])\.(\w+)", rest)
    if match is None:
        return rest
    stage, block, layer, kind = match.groups()
    if (stage, block) == ("1", "0"):  # the stem
        return f"features.0.{layer}.{kind}"
    number = _V1_BLOCKS_BEFORE[stage] + int(block) + (stage != "1")  # of the separable block, from 1
    convolution, part = _SEPARABLE[layer].split(".")
    return f"features.{2 * number - 1 + int(convolution)}.{part}.{kind}"


def _rename_v3(rest: str, names: Collection[str]) -> str:
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d|5\.fc\.\d)\.(\w+)", rest)
    if match is None:
        return rest
    block, layer, kind = match.groups()
    if block == "1":  # the block without expansion
        places = {"0": "0.0", "1": "0.1", "4": "1.0", "5": "1.1"}
    else:
        last = 3 if f"{_BACKBONE}features.{block}.conv.5.fc.0.weight" in names else 2
        places = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "7": f"{last}.0", "8": f"{last}.1"}
        places |= {"5.fc.0": "2.fc1", "5.fc.2": "2.fc2"}
    return f"features.{block}.block.{places[layer]}.{kind}" if layer in places else rest


def _fit(config: ModelConfig, weights: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The complete state dict of the network of `config`.

    Raises:
        UserError: if a tensor is missing, unknown, or has another shape.
    """
    todo = "give a file of the reference's unmodified network"
    with torch.device("meta"):
        expected = YOLOv4(config).state_dict()
    extra = next((name for name in weights if name not in expected), None)
    if extra is not None:
        raise UserError(where, f"tensor {extra} does not belong to {config.backbone}", todo)
    result = {}
    for name, like in expected.items():
        tensor = weights.get(name)
        if tensor is None and name.endswith("num_batches_tracked"):  # torch before 0.4.1 had none
            tensor = torch.zeros((), dtype=torch.int64)
        if tensor is None:
            raise UserError(where, f"tensor {name} is missing for {config.backbone}", todo)
        if tensor.ndim == 2 and like.ndim == 4:  # squeeze-and-excitation: linear layers there, 1x1 convolutions here
            tensor = tensor[:, :, None, None]
        if tensor.shape != like.shape:
            what = f"tensor {name} is {tuple(tensor.shape)}, not {tuple(like.shape)}"
            raise UserError(where, what, todo)
        result[name] = tensor.to(like.dtype)
    return result


def _import_resaved(path: str, content: Any, output: Path) -> None:
    """Write the content of a checkpoint without a digest as a new checkpoint."""
    try:
        load_checkpoint(path)
    except UserError:
        pass
    else:
        raise UserError(path, "is already a checkpoint of this platform", "use it directly")
    save_checkpoint(output, parse_checkpoint(Path(path), content))
    print(f"{output}: the checkpoint of {path}, with its digest")


def main(argv: list[str] | None = None) -> None:
    """Read a file, convert it, write the checkpoint, and print a summary."""
    options = parse_options(
        ImportOptions, argv, description=str(__doc__), prog="python -m nets.weights.import_reference"
    )
    output = check_output_file("OUT.pth", options.output, options.overwrite)
    if output.suffix.lower() not in WRITTEN:
        raise UserError("OUT.pth", f"{output.name} does not end in {' or '.join(WRITTEN)}", "change its suffix")
    content = read_weights_file(Path(options.input))
    if is_checkpoint(content):
        _import_resaved(options.input, content, output)
        return
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    class_names = read_class_names(Path(options.classes)) if options.classes else None
    anchors = read_anchors(options.anchors) if options.anchors else YOLOV4_ANCHORS
    size = input_size_option(options.input_size) if options.input_size else (416, 416)
    checkpoint = import_reference(tensors, class_names, options.input, anchors, size)
    save_checkpoint(options.output, checkpoint)
    config = checkpoint.config
    names = f"{counted(config.num_classes, 'class')} ({', '.join(config.class_names[:5])}...)"
    shown = " x ".join(map(str, config.input_size))
    print(f"{options.output}: {config.backbone}, {names}, input {shown}")


if __name__ == "__main__":
    run_command(main)
