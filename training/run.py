"""One training run, from its options to its run folder."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data.division import write_division
from data.index import DatasetIndex
from data.loader import TrainLoader, worker_failure
from data.open import AUTO_TRAIN
from data.skips import Skip, used_summary, write_skips_csv
from data.tiles import tile_dataset
from evaluation.evaluator import EvaluationResult, evaluate
from evaluation.metrics.coco import check_evaluator
from nets.detector import Detector
from nets.weights import NONE
from nets.weights.bundled import find_model
from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from training.budget import PLANS, Clock, duration_text, expected_text, fit_epochs, plan_steps, time_scoring
from training.choose import (
    TrainSettings,
    absolute_paths,
    choose_loading,
    choose_machine,
    choose_new_run,
    choose_optimizer,
    choose_schedule,
    choose_splits,
)
from training.engine import EpochProgress, NotFinite, train_epoch
from training.fingerprint import check_data, describe_data
from training.interrupts import SignalWatch
from training.optim import ModelEMA, automatic_decay, learning_rates
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
    class_weights,
    epoch_sizes,
    freeze,
    has_mosaic,
    open_data,
    schedule,
)
from training.state import (
    Progress,
    RunState,
    best_score,
    check_parts,
    describe_versions,
    epoch_parts,
    seed_everything,
    share_batch,
)
from training.summary import class_counts, network_size, next_commands
from training.validation_loss import ValidationLoss
from utils import distributed
from utils.allocator import keep_freed_memory
from utils.config import AUTO, DEFAULT, options_to_dict
from utils.cpus import cpu_share
from utils.distributed import say
from utils.errors import Interrupted, RunError, warn
from utils.text import counted, quoted

MAX_ROLLBACKS = 3
ROLLBACK_RATE = 0.5
FIRST_ESTIMATE = 5  # steps after which the time of the run is estimated
MOST_EPOCHS = 100_000
NOTHING_LEARNT = 0.01  # a lower mAP50 means that the run has learnt nothing
BUSY_SHARE = 0.7  # warn if the run gets less than this fraction of the CPU time


class Run:
    """One training run, from its options to its run folder.

    Args:
        settings: the options with their origins; options that are not given are chosen here.
        device: device of this process.
        checkpoint: the last checkpoint of a resumed run.
        signals: handler of Ctrl-C and SIGTERM.
        before: seconds that the command has taken so far, which count towards `--minutes`.

    Attributes:
        settings: every option with its final value.
        folder: the run folder; not created with --show-config.
    """

    def __init__(
        self,
        settings: TrainSettings,
        device: str,
        checkpoint: Checkpoint | None,
        signals: SignalWatch | None = None,
        before: float = 0.0,
    ) -> None:
        self.clock = Clock()
        self.clock.start(before)
        self.device = torch.device(device)
        self.signals = signals or SignalWatch()
        check_evaluator()
        if self.device.type == "cpu":
            keep_freed_memory()
        settings = absolute_paths(settings)
        settings = choose_machine(settings.with_asked() if checkpoint is None else settings, self.device)
        seed_everything(settings.options.run.seed, self.device)
        settings = choose_splits(settings)
        self.train_index, self.val_index, self.shards = open_data(settings.options)
        self.scored_skips: tuple[Skip, ...] = ()
        if checkpoint is None:
            settings = self._build(settings)
        else:
            check_data(checkpoint, self.train_index, self.val_index)
            self.model = YOLOv4(checkpoint.config)
            settings = choose_loading(choose_optimizer(settings), self.train_index)
        self.settings, self.config = settings, self.model.config
        self.data = describe_data(self.train_index, self.val_index)
        if self.options.dataset.tile is not None:
            self.train_index = self._tiles()
        self.first_world_size, self.batch_size = share_batch(self.options.duration.batch_size, checkpoint)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        most_epochs = self.options.duration.epochs if self.settings.is_given("epochs") else MOST_EPOCHS
        if checkpoint is None and self.options.duration.minutes:
            self.clock.score = time_scoring(self._validation_loss(self.model).detector, self.val_index)
            trial = self._build_loader()
            self.settings = fit_epochs(self.settings, self.model, trial, self.train_index, self.clock)
        self.loader = self._build_loader()
        options = self.options
        self.steps_per_epoch = -(-len(self.loader) // options.duration.accumulate)
        decay = automatic_decay(self.steps_per_epoch * options.duration.epochs)
        self.settings = choose_schedule(self.settings, decay)
        options = self.options
        self.ema = ModelEMA(self.model, options.optim.ema_decay) if options.optim.ema else None
        self.trainer = build_trainer(
            options, self.model, self.ema, self.batch_size, self.steps_per_epoch, self.train_index
        )
        self.trainer.should_stop, self.trainer.after_step = self._should_stop, self._after_step
        if distributed.world_size() == 1:
            self.trainer.interruptible = self.signals.raising
        self.state = RunState(self.model, self.ema, self.trainer, self.loader, Progress(most_epochs=most_epochs))
        self._first_step = 0
        self._is_warned = self._is_busy_warned = False
        if options.run.show_config:
            return
        self.folder = self._folder()
        if self.train_index.source.get("split") == AUTO_TRAIN and distributed.is_main():
            write_division(self.folder / "split", self.train_index, self.val_index)
        self.log = TensorBoard(self.folder, options.run.tensorboard and distributed.is_main())
        if checkpoint is not None:
            self._restore(checkpoint)
            self.clock.spent = self.progress.seconds
            self.clock.step, self.clock.score = self.progress.speeds

    @property
    def options(self) -> TrainOptions:
        """Every option, with its final value."""
        return self.settings.options

    def _build(self, settings: TrainSettings) -> TrainSettings:
        """Choose the options that are not given, and build the network of a new run."""
        settings, start = choose_new_run(settings, self.train_index)
        self.model = build_model(settings.options, start, self.train_index)
        return settings

    def _build_loader(self) -> TrainLoader:
        return build_loader(self.options, self.config, self.batch_size, self.train_index, self.shards)

    def _folder(self) -> Path:
        run = self.options.run
        if run.resume:
            folder: Path | None = Path(run.resume)
        else:
            name = (self.options.network.backbone or "run").replace(":", "_").replace("/", "_")
            folder = new_run_dir(run.run_dir, name) if distributed.is_main() else None
        if folder is not None and distributed.is_main():
            lock_run(folder)
            remove_leftovers(folder)
        folder = distributed.gather(folder)[0]
        assert folder is not None
        origin = AUTO if run.run_dir is None else self.settings.origins["run_dir"]
        self.settings = self.settings.choose(origin, {"run_dir": str(folder)}).choose(DEFAULT, {"resume": None})
        self.folder = folder
        self._write_config()  # written first, because a folder with config.json can be resumed
        return folder

    def _write_config(self) -> None:
        if distributed.is_main():
            write_json(self.folder / "config.json", {**self.settings.to_dict(), "_run": self.facts()})

    def facts(self) -> dict[str, Any]:
        """Values derived from the options, for the table at the start and for config.json."""
        rates = learning_rates(self.trainer.optimizer)
        start = self.options.start
        backbone = start.pretrained if start.pretrained != NONE else "random weights"
        facts: dict[str, Any] = {
            "network": network_size(self.config),
            "classes": class_counts(self.train_index),
            "starts from": str(find_model(start.weights)) if start.weights else backbone,
            **{f"learning rate, {name}": rate for name, rate in rates.items()},
            "images per step": self.batch_size * self.options.duration.accumulate * distributed.world_size(),
            "steps": f"{counted(self.options.duration.epochs, 'epoch')} of {self.steps_per_epoch}",
        }
        return facts | ({} if self.options.run.show_config else {"best checkpoint": str(self.folder / "best.pth")})

    def table(self, everything: bool = False) -> str:
        """Table of the options with their origins, and of the values derived from them."""
        facts = {
            name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in self.facts().items()
        }
        width = max(map(len, facts))
        lines = [f"  {name:{width}}  {value}" for name, value in facts.items()]
        title = f"run on {counted(len(self.train_index), 'image')} and {counted(self.train_index.num_boxes, 'box')}:"
        return "\n".join([self.settings.table(everything), title, *lines])

    def _should_stop(self) -> bool:
        """Whether a signal was received by any process, or the time budget is used up."""
        return self._is_interrupted() or (bool(self.options.duration.minutes) and self._is_done())

    def _is_interrupted(self) -> bool:
        if distributed.world_size() == 1:
            return self.signals.signum is not None
        came = torch.tensor(float(self.signals.signum is not None), device=self.device)
        return bool(distributed.total(came).item())

    def _after_step(self, step: int, losses: dict[str, float]) -> None:
        self.log.add(step, **{f"train__{k}": v for k, v in losses.items()})
        self.clock.count_step()
        if step == self._first_step + 1 and self.steps_per_epoch > 1:
            self.clock.begin_epoch()  # the first step takes longer than others
        if step == self._first_step + min(FIRST_ESTIMATE, self.steps_per_epoch):
            self.clock.measure()
            if not self.clock.score:
                self.clock.score = time_scoring(self._validation_loss(self._scored_model()).detector, self.val_index)
                self.clock.begin_epoch()
            say(expected_text(self.epochs, self.clock.total() + self._seconds_left()))
        if self.options.duration.minutes and step % max(self.total_steps // PLANS, 1) == 0:
            self._plan()

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, by the current plan."""
        return self.progress.total_steps or self.steps_per_epoch * self.options.duration.epochs

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, by the current plan; the last may be shortened."""
        return -(-self.total_steps // self.steps_per_epoch)

    def _is_done(self) -> bool:
        if self.options.duration.minutes:
            return self.trainer.step >= self.total_steps
        return self.progress.epoch >= self.epochs

    def _seconds_left(self) -> float:
        """Estimated remaining seconds of training and evaluation."""
        every = self.options.duration.eval_every
        scores = max(self.epochs - self.progress.epoch, 0) / every
        return (self.total_steps - self.trainer.step) * self.clock.step + scores * self.clock.score

    def _plan(self) -> None:
        """`--minutes`: replan the rest of the run with the measured times of steps and evaluations."""
        clock, duration = self.clock, self.options.duration
        clock.measure()
        if not clock.step:
            return
        budget = 60 * duration.minutes
        left, step_seconds, score = distributed.gather((budget - clock.total(), clock.step, clock.score))[0]
        total = plan_steps(
            self.trainer.step,
            self.total_steps,
            self.steps_per_epoch,
            duration.eval_every,
            left,
            step_seconds,
            score,
            budget,
            self.progress.most_epochs * self.steps_per_epoch,
        )
        if total == self.total_steps:
            return
        word = "slower" if total < self.total_steps else "faster"
        steps = f"{counted(total, 'step')} instead of {self.total_steps}"
        say(f"replanned: a step takes {step_seconds:.2f} s, {word} than before; {steps}")
        self._set_total_steps(total)
        why = f"fits {duration.minutes:g} minutes at {step_seconds:.2f} s per step"
        self.settings = self.settings.choose(AUTO, {"epochs": max(self.epochs, 1)}, {"epochs": why})
        self._write_config()

    def _set_total_steps(self, total: int) -> None:
        self.progress.total_steps = total
        self.trainer.factor = schedule(self.options, self.steps_per_epoch, total)

    # ---- the loop

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return self.state.progress

    def train(self) -> int:
        """Train all epochs; returns the exit code.

        Raises:
            Interrupted: a signal was received; last.pth contains the state.
            RunError: for a NaN loss, a full disk or a lost worker process.
        """
        try:
            self._train()
        except Interrupted:
            self.loader.kill()
            resume = f"python train.py --resume {quoted(self.folder)}"
            say(f"stopped in epoch {self.progress.epoch + 1}; resume with: {resume}")
            raise
        except RuntimeError as error:  # the loss of a worker is reported by a signal, which may raise anywhere
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
        self._first_step = self.trainer.step
        self._write_beginning()
        say(self.table())
        if not self.progress.evaluated:
            self._finish_epoch()
        while not self._is_done() and not self._is_stale():
            try:
                goes_on = self.train_one_epoch()
            except NotFinite as error:
                self._roll_back(error)
                continue
            if not goes_on:
                self.save("last.pth")
                distributed.barrier()  # torchrun ends all processes when the first one exits
                raise Interrupted(self.signals.signum or signal.SIGTERM)
        self.save("last.pth", finished=True)
        self._write_skips()
        say(used_summary(self.train_index, "train", self.loader.skips))
        say(used_summary(self.val_index, "val", self.scored_skips))
        best, best_by = self.progress, self.options.duration.best_by
        say(f"best: epoch {best.best_epoch + 1}, {best_by} {best.best:.4f}: {self.folder / 'best.pth'}")
        if self.options.duration.minutes:
            minutes = self.options.duration.minutes
            say(f"time: {self.clock.total() / 60:.1f} of {minutes:g} minutes, {counted(self.progress.epoch, 'epoch')}")
        say(next_commands(self.folder, self.options.dataset.data))

    def _write_beginning(self) -> None:
        """Write the files that a new run needs to be resumable, or that a killed run could not write."""
        if not distributed.is_main():
            return
        if self.progress.history:
            self._write_figures()
        elif not self.progress.step:
            self.save("last.pth")
        self._write_skips()

    def train_one_epoch(self) -> bool:
        """Train the rest of the current epoch and evaluate it. Returns False if a signal was received."""
        progress = self.progress
        mosaic = has_mosaic(self.options.duration.close_mosaic, progress.epoch, self.epochs)
        sizes = epoch_sizes(self.options, self.config.input_size, progress.epoch, self.epochs)
        self.loader.set_epoch(progress.epoch, mosaic, progress.batch.batch, sizes)
        freeze(self.trainer, self.model.backbone, self.options, progress.epoch)
        title = f"epoch {progress.epoch + 1}/{self.epochs}"
        batches = self._batches()
        self.clock.begin_epoch()
        progress.batch, whole = train_epoch(
            self.trainer, batches, len(self.loader), title, progress.batch, distributed.is_main()
        )
        progress.batch = progress.batch.merged(distributed.gather(progress.batch))
        self.loader.restore_skips([skip for part in distributed.gather(self.loader.skips) for skip in part])
        progress.step = self.trainer.step
        if not whole and self._is_interrupted():
            return False
        self.clock.measure()
        self.state.require_finite()
        rates = learning_rates(self.trainer.optimizer, "lr")
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {"learning_rate": rates["neck"], "learning_rate_backbone": rates["backbone"]}
        progress.history.append(row | {f"train_{name}": value for name, value in progress.batch.means().items()})
        progress.epoch, progress.batch, progress.evaluated = progress.epoch + 1, EpochProgress(0, 0, {}), False
        self.save("last.pth")  # before the evaluation, so that an interruption of it loses no training
        self._finish_epoch()
        if self.options.duration.minutes and not self._is_done():
            self._plan()
        return self._is_done() or not self._is_interrupted()

    def _batches(self) -> Iterable[Batch]:
        """The batches of the epoch. The first ones of a run are also drawn."""
        if distributed.is_main() and self.progress.epoch == 0 and self.progress.batch.batch == 0:
            return draw_first_batches(self.loader, self.config.class_names, self.folder)
        return self.loader

    def _finish_epoch(self) -> None:
        """Evaluate the trained epoch, save it if it is the best, and write metrics and curves."""
        progress = self.progress
        is_scored = progress.epoch % self.options.duration.eval_every == 0 or self._is_done()
        if is_scored:
            started = self.clock.now()
            with self.signals.raising():  # last.pth records that the evaluation is still to be done
                result = self.evaluate()
            self.clock.score = self.clock.now() - started
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
        """Add the metrics to the history, and save the weights if they are the best."""
        progress = self.progress
        row = progress.history[-1]
        best_by = self.options.duration.best_by
        score = best_score(result.figures, best_by)
        row |= {f"val_{name}": value for name, value in self.val_losses.items()}
        row |= {name: result.figures[name] for name in ("voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50")}
        self._take_threshold(result)
        self.scored_skips = result.skips
        progress.stale += 1
        if score > progress.best:
            progress.best, progress.best_epoch, progress.stale = score, progress.epoch - 1, 0
            if not self._has_better(score):
                self.save("best.pth", finished=True)
        say(
            f"epoch {progress.epoch}: VOC10 mAP50 {row['voc10_mAP50'] or 0:.4f}, VOC07 {row['voc07_mAP50'] or 0:.4f}, "
            f"COCO AP {row['coco_AP'] or 0:.4f}, {best_by} {score:.4f} (best {progress.best:.4f}), "
            f"best-F1 threshold {self.config.score_threshold:.3f}; {duration_text(self._seconds_left())} left"
        )
        self._warn_of_no_progress()
        self._warn_of_busy_machine()

    def _has_better(self, score: float) -> bool:
        """Whether best.pth is better than the best score in this state, because an older last.pth was restored."""
        path = self.folder / "best.pth"
        if not distributed.is_main() or not path.exists():
            return False
        kept = best_score(load_checkpoint(path).metrics, self.options.duration.best_by)
        if kept > score:
            warn(path, f"has {kept:.4f}, more than the {score:.4f} of this epoch", "best.pth is kept")
        return kept > score

    def _warn_of_no_progress(self) -> None:
        """Warn once if the model has learnt nothing after a third of the run, or at the end of one or two epochs."""
        step, total = self.trainer.step, self.total_steps
        if self._is_warned or step * 3 < total or (self.epochs < 3 and step < total):
            return
        self._is_warned = True
        best = max((row.get("voc10_mAP50") or 0.0 for row in self.progress.history), default=0.0)
        if best < NOTHING_LEARNT:
            start, duration = self.options.start, self.options.duration
            tries = ["--preset auto, which starts from the bundled detector"] if not start.weights else []
            tries += ["more --minutes"] if duration.minutes else ["more --epochs"]
            tries += ["a lower --learning-rate", "python dataset.py check"]
            what = f"mAP50 is {best:.4f} after {step / total:.0%} of the run: the model has learnt nothing"
            warn("run", what, f"try {', '.join(tries[:-1])} or {tries[-1]}")

    def _warn_of_busy_machine(self) -> None:
        """Warn once if other processes use much of the CPU time."""
        share = cpu_share()
        if not self._is_busy_warned and share is not None and share < BUSY_SHARE and distributed.is_main():
            self._is_busy_warned = True
            what = f"this run got only {share:.0%} of the CPU time that it needs"
            warn("machine", what, "stop other programs, or reduce --threads and --workers")

    def _write_figures(self) -> None:
        if distributed.is_main():
            write_metrics(self.folder / "metrics.csv", self.progress.history)
            draw_curves(self.folder / "curves.png", self.progress.history)

    def _write_skips(self) -> None:
        """Write all images and objects that were skipped in reading, training and evaluation."""
        skips = dict.fromkeys([*self.train_index.skips, *self.val_index.skips, *self.loader.skips, *self.scored_skips])
        if distributed.is_main() and skips:
            write_skips_csv(self.folder / "skipped.csv", skips)

    def _roll_back(self, error: NotFinite) -> None:
        """Go back to the last checkpoint at half the learning rate (`--nan rollback`).

        Raises:
            NotFinite: with `--nan stop`.
            RunError: after too many rollbacks.
        """
        done = self.progress.rollbacks
        if self.options.run.nan != "rollback":
            raise error
        if done >= MAX_ROLLBACKS:
            raise RunError(error.where, f"{error.what}, even after {done} rollbacks", "check these images")
        warn(error.where, error.what, "going back to the last checkpoint, at half the learning rate")
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self._restore(load_checkpoint(self.folder / "last.pth"))
        self.progress.rollbacks = done + 1
        for group in self.trainer.optimizer.param_groups:
            group["base_rate"] *= ROLLBACK_RATE
        self.save("last.pth")

    def _tiles(self) -> DatasetIndex:
        """The training images and their tiles. One process writes the tiles, the others read them."""
        dataset = self.options.dataset
        size = (dataset.tile, dataset.tile) if dataset.tile else self.config.input_size
        if not distributed.is_main():
            distributed.barrier()
        index = tile_dataset(self.train_index, size, dataset.tile_overlap)
        if distributed.is_main():
            distributed.barrier()
        say(f"tiles of {size[1]}x{size[0]}: {counted(len(index), 'image')} and tiles of {len(self.train_index)} images")
        return index

    def evaluate(self) -> EvaluationResult:
        """Evaluate the weights that would be saved, exactly as eval.py evaluates the file; sets `val_losses`."""
        losses = self._validation_loss(distributed.share_buffers(self._scored_model()))  # type: ignore[arg-type]
        result = evaluate(
            losses.detector,
            self.val_index,
            batch_size=self.batch_size,
            progress=distributed.is_main(),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            gather=distributed.gather,
            after_batch=losses.add,
        )
        assert result is not None
        self.val_losses = losses.sums.merged(distributed.gather(losses.sums)).means()
        return result

    def _validation_loss(self, model: YOLOv4) -> ValidationLoss:
        weights = class_weights(self.train_index, self.options.loss.class_balance)
        return ValidationLoss(model, str(self.device), self.val_index, self.options, weights)

    def _is_stale(self) -> bool:
        patience = self.options.duration.patience
        return bool(patience) and self.progress.stale >= patience

    # ---- saving

    def save(self, name: str, finished: bool = False) -> None:
        """Write a checkpoint; for a finished run, without the training state that only resuming needs."""
        if not distributed.is_main():
            return
        row = self.progress.history[-1] if self.progress.history else {}
        clock = self.clock
        self.progress.seconds, self.progress.speeds = clock.total(), [clock.step, clock.score]
        checkpoint = Checkpoint(
            config=self.config,
            weights=self._scored_model().state_dict(),
            metrics={k: v for k, v in row.items() if isinstance(v, (int, float))},
            info={
                **self.data,
                **describe_versions(),
                "epoch": self.progress.epoch,
                "finished": finished and name == "last.pth",
                "world_size": self.first_world_size,
                "parts": epoch_parts(self.options),
                "options": options_to_dict(self.options),
            },
            training=None if finished else self.state.state_dict(),
        )
        save_checkpoint(self.folder / name, checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state.restore(checkpoint, self.folder / "last.pth")
        check_parts(checkpoint, self.progress, epoch_parts(self.options))
        if self.progress.best_epoch >= 0:  # runs from before --best-by used another metric
            self.progress.best = best_score(
                self.progress.history[self.progress.best_epoch], self.options.duration.best_by
            )
        if self.progress.total_steps:
            self._set_total_steps(self.progress.total_steps)
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
