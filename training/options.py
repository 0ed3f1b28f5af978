"""Every option of train.py: its default, range and help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.image_cache import MODES as CACHE_MODES
from data.loader import SCORE_RANGE
from nets.assigner import ASSIGNERS
from nets.loss_config import LossConfig
from nets.losses import BOX_LOSSES
from nets.model_config import NECK_CONVS, NECKS, PADDINGS, SE_ORDERS
from training.optim import OPTIMIZERS, SCHEDULES
from training.setup import AMP
from training.state import BEST_BY
from utils.config import option
from utils.letterbox import RESIZE_MODES

PRESETS = Path(__file__).resolve().parents[1] / "model_data" / "presets"


@dataclass(frozen=True)
class TrainOptions:
    """Everything a training can be told."""

    data: str | None = option(None, "a VOCdevkit folder, a COCO folder or JSON, or a YOLO data.yaml")
    shards: str | None = option(None, "folder or http(s) address of tar shards to learn from (dataset.py shard)")
    train_split: str | None = option(None, "split to learn from; default: train, or trainval where there is a test")
    val_split: str | None = option(None, "split to score; default: val, or test")
    val_data: str | None = option(None, "where the split to score is, if not in --data")
    classes: str | None = option(None, "file of class names, one a line; default: those of the annotations")
    backbone: str | None = option(None, "mobilenet_v1, mobilenet_v2 (default), mobilenet_v3_large, _small, timm:NAME")
    alpha: float | None = option(None, "width multiplier of the backbone (default: 1.0)", low=0.05, high=4)
    neck: str | None = option(None, "panet (default), or slim: a third of its convolutions", choices=NECKS)
    neck_conv: str | None = option(None, "3x3 convolutions of neck and head (default: separable)", choices=NECK_CONVS)
    neck_width: float | None = option(None, "width multiplier of neck and head (default: 1.0)", low=0.05, high=4)
    se_order: str | None = option(None, "MobileNetV3: squeeze after or before the activation", choices=SE_ORDERS)
    padding: str | None = option(None, "of stride 2; default: the pretrained weights' own", choices=PADDINGS)
    scale_xy: tuple[float, ...] | None = option(None, "grid sensitivity of strides 8, 16, 32", low=1, high=4, nargs=3)
    anchors: str = option("yolov4", "yolov4, auto (k-means on the data, taken if they fit better)")
    input_size: tuple[int, ...] | None = option(
        None, "height [width], multiples of 32 (default: that of --weights, else 416)", low=32, high=8192
    )
    resize_mode: str | None = option(
        None, "letterbox (default) keeps proportions, stretch does not", choices=RESIZE_MODES
    )
    pretrained: str = option("none", "none, imagenet (download), or a file of backbone weights")
    weights: str | None = option(None, "a checkpoint to start from, or small, nano (bundled); classes may differ")
    teacher: tuple[str, ...] = option((), "detections (JSON) or checkpoints of detectors, as more labels", nargs="+")
    label_scores: tuple[float, ...] = option(
        SCORE_RANGE,
        "labels of a detector: ignored below the first score, sure above the second",
        low=0,
        high=1,
        nargs=2,
    )
    run_dir: str | None = option(None, "folder of the run (default: logs/BACKBONE-N)")
    resume: str | None = option(None, "folder of a run to go on with; auto: --run-dir where a run is there, else anew")

    auto: bool = option(False, "choose what is not given from the number of images and boxes, and say why")
    minutes: float = option(0.0, "train for about so long: epochs are chosen by the speed measured; 0: not so", low=0)
    epochs: int = option(100, "times the training images are seen", low=1, high=100_000)
    batch_size: int = option(16, "images a step, in each process", low=1, high=4096)
    accumulate: int = option(1, "batches whose gradients make one step", low=1, high=1024)
    optimizer: str = option("adamw", "", choices=OPTIMIZERS)
    learning_rate: float | None = option(None, "for a batch of 16 (default: adam(w) 5e-3, sgd 1e-2); scaled", above=0)
    backbone_rate: float | None = option(
        None, "factor of the backbone's learning rate (default: 0.1 where it is pretrained, else 1)", low=0, high=100
    )
    schedule: str = option("cosine", "of the learning rate", choices=SCHEDULES)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up", low=0)
    final_rate: float = option(0.02, "the cosine's last factor", low=0, high=1)
    momentum: float = option(0.9, "of SGD; the first beta of Adam", low=0, high=0.9999)
    weight_decay: float = option(
        0.02, "of convolution weights; never of norms and biases (SGD: try 5e-4)", low=0, high=1
    )
    clip: float = option(10.0, "largest norm of the gradient; 0: no limit", low=0)
    freeze_epochs: int = option(0, "first epochs with the backbone frozen", low=0)
    freeze_layers: int = option(
        0, "first layers of the backbone that always stay as pretrained; halves a step's cost", low=0
    )
    freeze_norms: bool = option(
        False,
        "the backbone's batch norms keep their pretrained averages: steps cost a fifth less, small batches no harm",
    )
    ema: bool = option(True, "score and keep a moving average of the weights")
    ema_decay: float = option(0.0, "of that average; 0: chosen by the number of steps", low=0, high=0.999999)
    fast: bool = option(False, "on a GPU: torch.compile, fused optimiser, cuDNN's quickest; minutes to start with")
    amp: str = option("auto", "mixed precision; auto: what the device does well", choices=("auto", *AMP))
    sync_bn: bool = option(False, "several processes: batch norm over all of them")
    best_by: str = option(
        "fitness", "what best.pth has most of; fitness: 0.9 COCO AP + 0.1 VOC10 mAP50", choices=tuple(BEST_BY)
    )
    patience: int = option(0, "stop after so many evaluations without a better score; 0: never", low=0)
    eval_every: int = option(1, "epochs between evaluations; the last is always scored", low=1)
    nan: str = option(
        "stop",
        "at a loss that is NaN: stop, or go back to the last checkpoint at half the rate, three times",
        choices=("stop", "rollback"),
    )
    seed: int = option(0, "of everything random", low=0, high=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N")
    workers: int = option(2, "processes that load images; 0: none", low=0, high=256)
    cache: str = option("off", "keep decoded images in memory (ram) or in a file (disk)", choices=CACHE_MODES)
    threads: int = option(0, "CPU threads of the network; 0: PyTorch's choice", low=0, high=1024)
    tensorboard: bool = option(True, "write TensorBoard events")

    assigner: str = option("ratio", "which anchors answer for a box", choices=tuple(ASSIGNERS))
    box_loss: str = option("ciou", "", choices=tuple(BOX_LOSSES))
    box_weight: float = option(LossConfig.box_weight, "weight of the box loss", low=0)
    objectness_weight: float = option(LossConfig.objectness_weight, "weight of the objectness loss", low=0)
    class_weight: float = option(LossConfig.class_weight, "weight of the class loss", low=0)
    level_weights: tuple[float, ...] = option(
        LossConfig.level_weights, "of objectness, strides 8 16 32", low=0, nargs=3
    )
    objectness_target: float = option(1.0, "1: the IoU of the match; 0: one", low=0, high=1)
    ignore_iou: float = option(1.0, "places that overlap an object more are not told off; 1: none", low=0, high=1)
    label_smoothing: float = option(0.0, "of classes", low=0, high=0.5)
    focal_gamma: float = option(0.0, "of the focal loss; 0: plain cross-entropy", low=0, high=10)
    class_balance: float = option(0.0, "power of 1 / frequency that weighs each class; 0: all alike", low=0, high=1)

    mosaic: float = option(0.5, "probability of four images in one", low=0, high=1)
    mixup: float = option(0.0, "probability that a mosaic is blended with another", low=0, high=1)
    copy_paste: float = option(0.0, "probability that objects of rare classes are pasted in", low=0, high=1)
    close_mosaic: float = option(0.15, "last part of the run without mosaic, mixup and copy-paste", low=0, high=1)
    flip: float = option(0.5, "probability of mirroring", low=0, high=1)
    hue: float = option(0.015, "largest change", low=0, high=1)
    saturation: float = option(0.7, "largest change", low=0, high=1)
    value: float = option(0.4, "largest change", low=0, high=1)
    scale: tuple[float, ...] = option((0.5, 1.5), "size range of an image alone", above=0, high=10, nargs=2)
    mosaic_scale: tuple[float, ...] = option((0.4, 1.6), "size range of a mosaic's tiles", above=0, high=10, nargs=2)
    translate: float = option(0.1, "largest shift, part of the input", low=0, high=1)
    aspect: float = option(0.2, "largest change of proportions", low=0, high=4)
    rotate: float = option(0.0, "largest rotation, degrees", low=0, high=180)
    albumentations: float = option(0.0, "probability of blur, noise, grey, JPEG artefacts", low=0, high=1)
    repeat_rare: float = option(0.0, "classes in less than this part of the images are shown more often", low=0, high=1)
    multi_scale: float = option(0.0, "input size varies by this part, a step of 32", low=0, high=0.6)
    grow_sizes: tuple[int, ...] = option((), "smaller input sizes to begin with, ascending", low=32, high=8192)
    grow_until: tuple[float, ...] = option((), "part of the run at which each of --grow-sizes ends", low=0, high=1)
    limit: int = option(0, "use only so many training images, drawn by the seed; 0: all", low=0)
