"""Thread pipelines: order of results, and propagation of errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from imaging.pipeline import Background, parallel_map, prefetch


def test_prefetched_items_keep_their_order_and_are_never_far_ahead() -> None:
    made = []

    def produce() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    used = []
    for item in prefetch(produce(), size=4):
        used.append(item)
        assert len(made) <= len(used) + 6
    assert used == list(range(50))


def test_an_error_while_prefetching_comes_after_what_was_made_before_it() -> None:
    def produce() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("broken")

    items = prefetch(produce())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_leaving_a_prefetch_early_ends_its_thread() -> None:
    before = threading.active_count()
    items = prefetch(iter(range(10**9)), size=2)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_parallel_map_keeps_order_and_does_not_run_ahead() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.001 * (number % 3))
        return number * number

    results = []
    for result in parallel_map(work, range(40), ahead=5):
        results.append(result)
        assert len(begun) <= len(results) + 5
    assert results == [number * number for number in range(40)]


def test_the_queue_is_limited_by_bytes_and_accepts_at_least_one_item() -> None:
    alive, most = 0, 0
    lock = threading.Lock()

    def make(number: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return number

    used = []
    for number in parallel_map(make, range(30), ahead=8, cost=lambda number: 40, max_bytes=100):
        used.append(number)
        with lock:
            alive -= 1
    assert used == list(range(30)) and most <= 4  # two that wait, one in use, one just begun
    assert list(parallel_map(make, range(3), ahead=8, cost=lambda number: 10**9, max_bytes=1)) == [0, 1, 2]

    made: list[int] = []
    arrays = (np.zeros(40, np.uint8) for _ in map(made.append, range(30)))
    for count, array in enumerate(prefetch(arrays, max_bytes=100), start=1):
        time.sleep(0.005)
        assert array.nbytes == 40 and len(made) <= count + 4
    assert len(made) == 30

    done: list[int] = []
    with Background(lambda item: done.append(len(item)), max_bytes=10) as background:
        for _ in range(5):
            background.put(np.zeros(1000, np.uint8))
    assert done == [1000] * 5


def test_background_work_is_done_in_order_and_its_error_comes_back() -> None:
    done: list[int] = []
    with Background(done.append, size=2) as background:
        for number in range(20):
            background.put(number)
    assert done == list(range(20))

    def fail(number: int) -> None:
        if number == 3:
            raise OSError("disk full")
        done.append(number)

    done.clear()
    background = Background(fail, size=2)
    with pytest.raises(OSError, match="disk full"):
        for number in range(100):
            background.put(number)
        background.close()
    assert done == [0, 1, 2]
