"""Combine concurrent requests into batches, with a limit on waiting requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from service.limits import PendingLimit


@dataclass(frozen=True)
class Answer:
    """The result of one request.

    Args:
        value: the batch function's result for it.
        waited: seconds until its batch started.
        ran: seconds that its batch took.
        batch: number of requests in the batch.
    """

    value: Any
    waited: float
    ran: float
    batch: int


@dataclass
class _Item:
    value: Any
    future: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs a batch function on values that are submitted one by one.

    While one batch runs, the next one is collected. Under load, batches therefore fill without waiting, and a single
    request does not wait. `wait` applies only to requests that have reserved a place and are being decoded.

    Args:
        run: function from a list of values to their results; always called on the same thread.
        batch_size: maximum number of values per call.
        wait: seconds that an incomplete batch waits for requests that are being decoded.
        pending: limit of pending requests, which batchers may share.
    """

    def __init__(
        self, run: Callable[[list[Any]], Sequence[Any]], batch_size: int, wait: float, pending: PendingLimit
    ) -> None:
        self._run, self.batch_size, self.wait, self._pending = run, batch_size, wait, pending
        self.taken = 0
        self._waiting: deque[_Item] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._loop: asyncio.AbstractEventLoop | None = None  # None before the start and after the end
        self._timer: asyncio.TimerHandle | None = None  # set while an incomplete batch waits
        self._busy_since: float | None = None

    async def start(self, warm_up: Callable[[], object] | None = None) -> None:
        """Start; `warm_up` is called first, on the thread that runs the batches."""
        loop = asyncio.get_running_loop()
        if warm_up is not None:
            await loop.run_in_executor(self._thread, warm_up)
        self._loop = loop
        self._next()

    def close(self) -> None:
        """Stop; batches that have not started are cancelled."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._waiting.popleft().future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> float:
        """Seconds since the current batch started; 0 when idle."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    @property
    def alive(self) -> bool:
        return self._loop is not None

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place for one value. Raises `Refused` if none is free."""
        with self._pending.hold():
            self.taken += 1
            try:
                yield
            finally:
                self.taken -= 1

    async def submit(self, value: Any) -> Answer:
        """Wait for the result of one value. An exception of the batch is raised for all of its requests."""
        item = _Item(value, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._next()
        return await item.future

    def _next(self, is_due: bool = False) -> None:
        """Start a batch if none is running and it is complete, or `is_due`."""
        if is_due:
            self._timer = None
        if self._loop is None or self._busy_since is not None:
            return
        self._waiting = deque(item for item in self._waiting if not item.future.done())  # without cancelled requests
        count = min(len(self._waiting), self.batch_size)
        if not count:
            return
        if count < min(self.batch_size, self.taken) and not is_due:  # other requests are being decoded
            if self._timer is None:
                self._timer = self._loop.call_later(self.wait, self._next, True)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._start([self._waiting.popleft() for _ in range(count)], self._loop)

    def _start(self, items: list[_Item], loop: asyncio.AbstractEventLoop) -> None:
        started = self._busy_since = time.perf_counter()
        done = self._thread.submit(self._run, [item.value for item in items])

        def finish() -> None:
            self._busy_since = None
            try:
                self._answer(items, started, done)
            finally:
                self._next()

        def call_finish(_: object) -> None:  # on the network's thread
            with contextlib.suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(finish)

        done.add_done_callback(call_finish)

    @staticmethod
    def _answer(items: Sequence[_Item], started: float, done: Future[Sequence[Any]]) -> None:
        ran = time.perf_counter() - started
        error = CancelledError() if done.cancelled() else done.exception()
        values = [None] * len(items) if error else done.result()
        for item, value in zip(items, values, strict=True):
            if item.future.done():  # its request was cancelled
                continue
            if error:
                item.future.set_exception(error)
            else:
                item.future.set_result(Answer(value, started - item.since, ran, len(items)))
