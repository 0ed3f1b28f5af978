"""Train a detector: options, data, model, loop, in this order."""

from __future__ import annotations

import utils.startup  # noqa: F401 -- first: Ctrl-C while the rest is imported

# isort: split


from nets.runtime import resolve_device
from nets.weights.checkpoint import Checkpoint
from training.checks import check_before_loading
from training.interrupts import SignalWatch
from training.options import PRESETS, TrainOptions
from training.run import Run
from training.state import (
    describe_end,
    find_run,
    read_run,
)
from utils import distributed
from utils.config import check_options, given_options
from utils.errors import Interrupted, outliving_readers, run_command


def main(argv: list[str] | None = None) -> int:
    """Train, score, save; returns the exit code."""
    given = find_run(given_options(TrainOptions, argv, description=__doc__ or "", presets=PRESETS))
    options = check_options(TrainOptions, given)
    checkpoint: Checkpoint | None = None
    with SignalWatch() as signals, outliving_readers():  # the figures are in files, too
        with signals.raising():
            if options.resume is not None:
                options, checkpoint = read_run(options, frozenset(given))
                if checkpoint is not None and checkpoint.training is None:
                    print(f"{options.resume}: {describe_end(checkpoint, options.resume)}, nothing left to do")
                    return 0
            check_before_loading(options, is_resumed=checkpoint is not None)
            device = distributed.start(resolve_device(options.device))
        try:
            with signals.raising():
                run = Run(options, device, checkpoint, signals)
            return run.train()
        except Exception as error:
            if signals.signum is not None and distributed.is_lost(error):  # the others were told to leave, too
                raise Interrupted(signals.signum) from error
            raise
        finally:
            distributed.stop()


if __name__ == "__main__":
    run_command(distributed.recorded(main))
