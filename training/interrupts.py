"""Handle Ctrl-C and SIGTERM: deferred in critical sections, raised at once where nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from utils.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INSISTING = 1.0  # a second signal within this many seconds is a repeat to the process group, not a new one


class SignalWatch:
    """Handles SIGINT and SIGTERM while it is entered (`with SignalWatch() as watch`).

    Attributes:
        signum: the signal that was received, or None. The owner checks it and exits cleanly.

    Within `with watch.raising():`, a signal raises `Interrupted` at once. A second signal, at least a second later,
    raises it anywhere, except under torchrun, which forwards signals to all processes and kills them after 30 seconds.
    Outside the main thread, where Python handles no signals, the class does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._raises = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        with contextlib.suppress(ValueError):  # not the main thread
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Context that may be interrupted anywhere. Raises Interrupted on a pending or new signal."""
        before, self._raises = self._raises, True
        try:
            self.check()
            yield
        finally:
            self._raises = before

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _take(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if not self._raises and os.environ.get("RANK", "0") == "0":
                sys.stderr.write(f"\n{signal.Signals(signum).name}: saving\n")
        insists = now - self._since > INSISTING and "TORCHELASTIC_RUN_ID" not in os.environ
        if self._raises or insists:
            raise Interrupted(signum)
