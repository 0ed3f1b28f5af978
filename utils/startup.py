"""Imported first by a command: sets up OpenMP and streams, and ends it in one line at a signal during the imports.

Importing PyTorch takes seconds, in which Python would answer Ctrl-C with a traceback. `utils.errors.run_command` takes
over after that. Imported by anything but a command of this repository, it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from utils.cpus import prepare_environment

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def leave(signum: int, _frame: FrameType | None = None) -> None:
    """End the process at once; nothing has begun that would have to be put in order."""
    os.write(2, f"interrupted by {signal.Signals(signum).name}\n".encode())
    os._exit(128 + signum)


def hold_streams() -> None:
    """Open /dev/null in the place of a standard stream that the shell has closed (`<&-`, `>&-`).

    Otherwise the next file that is opened gets its number, and what a library prints is written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode = "r" if number == 0 else "w"
        try:
            os.fstat(number)
            stream = open(os.devnull, mode)  # noqa: SIM115 -- the number is in use by now
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = open(number, mode, closefd=False)  # noqa: SIM115 -- it stays open until the end
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
