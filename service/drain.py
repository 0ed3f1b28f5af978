"""Finish pending requests when the service stops, with their answer or with 503."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from service.limits import Refused

# Times after SIGTERM:
STOP_SECONDS = 10  # maximum time until the process exits (Docker kills it after 10)
ANSWER_SECONDS = 5.0  # pending requests may finish; the others then get 503
CLOSE_SECONDS = 6.0  # connections that have not read their answer are closed
EXIT_SECONDS = 8.0  # the process exits even if something is stuck


class Waiting:
    """A pending request; `is_answered` is set when its answer starts."""

    def __init__(self) -> None:
        self.is_answered = False
        self.scope = anyio.CancelScope()


class Drain:
    """The pending requests, so that all without an answer can be refused together."""

    def __init__(self) -> None:
        self.is_over = False
        self._waiting: set[Waiting] = set()

    @contextmanager
    def watch(self, request: Waiting) -> Iterator[None]:
        """Context of one request. Raises `Refused` (503) if the service stops before its answer starts."""
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
    return Refused(503, "shutting_down", "service: is shutting down; try again after its restart", retry_after=5)
