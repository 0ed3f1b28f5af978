"""Ordered pipelines of threads: decoding, the network and encoding each run in their own thread.

The queues between them are bounded in items and bytes: an image of 12 megapixels takes 36 MB.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

QUEUE_SIZE = 8  # maximum number of waiting decoded or drawn frames
QUEUE_BYTES = 64 << 20  # maximum size of the waiting items of a queue; a single item may be larger

_END: Any = object()


def array_bytes(item: Any) -> int:
    """Bytes of the arrays in an item: an array, something that holds an `image`, or a tuple or list of items."""
    if isinstance(item, (tuple, list)):
        return sum(array_bytes(part) for part in item)
    image = getattr(item, "__dict__", {}).get("image")  # only a stored attribute, not a computed one
    return int(getattr(item, "nbytes", 0) or getattr(image, "nbytes", 0) or 0)


class _Queue:
    """A queue between two threads, bounded by number and bytes."""

    def __init__(self, size: int, max_bytes: int, cost: Callable[[Any], int]) -> None:
        self._size, self._max_bytes, self._cost = size, max_bytes, cost
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Any) -> bool:
        """Wait for space and append. Returns False if the queue is closed."""
        cost = 0 if item is _END else self._cost(item)
        with self._changed:
            while not self._closed and self._items and self._is_full(cost):
                self._changed.wait()
            if not self._closed:
                self._items.append((item, cost))
                self._bytes += cost
                self._changed.notify_all()
            return not self._closed

    def get(self) -> Any:
        with self._changed:
            while not self._items:
                self._changed.wait(0.5)  # Ctrl-C does not interrupt a wait without timeout on every system
            item, cost = self._items.popleft()
            self._bytes -= cost
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Release the threads that wait in `put`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_full(self, cost: int) -> bool:
        return len(self._items) >= self._size or self._bytes + cost > self._max_bytes


def prefetch(
    items: Iterable[T], size: int = QUEUE_SIZE, max_bytes: int = QUEUE_BYTES, cost: Callable[[Any], int] = array_bytes
) -> Generator[T, None, None]:
    """The same items in the same order, produced in a thread that is up to `size` items ahead of the consumer.

    `max_bytes` bounds the total `cost` of the waiting items.
    """
    waiting = _Queue(size, max_bytes, lambda pair: cost(pair[0]))

    def produce() -> None:
        try:
            for item in items:
                if not waiting.put((item, None)):
                    return
            waiting.put((_END, None))
        except BaseException as error:
            waiting.put((_END, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        waiting.close()
        thread.join()


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    ahead: int,
    workers: int = 4,
    cost: Callable[[T], int] | None = None,
    max_bytes: int = QUEUE_BYTES,
) -> Generator[R, None, None]:
    """`map` in threads, in the same order; at most `ahead` items are started before they are requested.

    `cost` estimates the size of an item's result in bytes. `max_bytes` limits the sum over the started items; one item
    is always started.
    """
    iterator = iter(items)
    begun: deque[tuple[Any, int]] = deque()
    held: deque[tuple[T, int]] = deque()  # the next item, if it is too large to start now

    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="parallel map") as pool:

        def begin() -> None:
            while len(begun) < ahead:
                if not held:
                    held.extend((item, cost(item) if cost else 0) for item in itertools.islice(iterator, 1))
                if not held or (begun and sum(each for _, each in begun) + held[0][1] > max_bytes):
                    return
                item, bytes_ = held.popleft()
                begun.append((pool.submit(function, item), bytes_))

        try:
            begin()
            while begun:
                result = begun.popleft()[0].result()
                begin()
                yield result
        finally:
            for future, _ in begun:
                future.cancel()


class Background(Generic[T]):
    """Calls `work` with items in a thread, in order; at most `size` items wait, and at most `max_bytes` by `cost`.

    An error in `work` is raised at the next `put` or at `close`; the items after it are dropped.
    """

    def __init__(
        self,
        work: Callable[[T], None],
        size: int = QUEUE_SIZE,
        max_bytes: int = QUEUE_BYTES,
        cost: Callable[[Any], int] = array_bytes,
    ) -> None:
        self._work = work
        self._waiting = _Queue(size, max_bytes, cost)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        self._check()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until all items are processed."""
        if self._thread.is_alive():
            self._waiting.put(_END)
            self._thread.join()
        self._check()

    def __enter__(self) -> Background[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        failed = False
        while (item := self._waiting.get()) is not _END:
            if failed:
                continue
            try:
                self._work(item)
            except BaseException as error:
                self._error, failed = error, True
