"""Decode images in processes that are killed if they take too long, so that no image can block the service."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import mmap
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from imaging.letterbox import Letterbox
from service.decode_process import LENGTHS, frame
from service.limits import Limits, Refused, deadline
from service.metrics import Metrics

REPOSITORY = Path(__file__).resolve().parent.parent
DECODERS = max(2, min(4, os.cpu_count() or 1))
BIG_MEGAPIXELS = 12.0  # images decoded to a larger size are decoded one at a time, which bounds memory
SLOW_SECONDS = 5.0  # a decoder that works longer on one image counts as stuck
START_SECONDS = 60.0
CLOSE_SECONDS = 1.0
READ_BYTES = 4 << 20  # buffer size for an answer
SHARED_BYTES = 4 << 20  # memory shared with a decoder; a larger network input is sent through the pipe
BASE_MEMORY = 400 << 20  # address space of a decoder besides bodies and pixels, bytes
BODY_COPIES = 6  # copies of a body while it is received and decoded
PIXEL_MEMORY = 16  # maximum bytes per pixel that any format needs while it is decoded
IMAGE_STATUS = {"image_too_big": 413, "not_an_image": 415}  # HTTP status of ImageError codes; others are 422


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A decoded image, resized to the network's input.

    Args:
        image: (input height, input width, 3) uint8 RGB.
        size: (height, width) of the upright image.
        seconds: time for decoding and resizing.
    """

    image: np.ndarray
    size: tuple[int, int]
    seconds: float


class Decoders:
    """A pool of decoder processes, started on demand.

    Args:
        limits: maximum bytes and megapixels of an image; its process is killed after half of `answer_timeout`.
        metrics: counts busy, stuck and killed decoders.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._timeout, self._metrics = limits.answer_timeout / 2, metrics
        self._task = {"max_megapixels": limits.max_megapixels, "seconds": self._timeout}
        self._memory = BASE_MEMORY + BODY_COPIES * limits.body_bytes + int(PIXEL_MEMORY * limits.max_megapixels * 1e6)
        self._one_big = asyncio.Lock()
        self._idle: asyncio.Queue[_Process | Refused] = asyncio.Queue()
        self._all: set[_Process] = set()
        self._starting: set[_Process] = set()
        self._num_waiting = self._num_starting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.decoders_busy.set_function(lambda: self.busy)
        metrics.decoders_stuck.set_function(lambda: self.stuck)

    @property
    def busy(self) -> int:
        """Number of processes that are decoding, or were killed and have not exited yet."""
        return sum(process.since is not None for process in self._all)

    @property
    def stuck(self) -> int:
        """Number of processes that have worked on one image for more than `SLOW_SECONDS`."""
        limit = time.monotonic() - SLOW_SECONDS
        return sum(process.since is not None and process.since < limit for process in self._all)

    async def start(self) -> None:
        """Start the first process, so that the first image does not wait for it."""
        self._idle.put_nowait(await self._take())

    def kill(self) -> None:
        """Kill all processes, from any thread."""
        for process in [*self._all, *self._starting]:
            process.kill()

    async def close(self) -> None:
        """Kill all processes and wait briefly for them to exit."""
        for task in self._tasks:
            task.cancel()
        self.kill()
        with anyio.move_on_after(CLOSE_SECONDS):
            await asyncio.gather(*self._tasks, *(process.ended() for process in self._all), return_exceptions=True)

    async def decode(self, data: bytes, where: str, letterbox: Letterbox) -> Decoded:
        """Decode one image.

        Args:
            data: the file's content.
            where: name of the image in errors.
            letterbox: resizes the image to the network's input.

        Raises:
            Refused: 413, 415 or 422 if the image is invalid or too large, 503 if no process can be started.
        """
        task = {**self._task, "where": where, "letterbox": vars(letterbox)}
        found = await self._decode(data, task, BIG_MEGAPIXELS * 1e6, None)
        if found is None:
            await self._one_big.acquire()
            found = await self._decode(data, task, float("inf"), self._one_big)
            assert found is not None
        return found

    async def _decode(
        self, data: bytes, task: dict[str, Any], most_pixels: float, held: asyncio.Lock | None
    ) -> Decoded | None:
        """Decode an image; None if decoded to more than `most_pixels`. `held` is released when decoding has ended."""
        process, where = None, task["where"]
        is_whole = False
        try:
            process = await self._take()
            process.since = time.monotonic()
            async with deadline(self._timeout):
                head, pixels = await process.ask({**task, "most_pixels": most_pixels}, data)
            is_whole = True
        except TimeoutError:
            what = f"{where}: decoding takes more than {self._timeout:g} s; save it as a plain JPEG or PNG"
            raise Refused(422, "decode_too_slow", what) from None
        except (OSError, EOFError, ValueError):
            what = f"{where}: its decoder failed; save it as a plain JPEG or PNG"
            raise Refused(422, "corrupt_image", what) from None
        finally:
            if process is not None and not is_whole:  # also if the request was cancelled at its deadline
                self._in_background(self._end(process, held))
            else:
                if process is not None:
                    process.since = None
                    self._idle.put_nowait(process)
                if held is not None:
                    held.release()
        if "code" in head:
            raise Refused(IMAGE_STATUS.get(head["code"], 422), head["code"], head["error"])
        if "is_big" in head:
            return None
        return Decoded(pixels, tuple(head["size"]), head["seconds"])

    async def _take(self) -> _Process:
        """Wait for an idle process, or for a newly started one."""
        self._num_waiting += 1
        try:
            while True:
                self._start_enough()
                process = await self._idle.get()
                if isinstance(process, Refused):
                    raise process
                if process.is_alive:
                    return process
                self._all.discard(process)  # killed by another program while it was idle
        finally:
            self._num_waiting -= 1

    def _start_enough(self) -> None:
        while (
            self._num_waiting > self._idle.qsize() + self._num_starting
            and len(self._all) + self._num_starting < DECODERS
        ):
            self._num_starting += 1
            self._in_background(self._start_one())

    async def _start_one(self) -> None:
        process = None
        try:
            process = await _Process.start(self._memory)
            self._starting.add(process)
            async with deadline(START_SECONDS):
                await process.ready()
            self._all.add(process)
            self._idle.put_nowait(process)
        except (OSError, EOFError, TimeoutError) as error:
            what = f"service: cannot start a decoder ({error or type(error).__name__}); try again later"
            self._idle.put_nowait(Refused(503, "no_decoder", what, retry_after=5))
        finally:
            self._num_starting -= 1
            if process is not None:
                self._starting.discard(process)
                if process not in self._all:
                    process.kill()
                    await process.ended()

    async def _end(self, process: _Process, held: asyncio.Lock | None) -> None:
        """Kill a process and free its place after it has exited, because it uses memory until then."""
        self._metrics.decoders_killed.inc()
        process.kill()
        await process.ended()
        self._all.discard(process)
        if held is not None:
            held.release()
        self._start_enough()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.contextmanager
def _shared_memory() -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Memory for the images of one decoder, (N,) uint8, and its file descriptor; empty if the system is not Linux.

    A decoder can write any values into it at any time, but cannot shrink it, which would crash the service.
    """
    try:
        import fcntl  # not on Windows

        descriptor = os.memfd_create("network input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (ImportError, AttributeError, OSError):
        yield np.empty(0, np.uint8), ()
        return
    try:
        os.ftruncate(descriptor, SHARED_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield np.frombuffer(mmap.mmap(descriptor, 0), np.uint8), (descriptor,)
    finally:
        os.close(descriptor)


class _Process:
    """One decoder process.

    Attributes:
        since: start time of the current image (time.monotonic); None when idle.
    """

    def __init__(self, process: asyncio.subprocess.Process, shared: np.ndarray) -> None:
        self._process, self._shared = process, shared
        self.since: float | None = None

    @classmethod
    async def start(cls, memory: int) -> _Process:
        command = [sys.executable, "-m", "service.decode_process", str(memory)]
        pipe, environment = asyncio.subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
        options: dict[str, Any] = {"cwd": REPOSITORY, "env": environment, "limit": READ_BYTES}
        with _shared_memory() as (shared, descriptors):
            command += map(str, descriptors)
            if descriptors:
                options["pass_fds"] = descriptors
            return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, **options), shared)

    async def ready(self) -> None:
        """Wait until the process is ready to decode."""
        await self._receive()

    async def ask(self, head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Send an image and wait for the answer: the JSON object, and the network's input if it was decoded."""
        sink = self._process.stdin
        assert sink is not None
        sink.writelines(frame(head, data))
        await sink.drain()
        answer, sent = await self._receive()
        if "size" not in answer:
            return answer, self._shared[:0]
        shape = (*head["letterbox"]["input_size"], 3)
        pixels = np.frombuffer(sent, np.uint8) if sent else self._shared[: math.prod(shape)].copy()
        return answer, pixels.reshape(shape)

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        source = self._process.stdout
        assert source is not None
        head_length, data_length = LENGTHS.unpack(await source.readexactly(LENGTHS.size))
        answer = await source.readexactly(head_length + data_length)
        return json.loads(answer[:head_length]), answer[head_length:]

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    def kill(self) -> None:
        """Kill the process by its id, from any thread, unless it has exited."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    async def ended(self) -> None:
        """Wait until the process has exited."""
        await self._process.wait()
