"""Thread and process pools that stop at once after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import TypeVar

Pool = TypeVar("Pool", bound=Executor)


@contextlib.contextmanager
def stopping_at_once(pool: Pool) -> Iterator[Pool]:
    """Context of a pool. After an error or Ctrl-C, tasks that have not started are dropped without waiting."""
    try:
        yield pool
    except BaseException:
        workers = list((pool._processes or {}).values()) if isinstance(pool, ProcessPoolExecutor) else []
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    pool.shutdown()
