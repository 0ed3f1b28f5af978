"""HTTP connections with limits: deadlines for slow clients, maximum sizes of heads, errors as JSON.

Uvicorn only limits the pause between two requests. A connection that never completes its first line, or never reads its
answer, stays open indefinitely (the "slowloris" attack). The deadline of bodies is in `service.body`.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Iterable, Sequence

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.limits import client_of

MAX_CONNECTIONS = 512  # under the usual limit of 1024 open files of a process
MAX_LINGERING = 128  # refused connections whose client has not read the answer yet
LINGER_SECONDS = 1.0
HEAD_BYTES = 16 << 10
MAX_PIPELINED = 16  # requests of a connection that wait for the answer to an earlier one


class _Problem(Exception):
    """Why a connection is refused.

    Args:
        status: HTTP status.
        code: short, stable name of the error.
        message: the error in one line.
    """

    def __init__(
        self, status: int = 400, code: str = "bad_request", message: str = "request: not valid HTTP/1.1; see RFC 9112"
    ) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


def _head_too_big() -> _Problem:
    what = f"request: its head is longer than {HEAD_BYTES} bytes; send fewer or shorter headers"
    return _Problem(431, "head_too_big", what)


def _check_head(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises _Problem for a head that the parser accepts, but that a proxy may understand differently."""
    names = [name for name, _ in headers]
    encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    hosts = names.count(b"host")
    is_valid = version in ("1.0", "1.1") and method != b"CONNECT"
    is_valid = is_valid and (hosts == 1 or (hosts == 0 and version == "1.0"))
    if encodings:  # request smuggling: RFC 9112, section 6.1
        is_valid = is_valid and encodings == [b"chunked"] and b"content-length" not in names
    if not is_valid:
        raise _Problem


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
) -> type[HttpToolsProtocol]:
    """Build the protocol class for `uvicorn.Config(http=...)`.

    Args:
        read_timeout: seconds from a connection's (or a later request's) first byte to its complete head.
        write_timeout: seconds within which a client must read its answer.
        per_client: maximum connections of one address; None for no limit (a proxy has a single address).
        headers: headers of the error responses.
    """
    headers = tuple(headers)
    lingering: set[asyncio.Protocol] = set()

    class LimitedProtocol(HttpToolsProtocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None
        _address = ""
        _in_head = False
        _head_bytes = 0  # of the current request: its first line, its headers, and those behind a chunked body
        _unread = 0  # bytes in which no head ended and no body was found; the parser may hold them all
        _refusal: _Problem | None = None  # sent after the answers to earlier requests

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
            if self in lingering or self._refusal is not None:
                return
            self._unset_keepalive_if_required()
            self._start_reading()
            self._unread += len(data)
            try:
                self._parse(data)
                if self._unread > HEAD_BYTES:
                    raise _head_too_big()
            except httptools.HttpParserError as error:  # also of an exception in a callback
                self._reject(error.__context__ if isinstance(error.__context__, _Problem) else _Problem())
                return
            except _Problem as problem:
                self._reject(problem)
                return
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_reading()  # the head is complete

        def _parse(self, data: bytes) -> None:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    # Java's client and `curl --http2` offer HTTP/2. The parser reads no body after such a head, so it
                    # gets the request again without the offer.
                    version = self.parser.get_http_version()
                    lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version.encode())]
                    lines += [b"%s: %s" % each for each in self.headers if each[0] not in (b"upgrade", b"connection")]
                    if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
                        lines.append(b"connection: close")
                    data = b"\r\n".join([*lines, b"", data[upgrade.args[0] :]])
                    self._new_parser()

        def _new_parser(self) -> None:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # uvicorn ignores such data

        def _should_upgrade(self) -> bool:
            return True  # uvicorn then leaves the request to `_parse`

        # callbacks of the parser

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count_head(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count_head(len(name) + len(value) + 4)
            if self._in_head:  # headers behind a chunked body are ignored
                super().on_header(name, value)

        def _count_head(self, count: int) -> None:
            self._head_bytes += count
            if self._head_bytes > HEAD_BYTES:
                raise _head_too_big()

        def on_headers_complete(self) -> None:
            self._in_head, self._unread = False, 0
            _check_head(self.parser.get_http_version(), self.parser.get_method(), self.headers)
            if len(self.pipeline) >= MAX_PIPELINED:
                what = f"connection: more than {MAX_PIPELINED} requests wait for an answer; send the next one after it"
                raise _Problem(503, "too_many_requests", what)
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._unread = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._unread = 0
            super().on_message_complete()

        # answers

        def _reject(self, problem: _Problem) -> None:
            """Refuse invalid data, after the answers to the valid requests before it."""
            cycle = self.cycle
            if cycle is not None and cycle.more_body and not cycle.response_complete:  # the request's body is invalid
                if any(each is cycle for each, _ in self.pipeline):
                    self.pipeline.popleft()
                    self._refusal = problem
                    return
                cycle.disconnected = True
                cycle.message_event.set()
                if cycle.response_started:
                    self.transport.abort()
                    return
            elif cycle is not None and not cycle.response_complete:
                self._refusal = problem
                return
            self._refuse(problem.status, problem.code, problem.message)

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
            is_last = not self.pipeline
            super().on_response_complete()
            if self._refusal is not None and is_last and not self.transport.is_closing():
                self._refuse(self._refusal.status, self._refusal.code, self._refusal.message)

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
