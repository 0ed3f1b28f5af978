"""Train a detector: options, data, model, loop, in this order."""

from __future__ import annotations

import utils.startup  # noqa: F401 -- first: Ctrl-C while the rest is imported

# isort: split
import contextlib
import dataclasses
import hashlib
import os
import platform
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from nets.assigner import ASSIGNERS
from nets.backbones.registry import TIMM_PREFIX, list_backbones
from nets.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nets.detector import Detector
from nets.losses import BOX_LOSSES, LossConfig, YOLOLoss
from nets.model_config import NECK_CONVS, PADDINGS, SE_ORDERS, YOLOV4_ANCHORS, ModelConfig, check_input_size
from nets.pretrained import IMAGENET, NONE, load_pretrained, pretrained_settings
from nets.runtimes import resolve_device
from nets.transfer import transfer_weights
from nets.yolov4 import YOLOv4
from utils import distributed
from utils.allocator import keep_freed_memory
from utils.config import changed_options, check_options, given_options, option, read_config
from utils.data.augment import AugmentConfig
from utils.data.check import quick_check, skips_summary, warn_skips, write_skips_csv
from utils.data.class_names import read_class_names
from utils.data.findings import INFO
from utils.data.index import DatasetIndex, Skip
from utils.data.loader import TrainLoader, build_train_loader, worker_failure
from utils.data.open import default_splits, open_dataset
from utils.data.shards import build_shard_loader, open_shards
from utils.draw import contact_sheet, draw_boxes, draw_detections, draw_targets
from utils.engine import EpochProgress, NotFinite, Trainer, train_epoch
from utils.errors import Interrupted, RunError, UserError, run_command, warn
from utils.evaluator import EvaluationResult, evaluate
from utils.images import read_image, write_image
from utils.interrupts import SignalWatch
from utils.letterbox import RESIZE_MODES
from utils.optim import (
    OPTIMIZERS,
    SCHEDULES,
    ModelEMA,
    automatic_decay,
    build_optimizer,
    parameter_groups,
    rate_factor,
    scaled_rate,
)
from utils.recipe import choose_recipe
from utils.runlog import (
    TensorBoard,
    check_run_dir,
    draw_curves,
    lock_run,
    new_run_dir,
    remove_leftovers,
    write_json,
    write_metrics,
)

PRESETS = Path(__file__).resolve().parent / "model_data" / "presets"
AUTO = "auto"
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BEST_METRIC = "voc10_mAP50"
PRETRAINED_RATE = 0.2  # of the backbone, beside a neck that starts at random (docs/EXPERIMENTS.md)
PREVIEW_BATCHES = 2
PREVIEW_IMAGES = 8
SMALLEST = (32, 32)  # one cell of the coarsest map: batch norm has nothing to average over if it is one image's
MAX_ROLLBACKS = 3
ROLLBACK_RATE = 0.5
# what may differ when a run is resumed: where it runs, not what it computes
FREE_ON_RESUME = frozenset({"resume", "device", "workers", "threads", "tensorboard", "patience", "auto"})


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
    neck_conv: str | None = option(None, "3x3 convolutions of neck and head (default: separable)", choices=NECK_CONVS)
    neck_width: float | None = option(None, "width multiplier of neck and head (default: 1.0)", low=0.05, high=4)
    se_order: str | None = option(None, "MobileNetV3: squeeze after or before the activation", choices=SE_ORDERS)
    padding: str | None = option(None, "of stride 2; default: the pretrained weights' own", choices=PADDINGS)
    scale_xy: tuple[float, ...] | None = option(None, "grid sensitivity of strides 8, 16, 32", low=1, high=4, nargs=3)
    anchors: str = option("yolov4", "yolov4, auto (k-means on the data, taken if they fit better)")
    input_size: tuple[int, ...] = option((416,), "height [width], multiples of 32", low=32, high=8192)
    resize_mode: str | None = option(
        None, "letterbox (default) keeps proportions, stretch does not", choices=RESIZE_MODES
    )
    pretrained: str = option("none", "none, imagenet (download), or a file of backbone weights")
    weights: str | None = option(None, "a checkpoint to start from; its classes may differ")
    run_dir: str | None = option(None, "folder of the run (default: logs/BACKBONE-N)")
    resume: str | None = option(None, "folder of a run to go on with; auto: --run-dir where a run is there, else anew")

    auto: bool = option(False, "choose what is not given from the number of images and boxes, and say why")
    epochs: int = option(100, "times the training images are seen", low=1, high=100_000)
    batch_size: int = option(16, "images a step, in each process", low=1, high=4096)
    accumulate: int = option(1, "batches whose gradients make one step", low=1, high=1024)
    optimizer: str = option("adamw", "", choices=OPTIMIZERS)
    learning_rate: float | None = option(None, "for a batch of 16 (default: adam(w) 5e-3, sgd 1e-2); scaled", above=0)
    backbone_rate: float | None = option(
        None, "factor of the backbone's learning rate (default: 0.2 where it is pretrained, else 1)", low=0, high=100
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
    limit: int = option(0, "use only so many training images, drawn by the seed; 0: all", low=0)


def main(argv: list[str] | None = None) -> int:
    """Train, score, save; returns the exit code."""
    given = find_run(given_options(TrainOptions, argv, description=__doc__ or "", presets=PRESETS))
    options = check_options(TrainOptions, given)
    checkpoint: Checkpoint | None = None
    with SignalWatch() as signals:
        with signals.raising():
            if options.resume is not None:
                options, checkpoint = read_run(options, frozenset(given))
                if checkpoint is not None and checkpoint.training is None:
                    print(f"{options.resume}: finished after {options.epochs} epochs, nothing left to do")
                    return 0
            check_before_loading(options, is_resumed=checkpoint is not None)
            device = distributed.start(resolve_device(options.device))
        try:
            with signals.raising():
                run = Run(options, device, checkpoint, signals)
            return run.train()
        finally:
            distributed.stop()


def find_run(given: dict[str, Any]) -> dict[str, Any]:
    """The given options with the run that `--resume auto` means, or that torchrun has started again."""
    given = dict(given)
    if given.get("resume") != AUTO and not (distributed.is_restart() and "resume" not in given):
        return given
    given.pop("resume", None)
    folder = given.get("run_dir")
    if folder is None:
        raise UserError("--run-dir", "is missing: there is no telling which run to go on with", "give a folder")
    if (Path(folder) / "config.json").is_file():
        del given["run_dir"]
        given["resume"] = folder
    return given


def check_before_loading(options: TrainOptions, is_resumed: bool = False) -> None:
    """Refuse what cannot work before minutes go by in reading data. A resumed run no longer needs where it started.

    Raises:
        UserError: naming the option, its value and what is allowed.
    """
    if options.data is None:
        raise UserError("--data", "is missing", "give a VOCdevkit folder, a COCO folder or JSON, or a data.yaml")
    try:
        if check_input_size(options.input_size) == SMALLEST:
            raise ValueError("32 32: batch norm needs more than one cell of the coarsest map; give 64 or more")
    except ValueError as error:
        raise UserError("--input-size", str(error).removeprefix("input size ")) from error
    backbone = options.backbone
    if backbone is not None and backbone not in list_backbones() and not backbone.startswith(TIMM_PREFIX):
        known = ", ".join([*list_backbones(), f"{TIMM_PREFIX}NAME"])
        raise UserError("--backbone", f"{backbone!r} is not known", f"choose from {known}")
    if options.anchors not in ("yolov4", "auto"):
        raise UserError("--anchors", f"{options.anchors!r} is not known", "give yolov4 or auto")
    build_augment(options)
    for name in ("limit", "repeat_rare", "multi_scale", "train_split", "classes"):
        if options.shards is not None and getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}", "cannot be had with --shards", "leave one of them out")
    if options.weights is not None and options.pretrained != NONE:
        todo = "give one of them; where the other comes from a preset: --pretrained none"
        raise UserError("--weights", "cannot go with --pretrained: both say where to start", todo)
    if options.freeze_layers and options.weights is None and options.pretrained == NONE:
        raise UserError("--freeze-layers", "would freeze layers that start at random", "give --pretrained, or 0")
    if options.freeze_norms and options.weights is None and options.pretrained == NONE:
        raise UserError("--freeze-norms", "would keep averages of nothing seen", "give --pretrained, or leave it out")
    if options.nan == "rollback" and "WORLD_SIZE" in os.environ:
        raise UserError("--nan", "rollback works with one process only", "give stop")
    if options.resume is None:
        check_run_dir(options.run_dir)
    for name in ("data", "val_data", "classes", *(() if is_resumed else ("weights", "pretrained"))):
        path = getattr(options, name)
        if path is not None and path not in (NONE, IMAGENET) and not os.path.exists(path):
            raise UserError(f"--{name.replace('_', '-')}", f"{path} is not there", "give the path of one that is")


def build_augment(options: TrainOptions) -> AugmentConfig:
    """The options of augmentation. Raises UserError for those that do not go together."""
    names: tuple[str, ...] = ("mosaic", "mixup", "copy_paste", "flip", "hue", "saturation", "value", "scale")
    names += ("mosaic_scale", "translate", "aspect", "rotate", "albumentations")
    try:
        return AugmentConfig(**{name: getattr(options, name) for name in names})
    except ValueError as error:
        raise UserError("augmentation", str(error)) from error


def read_run(asked: TrainOptions, given: frozenset[str]) -> tuple[TrainOptions, Checkpoint | None]:
    """The options of a run that is to go on, and its last checkpoint; None if it ended before it wrote one.

    Args:
        asked: the options of the command line.
        given: the names of those that the user gave.

    Raises:
        UserError: listing every option that may not change in the middle of a run and does.
    """
    folder = Path(asked.resume or "")
    if folder.name == "last.pth":
        folder = folder.parent
    if not (folder / "config.json").is_file():
        raise UserError("--resume", f"{folder} is not the folder of a run (no config.json)", "give a --run-dir")
    saved = check_options(TrainOptions, read_config(folder / "config.json"))
    _refuse_differences(saved, {n: getattr(asked, n) for n in given - FREE_ON_RESUME}, folder)
    kept = {name: getattr(asked, name) for name in given & FREE_ON_RESUME}
    checkpoint = load_checkpoint(folder / "last.pth") if (folder / "last.pth").exists() else None
    if checkpoint is not None:
        then = checkpoint.info.get("options", {})
        known = {f.name for f in dataclasses.fields(TrainOptions)} - FREE_ON_RESUME - {"run_dir"}
        _refuse_differences(
            check_options(TrainOptions, then), {n: getattr(saved, n) for n in known & set(then)}, folder
        )
    return dataclasses.replace(saved, **{**kept, "resume": str(folder)}), checkpoint


def _refuse_differences(saved: TrainOptions, values: dict[str, Any], folder: Path) -> None:
    differences = [
        f"--{name.replace('_', '-')} {value} (the run: {getattr(saved, name)})"
        for name, value in sorted(values.items())
        if value != getattr(saved, name)
    ]
    if differences:
        todo = f"leave these out, or start a new run, from what was learnt: --weights {folder / 'last.pth'}"
        raise UserError("--resume", "differs from the run in " + ", ".join(differences), todo)


@dataclass
class Progress:
    """Where a run stands; with the weights, the optimiser and the random states it is all that resuming needs."""

    epoch: int = 0
    batch: EpochProgress = field(default_factory=lambda: EpochProgress(0, 0, {}))
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    stale: int = 0
    evaluated: bool = True
    parts: int = 1
    rollbacks: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training, from its options to its folder of results."""

    def __init__(
        self, options: TrainOptions, device: str, checkpoint: Checkpoint | None, signals: SignalWatch | None = None
    ) -> None:
        self.options, self.device = options, torch.device(device)
        self.signals = signals or SignalWatch()
        if options.threads:
            torch.set_num_threads(options.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.scored_skips: tuple[Skip, ...] = ()
        self.first_world_size, self.batch_size = self._share_batch(checkpoint)
        self._seed()
        self.train_index, self.val_index = self._open_data()
        if options.auto and checkpoint is None:
            self.options = options = self._automatic()
        start = self._start_checkpoint() if checkpoint is None else checkpoint
        self.config = self._model_config(start) if checkpoint is None else checkpoint.config
        self.model = YOLOv4(self.config)
        if checkpoint is not None:
            self._check_data(checkpoint)
        elif start is not None:
            self.say(str(transfer_weights(self.model, start, options.weights)))
        else:
            self.say(str(load_pretrained(self.model, options.pretrained)))
        self.folder = self._folder()
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.loader = self._loader()
        self.steps_per_epoch = -(-len(self.loader) // options.accumulate)
        total_steps = self.steps_per_epoch * options.epochs
        self.ema = ModelEMA(self.model, options.ema_decay or automatic_decay(total_steps)) if options.ema else None
        self.progress = Progress()
        self.trainer = self._trainer(total_steps)
        self.log = TensorBoard(self.folder, options.tensorboard and distributed.is_main())
        if checkpoint is not None:
            self._restore(checkpoint)

    # ---- the loop

    def train(self) -> int:
        """All epochs; returns the exit code.

        Raises:
            Interrupted: a signal came; what was learnt is in last.pth.
            RunError: for a loss that is NaN, a full disk, a worker that died.
        """
        try:
            self._train()
        except Interrupted:
            self.loader.kill()
            self.say(f"stopped in epoch {self.progress.epoch + 1}; go on with: python train.py --resume {self.folder}")
            raise
        except RuntimeError as error:  # a dead worker is reported by a signal, at any line
            failure = worker_failure(error)
            if failure is None:
                raise
            self.loader.kill()
            raise failure from error
        finally:
            self.loader.close()
            self.log.close()
        return 0

    def _train(self) -> None:
        options = self.options
        self._write_beginning()
        self.say(f"run: {self.folder}, {options.epochs} epochs of {self.steps_per_epoch} steps on {self.device}")
        if not self.progress.evaluated:
            self._finish_epoch()
        while self.progress.epoch < options.epochs and not self._is_stale():
            try:
                goes_on = self.train_one_epoch()
            except NotFinite as error:
                self._roll_back(error)
                continue
            if not goes_on:
                self.save("last.pth")
                distributed.barrier()  # torchrun ends all when the first has left: not before this is written
                raise Interrupted(self.signals.signum or signal.SIGTERM)
        self.save("last.pth", finished=True)
        self._write_skips()
        self._say_counts()
        best = self.progress
        self.say(f"best: epoch {best.best_epoch + 1}, {BEST_METRIC} {best.best:.4f}: {self.folder / 'best.pth'}")

    def _write_beginning(self) -> None:
        """What makes the run one that can be resumed, or what a run that was killed had no time to write."""
        if not distributed.is_main():
            return
        if self.progress.history:
            self._write_figures()
        elif not self.progress.step:
            self.save("last.pth")
        self._write_skips()

    def train_one_epoch(self) -> bool:
        """The rest of the present epoch and its evaluation; false if a signal came."""
        options, progress = self.options, self.progress
        mosaic = progress.epoch < options.epochs - round(options.close_mosaic * options.epochs)
        self.loader.set_epoch(progress.epoch, mosaic, progress.batch.batch)
        self._freeze()
        title = f"epoch {progress.epoch + 1}/{options.epochs}"
        batches = self._preview(self.loader) if progress.epoch == 0 and progress.batch.batch == 0 else self.loader
        progress.batch, whole = train_epoch(
            self.trainer, batches, len(self.loader), title, progress.batch, distributed.is_main()
        )
        progress.batch = progress.batch.merged(distributed.gather(progress.batch))
        progress.step = self.trainer.step
        if not whole:
            return False
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "learning_rate": rate}
        progress.history.append(row | {f"train_{name}": value for name, value in progress.batch.means().items()})
        progress.epoch, progress.batch, progress.evaluated = progress.epoch + 1, EpochProgress(0, 0, {}), False
        self.save("last.pth")  # before the evaluation: should that be cut off, no training is lost
        self._finish_epoch()
        return progress.epoch >= options.epochs or not self._should_stop()

    def _finish_epoch(self) -> None:
        """Score the epoch that has been trained, keep it if it is the best, and write figures and curves."""
        options, progress = self.options, self.progress
        is_scored = progress.epoch % options.eval_every == 0 or progress.epoch == options.epochs
        if is_scored:
            with self.signals.raising():  # last.pth says that this is still to be done
                result = self.evaluate()
            self._take_score(result)
        progress.evaluated = True
        self.save("last.pth")
        with self.signals.raising():
            self._write_figures()
            self._write_skips()
            if is_scored and progress.stale == 0:
                self._draw_validation()
        row = progress.history[-1]
        self.log.add(progress.epoch, **{f"epoch__{k}": v for k, v in row.items() if isinstance(v, float)})

    def _take_score(self, result: EvaluationResult) -> None:
        """Put the figures into the history, and keep the weights if they are the best."""
        progress = self.progress
        row = progress.history[-1]
        score = result.figures[BEST_METRIC] or 0.0
        row |= {name: result.figures[name] for name in ("voc07_mAP50", BEST_METRIC, "coco_AP", "coco_AP50")}
        self._take_threshold(result)
        self.scored_skips = result.skips
        progress.stale += 1
        if score > progress.best:
            progress.best, progress.best_epoch, progress.stale = score, progress.epoch - 1, 0
            self.save("best.pth", finished=True)
        self.say(
            f"epoch {progress.epoch}: {BEST_METRIC} {score:.4f} (best {progress.best:.4f}), voc07 "
            f"{row['voc07_mAP50'] or 0:.4f}, COCO AP {row['coco_AP'] or 0:.4f}, best-F1 threshold "
            f"{self.config.score_threshold:.3f}"
        )

    def _write_figures(self) -> None:
        if distributed.is_main():
            write_metrics(self.folder / "metrics.csv", self.progress.history)
            draw_curves(self.folder / "curves.png", self.progress.history)

    def _write_skips(self) -> None:
        skips = self._skips()
        if distributed.is_main() and skips:
            write_skips_csv(self.folder / "skipped.csv", skips)

    def _skips(self) -> list[Skip]:
        """All that was left out, while reading the annotations, training and scoring."""
        return list(
            dict.fromkeys([*self.train_index.skips, *self.val_index.skips, *self.loader.skips, *self.scored_skips])
        )

    def _roll_back(self, error: NotFinite) -> None:
        """Go back to the last checkpoint at half the learning rate, where that was asked for.

        Raises:
            NotFinite: where it was not.
            RunError: after too many times.
        """
        done = self.progress.rollbacks
        if self.options.nan != "rollback":
            raise error
        if done >= MAX_ROLLBACKS:
            raise RunError(error.where, f"{error.what}, also after going back {done} times", "look at these images")
        warn(error.where, error.what, "going back to the last checkpoint, at half the learning rate")
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self._restore(load_checkpoint(self.folder / "last.pth"))
        self.progress.rollbacks = done + 1
        for group in self.trainer.optimizer.param_groups:
            group["base_rate"] *= ROLLBACK_RATE
        self.save("last.pth")

    def evaluate(self) -> EvaluationResult:
        """Score the weights that would be saved, exactly as eval.py scores the file."""
        result = evaluate(
            Detector.from_model(distributed.share_buffers(self._scored_model()), str(self.device)),  # type: ignore[arg-type]
            self.val_index,
            batch_size=self.batch_size,
            progress=distributed.is_main(),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            gather=distributed.gather,
        )
        assert result is not None
        return result

    # ---- setting up

    def say(self, text: str) -> None:
        """Print, in one process only."""
        if distributed.is_main():
            print(text, flush=True)

    def _seed(self) -> None:
        seed = self.options.seed
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if self.device.type == "cpu":  # the price is small there, and a resumed run is then the same run
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _open_data(self) -> tuple[DatasetIndex, DatasetIndex]:
        options = self.options
        assert options.data is not None
        names = read_class_names(Path(options.classes)) if options.classes else None
        train_split, val_split = options.train_split, options.val_split
        if train_split is None or val_split is None:
            found = default_splits(options.data)
            train_split, val_split = train_split or found[0], val_split or found[1]
        if options.shards is None:
            train = open_dataset(options.data, train_split, class_names=names)
        else:
            self.shards = open_shards(options.shards)
            train = self.shards.index
        val = open_dataset(options.val_data or options.data, val_split, class_names=names or train.class_names)
        if options.limit and options.limit < len(train):
            chosen = np.random.default_rng(options.seed).permutation(len(train))[: options.limit]
            train = train.subset(np.sort(chosen))
        findings = quick_check(train, val)
        if distributed.is_main():
            for finding in (each for each in findings if each.severity != INFO):
                warn(finding.where, finding.what, finding.todo)
            warn_skips(train)
            warn_skips(val)
        for index, name in ((train, "train"), (val, "val")):
            self.say(f"{skips_summary(index, name)} ({index.name}, {index.num_boxes} boxes)")
        return train, val

    def _automatic(self) -> TrainOptions:
        """The options with those that the user left alone chosen by the data."""
        index, defaults = self.train_index, TrainOptions()
        owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
        classes = len(index.class_names)
        images = np.bincount(np.unique(owner * classes + index.labels) % classes, minlength=classes)
        boxes = np.bincount(index.labels, minlength=classes)
        choices = choose_recipe(len(index), boxes, images, self._is_pretrained())
        free = [c for c in choices if getattr(self.options, c.option) == getattr(defaults, c.option)]
        self.say("\n".join([f"preset auto, for {len(index)} images and {index.num_boxes} boxes:", *map(str, free)]))
        return dataclasses.replace(self.options, auto=False, **{c.option: c.value for c in free})

    def _folder(self) -> Path:
        if self.options.resume:
            folder: Path | None = Path(self.options.resume)
        else:
            name = (self.options.backbone or "mobilenet_v2").replace(":", "_").replace("/", "_")
            folder = new_run_dir(self.options.run_dir, name) if distributed.is_main() else None
        if folder is not None and distributed.is_main():
            lock_run(folder)
            remove_leftovers(folder)
            if not (folder / "config.json").exists():  # first of all files: it makes the folder one to resume from
                options = dataclasses.replace(self.options, run_dir=str(folder))
                write_json(folder / "config.json", changed_options(options))
        return distributed.gather(folder)[0]

    def _start_checkpoint(self) -> Checkpoint | None:
        return load_checkpoint(self.options.weights) if self.options.weights else None

    def _model_config(self, start: Checkpoint | None) -> ModelConfig:
        """What was asked for, over what the checkpoint has, over what the pretrained weights expect."""
        options = self.options
        backbone = options.backbone or (start.config.backbone if start else "mobilenet_v2")
        fields: dict[str, Any] = (
            pretrained_settings(backbone, options.pretrained) if start is None else start.config.to_dict()
        )
        fields |= {"class_names": self.train_index.class_names, "backbone": backbone}
        fields |= {"input_size": check_input_size(options.input_size)}
        for name in ("alpha", "neck_conv", "neck_width", "se_order", "padding", "scale_xy", "resize_mode"):
            if getattr(options, name) is not None:
                fields[name] = getattr(options, name)
        if start is None:
            fields["anchors"] = scale_anchors(fields["input_size"])
        config = ModelConfig(**fields)
        if options.anchors == "auto":
            from utils.data.cluster_anchors import propose_anchors

            report = propose_anchors(self.train_index, config.letterbox, config.anchors, options.seed)
            self.say(str(report))
            config = config.replace(anchors=report.anchors) if report.accepted else config
        return config

    def _share_batch(self, checkpoint: Checkpoint | None) -> tuple[int, int]:
        """The number of processes that the run began with, and the batch of each of the present ones.

        Raises:
            UserError: if a run cannot go on with as many images a step as it began with.
        """
        now = distributed.world_size()
        then = now if checkpoint is None else checkpoint.info.get("world_size", 1)
        if then * self.options.batch_size % now:
            what = f"{now} processes cannot share the run's {then * self.options.batch_size} images a step"
            raise UserError("--resume", what, f"start {then} processes, or another divisor of it")
        return then, then * self.options.batch_size // now

    def _loader(self) -> TrainLoader:
        options = self.options
        if options.shards is not None:
            return build_shard_loader(
                self.shards,
                self.config.input_size,
                build_augment(options),
                self.config.letterbox,
                self.batch_size,
                options.workers,
                options.seed,
                distributed.rank(),
                distributed.world_size(),
            )
        return build_train_loader(
            self.train_index,
            self.config.input_size,
            build_augment(options),
            self.config.letterbox,
            batch_size=self.batch_size,
            workers=options.workers,
            seed=options.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            balance=options.repeat_rare,
            sizes=multi_scale_sizes(self.config.input_size, options.multi_scale),
        )

    def _is_pretrained(self) -> bool:
        return self.options.pretrained != "none" or self.options.weights is not None

    def _trainer(self, total_steps: int) -> Trainer:
        options = self.options
        batch = self.batch_size * options.accumulate * distributed.world_size()
        rate = scaled_rate(options.optimizer, batch, options.learning_rate)
        usual = PRETRAINED_RATE if self._is_pretrained() else 1.0
        factor = usual if options.backbone_rate is None else options.backbone_rate
        groups = parameter_groups(self.model, rate, options.weight_decay, factor)
        for group in groups:
            group["base_rate"] = group["lr"]
        model: torch.nn.Module = self.model
        if distributed.world_size() > 1:
            if options.sync_bn:
                model = distributed.synchronise_batch_norms(model, self.device)
            ids = [self.device.index] if self.device.type == "cuda" else None
            model = torch.nn.parallel.DistributedDataParallel(
                model, device_ids=ids, find_unused_parameters=options.freeze_epochs > 0 or options.freeze_layers > 0
            )
        is_fast = options.fast and self._make_fast(model)
        amp = AMP[resolve_amp(options.amp, self.device)]
        warmup = round(options.warmup_epochs * self.steps_per_epoch)
        self.say(
            f"optimiser: {options.optimizer}, rate {rate:.2g} for {batch} images a step, precision {amp or 'float32'}"
        )
        return Trainer(
            model=model,
            loss=YOLOLoss(self.config, self._loss_config(), distributed.total, distributed.world_size()),
            optimizer=build_optimizer(options.optimizer, groups, options.momentum, fused=is_fast),
            factor=rate_factor(options.schedule, min(warmup, total_steps // 2), total_steps, options.final_rate),
            device=self.device,
            amp=amp,
            scaler=torch.amp.GradScaler(self.device.type) if amp is torch.float16 else None,
            ema=self.ema,
            ema_source=self.model,
            accumulate=options.accumulate,
            clip=options.clip,
            should_stop=self._should_stop,
            interruptible=self.signals.raising if distributed.world_size() == 1 else contextlib.nullcontext,
            after_step=self._log_step,
        )

    def _make_fast(self, model: torch.nn.Module) -> bool:
        """Compile the network where that pays: on a GPU. Returns whether it did."""
        if self.device.type != "cuda":
            if distributed.is_main():
                warn("--fast", f"does nothing on {self.device.type}: compiled was no quicker there", "leave it out")
            return False
        torch.backends.cudnn.benchmark = not self.options.multi_scale
        torch.set_float32_matmul_precision("high")
        model.compile()  # in place: the weights keep their names, and what is copied to be scored is not compiled
        return True

    def _should_stop(self) -> bool:
        """Whether a signal came; in a run of several processes, to any of them."""
        if distributed.world_size() == 1:
            return self.signals.signum is not None
        came = torch.tensor(float(self.signals.signum is not None), device=self.device)
        return bool(distributed.total(came).item())

    def _log_step(self, step: int, losses: dict[str, float]) -> None:
        self.log.add(step, **{f"train__{k}": v for k, v in losses.items()})

    def _loss_config(self) -> LossConfig:
        options = self.options
        values = {f.name: getattr(options, f.name) for f in dataclasses.fields(LossConfig) if hasattr(options, f.name)}
        weights: tuple[float, ...] = ()
        if options.class_balance:
            counts = np.bincount(self.train_index.labels, minlength=self.config.num_classes).clip(1)
            raw = (counts.mean() / counts) ** options.class_balance
            weights = tuple(float(w) for w in raw / np.average(raw, weights=counts))
        return LossConfig(**values | {"class_weights": weights})

    def _freeze(self) -> None:
        """Hold still what the options say: the backbone in phase one of the reference's recipe, or its first layers.

        Frozen batch norms keep their averages too, so that the frozen part computes what it was pretrained to.
        """
        backbone = self.model.backbone
        backbone.requires_grad_(True)
        layers = list(getattr(backbone, "features", backbone).children())[: self.options.freeze_layers]
        frozen = [backbone] if self.progress.epoch < self.options.freeze_epochs else layers
        for module in frozen:
            module.requires_grad_(False)
        norms = [m for m in backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        self.trainer.frozen = (*frozen, *(norms if self.options.freeze_norms else ()))

    # ---- saving and resuming

    def _scored_model(self) -> YOLOv4:
        model = self.model if self.ema is None else self.ema.model
        assert isinstance(model, YOLOv4)
        model.config = self.config
        return model

    def _take_threshold(self, result: EvaluationResult) -> None:
        if result.best_f1_threshold is not None:
            source = f"best F1 on {self.val_index.name}, epoch {self.progress.epoch}"
            threshold = min(max(float(result.best_f1_threshold), 0.01), 0.99)
            self.config = self.config.replace(score_threshold=threshold, score_threshold_source=source)

    def save(self, name: str, finished: bool = False) -> None:
        """Write a checkpoint: of a finished run without the state that only resuming needs."""
        if not distributed.is_main():
            return
        row = self.progress.history[-1] if self.progress.history else {}
        checkpoint = Checkpoint(
            config=self.config,
            weights=self._scored_model().state_dict(),
            metrics={k: v for k, v in row.items() if isinstance(v, (int, float))},
            info=self._info(),
            training=None if finished else self._state(),
        )
        save_checkpoint(self.folder / name, checkpoint)

    def _info(self) -> dict[str, Any]:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        return {
            "train": self.train_index.name,
            "val": self.val_index.name,
            "num_train_images": len(self.train_index),
            "data": {"train": fingerprint(self.train_index), "val": fingerprint(self.val_index)},
            "epoch": self.progress.epoch,
            "world_size": self.first_world_size,
            "versions": {k: str(v) for k, v in versions.items()},
            "options": changed_options(self.options),
            "saved": time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))),
        }

    def _state(self) -> dict[str, Any]:
        trainer = self.trainer
        self.progress.parts = trainer.parts
        return {
            "progress": dataclasses.asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler else None,
            "ema_steps": self.ema.steps if self.ema else 0,
            "skips": [dataclasses.asdict(skip) for skip in self.loader.skips],
            "random": {
                "torch": torch.get_rng_state(),
                "numpy": _numpy_state(),
                "python": list(_flat(random.getstate())),
            },
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.training or {}
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.model.load_state_dict(checkpoint.weights)
                self.ema.steps = state["ema_steps"]
            self.trainer.optimizer.load_state_dict(state["optimizer"])
            if self.trainer.scaler and state["scaler"]:
                self.trainer.scaler.load_state_dict(state["scaler"])
            values = state["progress"]
            self.progress = Progress(**{**values, "batch": EpochProgress(**values["batch"])})
            self.trainer.step, self.trainer.parts = self.progress.step, self.progress.parts
            self.loader.restore_skips([Skip(**values) for values in state.get("skips", ())])
            torch.set_rng_state(state["random"]["torch"])
            np.random.set_state(("MT19937", state["random"]["numpy"][0].numpy(), *state["random"]["numpy"][1:]))
            version, *words, gauss = state["random"]["python"]
            random.setstate((version, tuple(words), gauss))
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                self.folder / "last.pth", f"its training state cannot be used: {error}", "start anew"
            ) from error
        if len(set(distributed.gather(self.progress.step))) > 1:
            raise RunError(self.folder / "last.pth", "is another file in each process", "keep the run on a shared disk")
        self.say(f"resumed: epoch {self.progress.epoch + 1}, batch {self.progress.batch.batch}")

    def _check_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to go on with other data than the run began with."""
        differences = []
        if self.train_index.class_names != checkpoint.config.class_names:
            differences.append(f"classes {self.train_index.class_names} (the run: {checkpoint.config.class_names})")
        if checkpoint.info.get("num_train_images") != len(self.train_index):
            there = checkpoint.info.get("num_train_images")
            differences.append(f"{len(self.train_index)} training images (the run: {there})")
        for index, split in ((self.train_index, "train"), (self.val_index, "val")):
            now, then = fingerprint(index), checkpoint.info.get("data", {}).get(split, {})
            differences += [f"other {what} in {split}" for what in now if then.get(what, now[what]) != now[what]]
        if differences:
            raise UserError("--resume", "the data has changed: " + "; ".join(differences), "restore it, or start anew")

    # ---- pictures

    def _preview(self, batches: TrainLoader) -> Any:
        """Pass batches on; the first ones are drawn with their boxes."""
        for number, (images, targets) in enumerate(batches):
            if number < PREVIEW_BATCHES and distributed.is_main():
                pictures = []
                for i in range(min(len(images), 2 * PREVIEW_IMAGES)):
                    own = targets["image_index"] == i
                    image = np.ascontiguousarray(images[i].permute(1, 2, 0).numpy())
                    boxes, labels = targets["boxes"][own].numpy(), targets["labels"][own].numpy()
                    pictures.append(draw_boxes(image, boxes, labels, self.config.class_names))
                write_image(self.folder / f"train_batch{number}.jpg", contact_sheet(pictures))
            yield images, targets

    def _draw_validation(self) -> None:
        """Detections beside ground truth, for the first images of the validation split."""
        if not distributed.is_main():
            return
        detector = Detector.from_model(self._scored_model(), str(self.device))
        pictures = []
        for i in range(min(len(self.val_index), PREVIEW_IMAGES)):
            try:
                image = read_image(self.val_index.path(i))
            except (UserError, OSError):
                continue  # the evaluation has named it
            pictures.append(draw_targets(image, self.val_index.target(i), self.val_index.class_names))
            pictures.append(draw_detections(image, detector(image), self.config.class_names))
        if pictures:
            captions = ["ground truth", "detections"] * (len(pictures) // 2)
            write_image(self.folder / "val_detections.jpg", contact_sheet(pictures, captions=captions))

    def _is_stale(self) -> bool:
        return bool(self.options.patience) and self.progress.stale >= self.options.patience

    def _say_counts(self) -> None:
        """What was used and what was not, with the images that turned out unreadable on the way."""
        for index, name, late in (
            (self.train_index, "train", self.loader.skips),
            (self.val_index, "val", self.scored_skips),
        ):
            unreadable = {skip.where for skip in late}
            used = (
                [i for i in range(len(index)) if str(index.path(i)) not in unreadable]
                if unreadable
                else range(len(index))
            )
            self.say(skips_summary(dataclasses.replace(index.subset(used), skips=(*index.skips, *late)), name))


def fingerprint(index: DatasetIndex) -> dict[str, str]:
    """A digest of the images' names and one of their boxes: whether a run goes on with the data it began with."""
    names = "\n".join(map(str, index.image_ids)).encode("utf-8", "surrogatepass")
    boxes = (index.offsets, index.boxes, index.labels, index.difficult, index.crowd)
    return {
        "images": hashlib.sha256(names).hexdigest(),
        "boxes": hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in boxes)).hexdigest(),
    }


def multi_scale_sizes(input_size: tuple[int, int], part: float) -> list[tuple[int, int]]:
    """The sizes within `part` of `input_size`, in steps of 32; empty for none."""
    if not part:
        return []
    low, high = round(min(input_size) * (1 - part) / 32), round(min(input_size) * (1 + part) / 32)
    scales = [32 * n / min(input_size) for n in range(max(low, 1), high + 1)]
    sizes = [tuple(max(round(side * s / 32) * 32, 32) for side in input_size) for s in scales]
    return [size for size in sizes if size != SMALLEST]  # type: ignore[misc]


def scale_anchors(input_size: tuple[int, int]) -> Any:
    """YOLOv4's anchors, which are those of a 416 input, for another size."""
    factor = min(input_size) / 416
    return tuple(tuple((w * factor, h * factor) for w, h in level) for level in YOLOV4_ANCHORS)


def resolve_amp(amp: str, device: torch.device) -> str:
    """`auto` to the precision that the device does well."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "none"


def _numpy_state() -> list[Any]:
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)]


def _flat(state: Any) -> Any:
    version, words, gauss = state
    yield version
    yield from words
    yield gauss


if __name__ == "__main__":
    run_command(distributed.recorded(main))
