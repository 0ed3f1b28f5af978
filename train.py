"""Train a detector on a data set."""

from __future__ import annotations

import utils.startup  # noqa: F401 -- first: Ctrl-C while the rest is imported

# isort: split
import os
import time

from training.interrupts import SignalWatch
from training.options import PRESETS, TrainOptions
from utils.config import parse_settings
from utils.errors import Interrupted, UserError, require_packages, run_command

EXAMPLE = "python train.py --preset auto --data VOCdevkit --minutes 60"


def main(argv: list[str] | None = None) -> int:
    """Train, score, save; returns the exit code."""
    settings = parse_settings(
        TrainOptions, argv, description=__doc__ or "", prog="train.py", presets=PRESETS, example=EXAMPLE
    )
    if (settings.options.network.backbone or "").startswith("timm:"):
        require_packages("--backbone timm:NAME", ("timm",), "timm")
    started = time.monotonic()
    # Importing PyTorch takes seconds; --help and option errors do not need it.
    from nets.runtime import resolve_device
    from training.checks import check_before_loading
    from training.run import Run
    from training.state import describe_end, find_run, read_run
    from utils import distributed

    run_options = settings.options.run
    if run_options.folds and run_options.tune:
        raise UserError(
            "--folds", "cannot be combined with --tune", "tune first, then give --folds --config preset.json"
        )
    if run_options.folds or run_options.tune or run_options.resume:
        from training.folds import is_folds_run, run_folds
        from training.tune import is_tune_run, run_tune

        if run_options.folds or is_folds_run(settings):
            return run_folds(settings, main)
        if run_options.tune or is_tune_run(settings):
            return run_tune(settings, main)
    settings, checkpoint = find_run(settings), None
    with SignalWatch() as signals:
        with signals.raising():
            if settings.options.run.resume is not None:
                settings, checkpoint = read_run(settings)
                if checkpoint is not None and checkpoint.training is None:
                    folder = settings.options.run.resume
                    print(f"{folder}: {describe_end(checkpoint, folder)}, there is nothing left to do")
                    return 0
            check_before_loading(settings.options, is_resumed=checkpoint is not None)
            device = distributed.start(resolve_device(settings.options.machine.device))
        try:
            with signals.raising():
                run = Run(settings, device, checkpoint, signals, time.monotonic() - started)
            if run.options.run.show_config:
                distributed.say(run.table(everything=True))
                return 0
            return run.train()
        except Exception as error:
            if signals.signum is not None and distributed.is_lost(
                error
            ):  # the other processes received the signal, too
                raise Interrupted(signals.signum) from error
            raise
        finally:
            distributed.stop()


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from utils.distributed import recorded

        run_command(recorded(main))
    run_command(main)
