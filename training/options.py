"""The options of train.py in groups, with default, range and help text.

To add an option, add a field here or in the configuration that uses it (`data.augment_config.AugmentConfig`,
`nets.loss_config.LossConfig`). It then appears on the command line, in config files and in a run's table.
This module does not import PyTorch, so that --help is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.augment_config import AugmentConfig
from data.index import SCORE_RANGE
from data.tiles import MIN_TILE
from imaging.letterbox import RESIZE_MODES
from nets.loss_config import LossConfig
from nets.model_config import NECK_CONVS, NECKS, PADDINGS, SE_ORDERS
from nets.weights import NONE
from utils.config import group, option

PRESETS = Path(__file__).resolve().parents[1] / "model_data" / "presets"
YOLOV4, AUTO_ANCHORS, KEPT_ANCHORS = "yolov4", "auto", "checkpoint"  # values of --anchors
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "step", "constant")
PRECISIONS = ("auto", "none", "bf16", "fp16")
# criteria of the best checkpoint, as weights of evaluation metrics
BEST_BY: dict[str, dict[str, float]] = {
    "fitness": {"coco_AP": 0.9, "voc10_mAP50": 0.1},
    "coco_AP": {"coco_AP": 1.0},
    "voc10_mAP50": {"voc10_mAP50": 1.0},
}
CACHES = ("none", "ram", "disk", "auto")


@dataclass(frozen=True)
class DatasetOptions:
    """Training and validation data."""

    data: str | None = option(
        None, "data set: a folder or file in any layout of docs/DATA.md", common=True, metavar="PATH"
    )
    shards: str | None = option(None, "train on tar shards in this folder or http(s) address (dataset.py shard)")
    image_folder: str | None = option(None, "folder of the images, if it is not that of the annotations", metavar="DIR")
    train_split: str | None = option(None, "training split (default: train; if there is none, a random division)")
    val_split: str | None = option(None, "validation split (default: val or test; if there is none, a random division)")
    val_data: str | None = option(None, "data set of the validation split (default: --data)")
    classes: str | None = option(
        None,
        "file of class names, one per line, or voc, or coco (default: the names in the annotations)",
        common=True,
        metavar="FILE",
    )
    teacher: tuple[str, ...] = option(
        (), "detections (JSON) or checkpoints of other detectors, used as additional labels", nargs="+", metavar="FILE"
    )
    label_scores: tuple[float, ...] = option(
        SCORE_RANGE,
        "detections used as labels: ignored below the first score, certain above the second",
        low=0,
        high=1,
        nargs=2,
    )
    limit: int = option(
        0, "number of training images (with --folds: of all images), chosen at random with --seed; 0 = all", low=0
    )
    repeat_rare: float = option(
        0.0, "repeat images with classes that occur in less than this fraction of the images (LVIS)", low=0, high=1
    )
    tile: int | None = option(
        None,
        "also train and evaluate on overlapping tiles of this size, pixels; 0 = the input size",
        low=MIN_TILE,
        zero=True,
    )
    tile_overlap: float = option(0.25, "overlap of neighbouring tiles, as a fraction of a tile", low=0, high=0.9)


@dataclass(frozen=True)
class NetworkOptions:
    """The network. Options that are not given come from the start checkpoint, else from the defaults."""

    backbone: str | None = option(
        None,
        "mobilenet_v1, mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small or timm:NAME (default: mobilenet_v2)",
        common=True,
    )
    alpha: float | None = option(None, "width multiplier of the backbone (default: 1)", low=0.05, high=4)
    neck: str | None = option(None, "panet, or slim with a third of its convolutions (default: panet)", choices=NECKS)
    neck_conv: str | None = option(None, "3x3 convolutions of neck and head (default: separable)", choices=NECK_CONVS)
    neck_width: float | None = option(None, "width multiplier of neck and head (default: 1)", low=0.05, high=4)
    se_order: str | None = option(
        None, "MobileNetV3: squeeze-and-excitation after or before the activation (default: after)", choices=SE_ORDERS
    )
    padding: str | None = option(
        None, "padding of convolutions with stride 2 (default: that of the pretrained weights)", choices=PADDINGS
    )
    scale_xy: tuple[float, ...] | None = option(
        None, "grid sensitivity at strides 8, 16, 32 (default: 2 2 2)", low=1, high=4, nargs=3
    )
    anchors: str = option(
        YOLOV4,
        "yolov4 = YOLOv4's, scaled to the input size; auto = k-means on the data, if better; checkpoint = those of the "
        "start checkpoint",
    )
    input_size: tuple[int, ...] | None = option(
        None,
        "height [width] of the input, multiples of 32 (default: that of --weights, else 416)",
        low=32,
        high=8192,
        common=True,
    )
    resize_mode: str | None = option(
        None, "letterbox keeps the aspect ratio, stretch does not (default: letterbox)", choices=RESIZE_MODES
    )
    multi_scale: float = option(
        0.0, "vary the input size by up to this fraction, in steps of 32; 0 = off", low=0, high=0.6
    )


@dataclass(frozen=True)
class StartOptions:
    """Initial weights, and which of them are frozen."""

    pretrained: str = option(
        NONE,
        "initial weights: bundled = the bundled detector with this network, imagenet = a backbone (download), none = "
        "random, or a file of backbone weights",
        common=True,
        metavar="START",
    )
    weights: str | None = option(
        None,
        "initial weights: a checkpoint, or the bundled small or nano; classes are matched by name",
        common=True,
        metavar="FILE",
    )
    freeze_epochs: int = option(0, "freeze the backbone for this many epochs", low=0)
    freeze_layers: int = option(0, "freeze this many first layers of the backbone; halves the time of a step", low=0)
    freeze_norms: bool = option(
        False, "freeze the statistics of the backbone's batch norms; a step takes a fifth less time"
    )


@dataclass(frozen=True)
class DurationOptions:
    """Length of training and evaluation interval."""

    auto: bool = option(False, "choose the options that are not given, based on data and device, and print the reasons")
    minutes: float = option(0.0, "time budget of the run, minutes; 0 = train for --epochs", low=0, common=True)
    epochs: int = option(100, "number of epochs; with --minutes, the maximum", low=1, high=100_000, common=True)
    batch_size: int = option(16, "images per batch, in each process", low=1, high=4096, common=True)
    accumulate: int = option(1, "gradient accumulation: batches per optimiser step", low=1, high=1024)
    close_mosaic: float = option(0.15, "last fraction of the run, without mosaic, mixup and copy-paste", low=0, high=1)
    eval_every: int = option(1, "epochs between evaluations; the last epoch is always evaluated", low=1)
    grow_sizes: tuple[int, ...] = option(
        (), "smaller input sizes at the beginning of the run, ascending", low=32, high=8192
    )
    grow_until: tuple[float, ...] = option((), "fraction of the run at which each of --grow-sizes ends", low=0, high=1)
    best_by: str = option(
        "fitness",
        "metric that selects the best checkpoint; fitness = 0.9 COCO AP + 0.1 VOC10 mAP50",
        choices=tuple(BEST_BY),
    )
    patience: int = option(0, "early stopping: stop after this many evaluations without improvement; 0 = never", low=0)


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser, learning rate and weight averaging."""

    optimizer: str = option("adamw", "optimiser", choices=OPTIMIZERS)
    learning_rate: float | None = option(
        None,
        "learning rate for batch size 16, scaled to the batch (default: adam, adamw 5e-3; sgd 1e-2)",
        above=0,
        common=True,
    )
    backbone_rate_factor: float | None = option(
        None,
        "learning rate of the backbone relative to the neck's (default: 0.1 if pretrained, else 1)",
        low=0,
        high=100,
        old="backbone_rate",
    )
    schedule: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up", low=0)
    final_rate: float = option(
        0.02, "final learning rate of the cosine schedule, as a fraction of the initial one", low=0, high=1
    )
    momentum: float = option(0.9, "momentum of SGD; first beta of Adam", low=0, high=0.9999)
    weight_decay: float = option(
        0.02, "weight decay of convolution weights, not of norms and biases (SGD: try 5e-4)", low=0, high=1
    )
    clip: float = option(10.0, "gradient clipping: maximum norm of the gradient; 0 = off", low=0)
    ema: bool = option(True, "evaluate and save an exponential moving average of the weights")
    ema_decay: float = option(
        0.0, "decay of the moving average; 0 = chosen by the number of steps", low=0, high=0.999999
    )


@dataclass(frozen=True)
class MachineOptions:
    """Device and performance options; they do not change the results of a float32 run on the CPU."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N", common=True)
    workers: int = option(2, "worker processes that load images; 0 = load in the main process", low=0, high=256)
    threads: int = option(0, "CPU threads of the network; 0 = number of available CPUs", low=0, high=1024)
    cache: str = option(
        "none", "cache decoded images in memory (ram) or in a file (disk); auto = ram if they fit", choices=CACHES
    )
    amp: str = option("auto", "mixed precision; auto = the best precision of the device", choices=PRECISIONS)
    fast: bool = option(False, "on a GPU: torch.compile, fused optimiser, cuDNN benchmark; the start takes minutes")
    sync_bn: bool = option(False, "synchronise batch norm over all processes")


@dataclass(frozen=True)
class RunOptions:
    """Run folder and error handling."""

    run_dir: str | None = option(None, "folder of the run (default: logs/BACKBONE-N)", common=True, metavar="DIR")
    resume: str | None = option(
        None, "resume the run in this folder; auto = the one in --run-dir, if there is one", common=True, metavar="DIR"
    )
    seed: int = option(0, "random seed", low=0, high=2**31 - 1)
    folds: int = option(
        0, "K-fold cross-validation: one score over all folds, with its confidence interval; 0 = off", low=0, high=100
    )
    tune: bool = option(False, "search learning rate, input size, mosaic and more within --minutes, and write a preset")
    nan: str = option(
        "stop",
        "if a loss is NaN: stop, or roll back to the last checkpoint at half the learning rate, at most three times",
        choices=("stop", "rollback"),
    )
    tensorboard: bool = option(True, "write TensorBoard events")
    show_config: bool = option(False, "print every option with its final value and origin, and exit", common=True)


@dataclass(frozen=True)
class TrainOptions:
    """All options of a training run, in groups."""

    dataset: DatasetOptions = group(DatasetOptions, "data")
    network: NetworkOptions = group(NetworkOptions, "network")
    start: StartOptions = group(StartOptions, "start")
    duration: DurationOptions = group(DurationOptions, "duration")
    optim: OptimizerOptions = group(OptimizerOptions, "optimiser")
    loss: LossConfig = group(LossConfig, "loss")
    augment: AugmentConfig = group(AugmentConfig, "augmentation")
    machine: MachineOptions = group(MachineOptions, "machine")
    run: RunOptions = group(RunOptions, "run")
