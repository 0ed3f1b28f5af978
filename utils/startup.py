"""Imported first by a command: sets up OpenMP and streams, and handles signals during the other imports.

Importing PyTorch takes seconds, during which Ctrl-C would print a traceback. Later, `utils.errors.run_command` handles
signals. The module has no effect if it is not imported by a command of this repository.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from utils.cpus import prepare_environment

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def leave(signum: int, _frame: FrameType | None = None) -> None:
    """Exit at once; nothing has started that needs a cleanup."""
    os.write(2, f"interrupted by {signal.Signals(signum).name}\n".encode())
    os._exit(128 + signum)


def hold_streams() -> None:
    """Open /dev/null in place of a standard stream that the shell has closed (`<&-`, `>&-`).

    Otherwise, the next opened file gets its descriptor, and output of libraries is written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode = "r" if number == 0 else "w"
        try:
            os.fstat(number)
            stream = open(os.devnull, mode)  # noqa: SIM115 -- the descriptor is in use now
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = open(number, mode, closefd=False)  # noqa: SIM115 -- it stays open until the process exits
        setattr(sys, name, stream)


def is_command() -> bool:
    """Whether this process runs a script at the top of this repository."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and os.path.dirname(os.path.abspath(script)) == REPOSITORY


if is_command():
    hold_streams()
    prepare_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
