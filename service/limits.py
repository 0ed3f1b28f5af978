"""Limits of the service: sizes, times, number of requests and connections, and requests per minute of a client."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MEGABYTE = 1 << 20
CLIENTS_REMEMBERED = 10_000  # the least recent is dropped first, so memory does not grow with the number of clients


@dataclass(frozen=True)
class Limits:
    """Limits of every request.

    Args:
        max_body: size of a request's body, bytes.
        max_megapixels: size of an image, checked in its header before it is decoded.
        read_timeout: seconds for receiving a request's head, and again for its body.
        answer_timeout: seconds from the complete body to the answer; half of it is for decoding.
        queue: number of pending requests.
        bodies: memory for all bodies together, bytes.
        per_minute: requests of one client per minute; 0 for no limit.
        connections: open connections of one client.
        batch_size: images per batch.
        batch_wait: seconds that a batch waits for images that are being decoded.
    """

    max_body: int = 20 * MEGABYTE
    max_megapixels: float = 50.0
    read_timeout: float = 20.0
    answer_timeout: float = 30.0
    queue: int = 64
    bodies: int = 320 * MEGABYTE
    per_minute: int = 0
    connections: int = 128
    batch_size: int = 8
    batch_wait: float = 0.002


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


class Places:
    """The limit of pending requests, of all models together.

    Args:
        limit: maximum number of pending requests.
    """

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
    """Memory limit for the bodies of all requests together.

    Args:
        limit: bytes.
    """

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
