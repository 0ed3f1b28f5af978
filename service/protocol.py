"""HTTP connections with limits: deadlines for slow clients, maximum sizes of heads, errors as JSON.

Uvicorn only limits the pause between two requests. A connection that never completes its first line, or never reads its
answer, stays open indefinitely (the "slowloris" attack). The deadline of bodies is in `service.body`.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.limits import client_of

MAX_CONNECTIONS = 512  # under the usual limit of 1024 open files of a process
MAX_LINGERING = 128  # refused connections whose client has not read the answer yet
LINGER_SECONDS = 1.0
HEAD_BYTES = 16 << 10


class _Connection(h11.Connection):
    """h11's parser with a limit for every head; h11 itself limits only incomplete heads.

    Attributes:
        problem_status: HTTP status of the last rejected request.
    """

    problem_status = 400

    def next_event(self) -> Any:
        try:
            return self._next_event()
        except h11.RemoteProtocolError as error:
            self.problem_status = error.error_status_hint
            raise

    def _next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            length = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
            if length > HEAD_BYTES:
                raise h11.RemoteProtocolError("head too long", error_status_hint=431)
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:  # request smuggling: RFC 9112, section 6.1
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        return event


def problem_bytes(status: int, code: str, error: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A complete HTTP/1.1 error response that closes the connection."""
    body = json.dumps({"code": code, "error": error}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    lines = [name + b": " + value for name, value in (*fields, (b"connection", b"close"))]
    return b"\r\n".join([f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}".encode(), *lines, b"", body])


def limited_protocol(
    read_timeout: float,
    write_timeout: float,
    per_client: int | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> type[H11Protocol]:
    """Build the protocol class for `uvicorn.Config(http=...)`.

    Args:
        read_timeout: seconds from a connection's (or a later request's) first byte to its complete head.
        write_timeout: seconds within which a client must read its answer.
        per_client: maximum connections of one address; None for no limit (a proxy has a single address).
        headers: headers of the error responses.
    """
    headers = tuple(headers)
    lingering: set[asyncio.Protocol] = set()

    class LimitedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None
        _address = ""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.conn = _Connection(h11.SERVER, HEAD_BYTES)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._address = client_of(self.client[0]) if self.client else ""
            if len(self.connections) > MAX_CONNECTIONS:
                self._refuse(503, "too_many_connections", "service: too many connections; try again", retry=True)
            elif per_client is not None and self._count() > per_client:
                what = f"client: more than {per_client} connections at once; close some"
                self._refuse(503, "too_many_connections", what, retry=True)
            else:
                self._start_reading()

        def _count(self) -> int:
            return sum(getattr(each, "_address", None) == self._address for each in self.connections)

        def data_received(self, data: bytes) -> None:
            if self in lingering:
                return
            self._start_reading()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_reading()  # the head is complete

        def send_400_response(self, msg: str) -> None:
            """Answer an invalid HTTP request with a JSON error."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                if self.cycle.response_started:
                    self.transport.abort()
                    return
            status = getattr(self.conn, "problem_status", 400)
            if status == 431:
                what = f"request: its head is longer than {HEAD_BYTES} bytes; send fewer or shorter headers"
                self._refuse(status, "head_too_big", what)
            else:
                self._refuse(status, "bad_request", "request: not valid HTTP/1.1; see RFC 9112")

        def _refuse(self, status: int, code: str, error: str, retry: bool = False) -> None:
            """Answer and close. Further input is discarded: a reset could prevent the client from reading it."""
            self._stop_reading()
            self.connections.discard(self)
            if len(lingering) >= MAX_LINGERING:
                self.transport.abort()
                return
            lingering.add(self)
            extra = [(b"retry-after", b"1")] if retry else []
            self.transport.write(problem_bytes(status, code, error, (*extra, *headers)))
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

        def _start_reading(self) -> None:
            if self._reading is None:
                self._reading = self.loop.call_later(read_timeout, self.transport.abort)

        def _stop_reading(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def on_response_complete(self) -> None:
            self._stop_reading()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(write_timeout, self.transport.abort)  # an unread answer would keep the connection open

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_reading()
            lingering.discard(self)
            super().connection_lost(exc)
            if self._writing is not None:
                self._writing.cancel()

    return LimitedProtocol
