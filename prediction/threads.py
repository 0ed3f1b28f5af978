"""Work beside work, in order: decoding, the network and encoding each in their own thread."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

QUEUE_SIZE = 8  # decoded or drawn frames that wait at most; a frame of 1080p has 6 MB

_END: Any = object()


def prefetch(items: Iterable[T], size: int = QUEUE_SIZE) -> Generator[T, None, None]:
    """The same items in the same order, made in a thread that stays up to `size` ahead of who uses them."""
    waiting: queue.Queue[Any] = queue.Queue(maxsize=size)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

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
        stop.set()
        thread.join()


def parallel_map(
    function: Callable[[T], R], items: Iterable[T], ahead: int, workers: int = 4
) -> Generator[R, None, None]:
    """`map` in threads: the same order, at most `ahead` items begun before they are asked for."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="parallel map") as pool:
        begun = deque(pool.submit(function, item) for item in itertools.islice(iterator, ahead))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(pool.submit(function, item) for item in itertools.islice(iterator, 1))
                yield result
        finally:
            for future in begun:
                future.cancel()


class Background(Generic[T]):
    """Hands items to `work` in a thread, in order; at most `size` wait.

    An error in `work` is raised at the next `put` or at `close`; what waits behind it is dropped.
    """

    def __init__(self, work: Callable[[T], None], size: int = QUEUE_SIZE) -> None:
        self._work = work
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=size)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        self._check()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until all is done."""
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
