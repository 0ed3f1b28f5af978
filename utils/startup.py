"""Imported first by a command: sets up OpenMP, and ends the command in one line at a signal during the imports.

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


def is_command() -> bool:
    """Whether this process runs a script at the top of this repository."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and os.path.dirname(os.path.abspath(script)) == REPOSITORY


if is_command():
    prepare_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
