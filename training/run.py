"""One training run, from its options to its folder of results."""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data.loader import worker_failure
from data.skips import Skip, used_summary, write_skips_csv
from evaluation.evaluator import EvaluationResult, evaluate
from nets.detector import Detector
from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from training.budget import fit_epochs
from training.engine import EpochProgress, NotFinite, train_epoch
from training.interrupts import SignalWatch
from training.optim import ModelEMA, automatic_decay
from training.options import TrainOptions
from training.pictures import Batch, draw_first_batches, draw_validation
from training.run_folder import (
    TensorBoard,
    draw_curves,
    lock_run,
    new_run_dir,
    remove_leftovers,
    write_json,
    write_metrics,
)
from training.setup import (
    build_loader,
    build_model,
    build_trainer,
    choose_options,
    epoch_sizes,
    freeze,
    open_data,
)
from training.state import (
    Progress,
    RunState,
    best_score,
    check_data,
    check_parts,
    describe_data,
    describe_versions,
    epoch_parts,
    seed_everything,
    share_batch,
)
from utils import distributed
from utils.allocator import keep_freed_memory
from utils.config import changed_options
from utils.distributed import say
from utils.errors import Interrupted, RunError, warn

MAX_ROLLBACKS = 3
ROLLBACK_RATE = 0.5


class Run:
    """One training, from its options to its folder of results."""

    def __init__(
        self, options: TrainOptions, device: str, checkpoint: Checkpoint | None, signals: SignalWatch | None = None
    ) -> None:
        self.device = torch.device(device)
        self.signals = signals or SignalWatch()
        if options.threads:
            torch.set_num_threads(options.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        seed_everything(options.seed, self.device)
        self.first_world_size, self.batch_size = share_batch(options.batch_size, checkpoint)

        self.train_index, self.val_index, shards = open_data(options)
        self.scored_skips: tuple[Skip, ...] = ()
        if checkpoint is not None:
            check_data(checkpoint, self.train_index, self.val_index)
        elif options.auto:
            options = choose_options(options, self.train_index)

        if checkpoint is None:
            self.model = build_model(options, self.train_index)
        else:
            self.model = YOLOv4(checkpoint.config)
        self.config = self.model.config
        self.model.to(self.device).to(memory_format=torch.channels_last)
        loader = functools.partial(build_loader, config=self.config, batch_size=self.batch_size)
        if checkpoint is None and options.minutes:
            trial = loader(options, index=self.train_index, shards=shards)
            options = fit_epochs(options, self.model, trial, self.train_index, self.val_index)
        self.options = options
        self.folder = self._folder()

        self.loader = loader(options, index=self.train_index, shards=shards)
        self.steps_per_epoch = -(-len(self.loader) // options.accumulate)
        total_steps = self.steps_per_epoch * options.epochs
        self.ema = ModelEMA(self.model, options.ema_decay or automatic_decay(total_steps)) if options.ema else None
        self.trainer = build_trainer(
            options, self.model, self.ema, self.batch_size, self.steps_per_epoch, self.train_index
        )
        rate = self.trainer.optimizer.param_groups[-1]["base_rate"]
        say(f"optimiser: {options.optimizer}, rate {rate:.2g}, precision {self.trainer.amp or 'float32'}")
        self.trainer.should_stop, self.trainer.after_step = self._should_stop, self._log_step
        if distributed.world_size() == 1:
            self.trainer.interruptible = self.signals.raising
        self.state = RunState(self.model, self.ema, self.trainer, self.loader)
        self.log = TensorBoard(self.folder, options.tensorboard and distributed.is_main())
        if checkpoint is not None:
            self._restore(checkpoint)

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

    def _should_stop(self) -> bool:
        """Whether a signal came; in a run of several processes, to any of them."""
        if distributed.world_size() == 1:
            return self.signals.signum is not None
        came = torch.tensor(float(self.signals.signum is not None), device=self.device)
        return bool(distributed.total(came).item())

    def _log_step(self, step: int, losses: dict[str, float]) -> None:
        self.log.add(step, **{f"train__{k}": v for k, v in losses.items()})

    # ---- the loop

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.state.progress

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
            say(f"stopped in epoch {self.progress.epoch + 1}; go on with: python train.py --resume {self.folder}")
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
        say(f"run: {self.folder}, {options.epochs} epochs of {self.steps_per_epoch} steps on {self.device}")
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
        say(used_summary(self.train_index, "train", self.loader.skips))
        say(used_summary(self.val_index, "val", self.scored_skips))
        best = self.progress
        say(f"best: epoch {best.best_epoch + 1}, {options.best_by} {best.best:.4f}: {self.folder / 'best.pth'}")

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
        sizes = epoch_sizes(options, self.config.input_size, progress.epoch)
        self.loader.set_epoch(progress.epoch, mosaic, progress.batch.batch, sizes)
        freeze(self.trainer, self.model.backbone, self.options, progress.epoch)
        title = f"epoch {progress.epoch + 1}/{options.epochs}"
        batches = self._batches()
        progress.batch, whole = train_epoch(
            self.trainer, batches, len(self.loader), title, progress.batch, distributed.is_main()
        )
        progress.batch = progress.batch.merged(distributed.gather(progress.batch))
        self.loader.restore_skips([skip for part in distributed.gather(self.loader.skips) for skip in part])
        progress.step = self.trainer.step
        if not whole:
            return False
        self.state.require_finite()
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "learning_rate": rate}
        progress.history.append(row | {f"train_{name}": value for name, value in progress.batch.means().items()})
        progress.epoch, progress.batch, progress.evaluated = progress.epoch + 1, EpochProgress(0, 0, {}), False
        self.save("last.pth")  # before the evaluation: should that be cut off, no training is lost
        self._finish_epoch()
        return progress.epoch >= options.epochs or not self._should_stop()

    def _batches(self) -> Iterable[Batch]:
        """Those of the epoch; a run's very first are drawn."""
        if distributed.is_main() and self.progress.epoch == 0 and self.progress.batch.batch == 0:
            return draw_first_batches(self.loader, self.config.class_names, self.folder)
        return self.loader

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
            if is_scored and progress.stale == 0 and distributed.is_main():
                detector = Detector.from_model(self._scored_model(), str(self.device))
                draw_validation(detector, self.val_index, self.folder / "val_detections.jpg")
        row = progress.history[-1]
        self.log.add(progress.epoch, **{f"epoch__{k}": v for k, v in row.items() if isinstance(v, float)})

    def _take_score(self, result: EvaluationResult) -> None:
        """Put the figures into the history, and keep the weights if they are the best."""
        progress = self.progress
        row = progress.history[-1]
        score = best_score(result.figures, self.options.best_by)
        row |= {name: result.figures[name] for name in ("voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50")}
        self._take_threshold(result)
        self.scored_skips = result.skips
        progress.stale += 1
        if score > progress.best:
            progress.best, progress.best_epoch, progress.stale = score, progress.epoch - 1, 0
            self.save("best.pth", finished=True)
        say(
            f"epoch {progress.epoch}: VOC10 mAP50 {row['voc10_mAP50'] or 0:.4f}, VOC07 {row['voc07_mAP50'] or 0:.4f}, "
            f"COCO AP {row['coco_AP'] or 0:.4f}, {self.options.best_by} {score:.4f} (best {progress.best:.4f}), "
            f"best-F1 threshold {self.config.score_threshold:.3f}"
        )

    def _write_figures(self) -> None:
        if distributed.is_main():
            write_metrics(self.folder / "metrics.csv", self.progress.history)
            draw_curves(self.folder / "curves.png", self.progress.history)

    def _write_skips(self) -> None:
        """All that was left out, while reading the annotations, training and scoring."""
        skips = dict.fromkeys([*self.train_index.skips, *self.val_index.skips, *self.loader.skips, *self.scored_skips])
        if distributed.is_main() and skips:
            write_skips_csv(self.folder / "skipped.csv", skips)

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

    def _is_stale(self) -> bool:
        return bool(self.options.patience) and self.progress.stale >= self.options.patience

    # ---- saving

    def save(self, name: str, finished: bool = False) -> None:
        """Write a checkpoint: of a finished run without the state that only resuming needs."""
        if not distributed.is_main():
            return
        row = self.progress.history[-1] if self.progress.history else {}
        checkpoint = Checkpoint(
            config=self.config,
            weights=self._scored_model().state_dict(),
            metrics={k: v for k, v in row.items() if isinstance(v, (int, float))},
            info={
                **describe_data(self.train_index, self.val_index),
                **describe_versions(),
                "epoch": self.progress.epoch,
                "finished": finished and name == "last.pth",
                "world_size": self.first_world_size,
                "parts": epoch_parts(self.options),
                "options": changed_options(self.options),
            },
            training=None if finished else self.state.state_dict(),
        )
        save_checkpoint(self.folder / name, checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state.restore(checkpoint, self.folder / "last.pth")
        check_parts(checkpoint, self.progress, epoch_parts(self.options))
        if self.progress.best_epoch >= 0:  # a run of before --best-by was compared by another figure
            self.progress.best = best_score(self.progress.history[self.progress.best_epoch], self.options.best_by)
        say(f"resumed: epoch {self.progress.epoch + 1}, batch {self.progress.batch.batch}")

    def _scored_model(self) -> YOLOv4:
        model = self.state.scored_model()
        model.config = self.config
        return model

    def _take_threshold(self, result: EvaluationResult) -> None:
        if result.best_f1_threshold is not None:
            source = f"best F1 on {self.val_index.name}, epoch {self.progress.epoch}"
            threshold = min(max(float(result.best_f1_threshold), 0.01), 0.99)
            self.config = self.config.replace(score_threshold=threshold, score_threshold_source=source)
