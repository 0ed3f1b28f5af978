"""Limits of the service: sizes, times, number of requests and connections, and requests per minute of a client."""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from utils.config import option

if sys.version_info >= (3, 11):
    deadline = asyncio.timeout
else:
    from contextlib import asynccontextmanager

    import anyio

    @asynccontextmanager
    async def deadline(seconds):
        """Raises TimeoutError when the block has taken longer."""
        with anyio.fail_after(seconds):
            yield


PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")  # of the extra `serve`
MEGABYTE = 1 << 20
MIN_BODIES = 320 * MEGABYTE
CLIENTS_REMEMBERED = 10_000  # the least recent is dropped first, so memory does not grow with the number of clients


@dataclass(frozen=True)
class Limits:
    """Limits of every request; the fields are options of serve.py."""

    batch_size: int | None = option(
        None, "maximum number of images per batch (default: 1 on a CPU, 8 on a GPU)", low=1, high=256
    )
    batch_wait: float = option(
        2.0, "milliseconds that a batch waits for images that are being decoded", low=0, high=1000
    )
    max_waiting: int = option(64, "maximum number of pending requests; further ones get 503", low=1, high=10_000)
    max_body: float = option(20.0, "maximum size of a request, megabytes", above=0, high=1024)
    max_megapixels: float = option(
        50.0, "maximum size of an image, megapixels; checked before decoding", above=0, high=1000
    )
    read_timeout: float = option(20.0, "maximum time to receive a request, seconds", above=0, high=3600)
    answer_timeout: float = option(30.0, "maximum time to answer a request, seconds", above=0, high=3600)
    per_minute: int = option(0, "requests per minute of one client; further ones get 429; 0 = no limit", low=0)
    connections: int = option(
        128, "maximum number of open connections of one client; further ones get 503", low=1, high=512
    )

    @property
    def body_bytes(self) -> int:
        return int(self.max_body * MEGABYTE)

    @property
    def bodies(self) -> int:
        """Memory for all bodies together, bytes; a form is held twice while it is parsed."""
        return max(MIN_BODIES, 4 * self.body_bytes)


class Refused(Exception):
    """A request that is answered with an error of the form `where: what; what to do`.

    Args:
        status: HTTP status.
        code: short, stable name of the error.
        message: the error in one line.
        retry_after: seconds until the client may try again; None if that does not help.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after
        super().__init__(message)


class PendingLimit:
    """The limit of pending requests, of all models together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def check(self) -> None:
        """Raises `Refused` if no place is free."""
        if self.taken >= self.limit:
            raise Refused(503, "queue_full", f"service: {self.limit} requests are waiting; try again", retry_after=1)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Reserve one place. Raises `Refused` if none is free."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class ByteBudget:
    """Memory limit for the bodies of all requests together, bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def account(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that reserves bytes until the end of the block; it raises `Refused` when none are left."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self.used + count > self.limit:
                raise Refused(503, "busy", "service: too many uploads at once; try again", retry_after=1)
            self.used += count
            taken += count

        try:
            yield take
        finally:
            self.used -= taken


class RateLimit:
    """A token bucket for each client: bursts up to a minute's worth, refilled at a constant rate.

    Args:
        per_minute: requests of one client; 0 for no limit.
        clock: returns the time in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: tokens, when they were counted

    def check(self, address: str) -> None:
        """Count a request of this client. Raises `Refused` above the limit."""
        if not self.per_minute:
            return
        client, now = client_of(address), self._clock()
        tokens, then = self._clients.pop(client, (float(self.per_minute), now))
        tokens = min(tokens + (now - then) * self.per_minute / 60, float(self.per_minute))
        self._clients[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._clients) > CLIENTS_REMEMBERED:
            self._clients.popitem(last=False)
        if tokens < 1:
            wait = int((1 - tokens) * 60 / self.per_minute) + 1
            what = f"client: more than {self.per_minute} requests per minute; wait {wait} s"
            raise Refused(429, "too_many_requests", what, retry_after=wait)


def client_of(address: str) -> str:
    """The client behind an address: all addresses of an IPv6 /64 network count as one client."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ip if ip.version == 4 else ipaddress.ip_network(f"{ip}/64", strict=False))
