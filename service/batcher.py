"""Combine concurrent requests into batches, with a limit on waiting requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

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
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[None] | None = None
        self._busy_since: float | None = None

    async def start(self, warm_up: Callable[[], object] | None = None) -> None:
        """Start; `warm_up` is called first, on the thread that runs the batches."""
        if warm_up is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, warm_up)
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop; batches that have not started are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while not self._queue.empty():
            self._queue.get_nowait().future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> float:
        """Seconds since the current batch started; 0 when idle."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

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
        self._queue.put_nowait(item)
        return await item.future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            items = [item for item in await self._gather() if not item.future.done()]  # some requests were cancelled
            if not items:
                continue
            started = self._busy_since = time.perf_counter()
            try:
                values = await loop.run_in_executor(self._thread, self._run, [item.value for item in items])
            except Exception as error:  # the next batch must run after any exception
                for item in items:
                    if not item.future.done():
                        item.future.set_exception(error)
                continue
            finally:
                self._busy_since = None
            ran = time.perf_counter() - started
            for item, value in zip(items, values, strict=True):
                if not item.future.done():
                    item.future.set_result(Answer(value, started - item.since, ran, len(items)))

    async def _gather(self) -> list[_Item]:
        items = [await self._queue.get()]
        deadline = time.perf_counter() + self.wait
        while len(items) < self.batch_size:
            if not self._queue.empty():
                items.append(self._queue.get_nowait())
            elif len(items) >= self.taken:
                break  # no other request is being decoded
            else:
                with anyio.move_on_after(deadline - time.perf_counter()):
                    items.append(await self._queue.get())
                    continue
                break
        return items
