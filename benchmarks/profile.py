"""Where the time goes in a row of `benchmarks.table` whose goal is not met: `python -m benchmarks.profile service`.

CPU time of one thread, so that the parts can be compared on a shared machine.
"""

from __future__ import annotations

import cProfile
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.harness import cpu_in_turns
from benchmarks.service_load import Tally, cpu_by_thread, make_pictures, press
from imaging.image_io import decode_image, decode_image_and_size, read_header_bytes
from nets.detector import Detector
from nets.export.load import load_runtime
from nets.runtime import Runtime
from nets.weights.bundled import find_model
from utils.config import option, parse_options
from utils.cpus import set_num_threads
from utils.errors import UserError, run_command

Parts = Iterator[tuple[str, float]]
PACKAGES = ("h11", "httptools", "uvicorn", "starlette", "fastapi", "pydantic", "anyio", "asyncio", "json", "service")


@dataclass(frozen=True)
class ProfileOptions:
    row: str = option("", "row to profile: decode, eval, service or torch", positional=True, metavar="ROW")
    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    data: str | None = option(None, "data set of the row `eval`", metavar="PATH")
    repetitions: int = option(20, "repetitions of each measurement", low=1, high=10_000)


def service_parts(options: ProfileOptions, runtime: Runtime) -> Parts:
    """One request: the network alone, the threads of the service, packages in its HTTP thread, and the decoder."""
    from service.app import build_app  # imported here: the other rows need no FastAPI
    from service.limits import Limits
    from service.server import Server

    number, pictures = 10 * options.repetitions, make_pictures(16, 375, 500)
    limits = Limits(batch_size=1)
    profiler = cProfile.Profile(time.thread_time)
    for profiled in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = Server(build_app(Detector(runtime), limits), limits)
            run = partial(server.run, sockets=[listener])
            thread = threading.Thread(target=partial(profiler.runcall, run) if profiled else run)
            thread.start()
            try:
                asked = partial(press, listener.getsockname()[1], pictures, 1, tally=Tally(), seconds=600)
                asked(number=20)
                before = _cpu_of_children(), cpu_by_thread(os.getpid())
                asked(number=number)
                after = _cpu_of_children(), cpu_by_thread(os.getpid())
            finally:
                server.should_exit = True
                thread.join(60)
        if not profiled:
            used = {thread: cpu - before[1].get(thread, 0.0) for thread, cpu in after[1].items()}
            http = used.pop(thread.native_id or 0)
            yield "HTTP thread", http / number
            yield "decoder process", (after[0] - before[0]) / number
    own: dict[str, float] = defaultdict(float)
    for entry in profiler.getstats():
        own[_package(entry.code)] += entry.inlinetime
    for name, seconds in sorted(own.items(), key=lambda each: -each[1]):
        yield f"HTTP thread, {name} (by cProfile)", http / number * seconds / sum(own.values())
