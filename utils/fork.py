"""Run a function in a fork of this process, without output and with a time limit (only where a process can fork)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

POLL_SECONDS = 0.02
FAILED = 255


def exit_code_in_fork(function: Callable[[], int], seconds: float) -> int | None:
    """Call `function` in a child process whose output is discarded.

    Args:
        function: returns the exit code of the child; an exception gives `FAILED`.
        seconds: after this time, the child is killed.

    Returns:
        The exit code, negative for a signal; None if the child was killed.
    """
    child = os.fork()
    if not child:
        code = FAILED
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            code = function()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
