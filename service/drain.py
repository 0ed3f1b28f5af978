"""Finish pending requests when the service stops: with their answer, or with 503 in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from service.limits import Refused

STOP_SECONDS = 10  # within which the process ends after SIGTERM, whatever it is doing (Docker kills after 10)
ANSWER_SECONDS = 5.0  # for requests under way; those that have no answer then get 503
CLOSE_SECONDS = 6.0  # when connections that do not take their answer are closed
EXIT_SECONDS = 8.0  # when the process ends although something is stuck


class Waiting:
    """A request under way; `is_answered` is set when its answer begins."""

    def __init__(self) -> None:
        self.is_answered = False
        self.scope = anyio.CancelScope()


class Drain:
    """The requests under way, so that those without an answer can be refused together."""

    def __init__(self) -> None:
        self.is_over = False
        self._waiting: set[Waiting] = set()

    @contextmanager
    def watch(self, request: Waiting) -> Iterator[None]:
        """Around one request. Raises `Refused` (503) when the service stops before its answer."""
        if self.is_over:
            raise _stopping()
        self._waiting.add(request)
        try:
            with request.scope:
                yield
        finally:
            self._waiting.discard(request)
        if request.scope.cancelled_caught:
            raise _stopping()

    def refuse_all(self) -> None:
        """Refuse every request that has no answer yet, and all later ones."""
        self.is_over = True
        for request in self._waiting:
            if not request.is_answered:
                request.scope.cancel()


def _stopping() -> Refused:
    return Refused(503, "shutting_down", "service: is shutting down; ask again when it has restarted", retry_after=5)
