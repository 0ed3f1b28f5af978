"""HTTP connections with deadlines: who sends a request head, or takes an answer, byte by byte is shown the door.

Uvicorn times the pause between two requests, and nothing else: a connection that never finishes its first line, or
never reads, stays for ever (the "slowloris" attack). Bodies have their deadline in `service.body`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # under the usual 1024 open files of a process
HEAD_BYTES = 16 << 10


def deadline_protocol(read_timeout: float, write_timeout: float) -> type[H11Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`.

    Args:
        read_timeout: seconds from a connection's (or a later request's) first sign to its complete head.
        write_timeout: seconds for which a client may leave its answer unread.
    """

    class DeadlineProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()
                return
            self._start_reading()

        def data_received(self, data: bytes) -> None:
            self._start_reading()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_reading()  # the head is complete

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
            self.loop.call_later(write_timeout, self.transport.abort)  # an answer still unread would keep it open

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_reading()
            super().connection_lost(exc)
            if self._writing is not None:
                self._writing.cancel()

    return DeadlineProtocol


def server_settings(read_timeout: float, write_timeout: float) -> dict[str, Any]:
    """What `uvicorn.Config` is given besides the app."""
    return {
        "http": deadline_protocol(read_timeout, write_timeout),
        "ws": "none",
        "loop": "asyncio",
        "lifespan": "on",
        "h11_max_incomplete_event_size": HEAD_BYTES,
        "timeout_keep_alive": 5,
        "server_header": False,
        "log_level": "warning",
    }
