"""The server process: uvicorn with limits and a bounded shutdown time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from service.app import HEADERS
from service.drain import ANSWER_SECONDS, CLOSE_SECONDS, EXIT_SECONDS
from service.limits import Limits
from service.protocol import limited_protocol


class Server(uvicorn.Server):
    """Serves an application of `service.app.build_app`.

    Args:
        app: the application.
        limits: its limits.
        behind_proxy: read client addresses from X-Forwarded-For of a proxy on this machine.
    """

    def __init__(self, app: Any, limits: Limits, behind_proxy: bool = False) -> None:
        per_client = None if behind_proxy else limits.connections
        protocol = limited_protocol(limits.read_timeout, limits.answer_timeout, per_client, HEADERS)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            loop="auto",  # uvloop where it is installed: 0.3 ms of CPU less for a request (docs/SPEED.md)
            lifespan="on",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=int(EXIT_SECONDS),
            server_header=False,
            proxy_headers=behind_proxy,
            log_level="error",
            access_log=False,
        )
        super().__init__(config)
        self._drain = app.state.drain
        self._release: Callable[[], None] = app.state.models.decoders.kill
        self._signal: int | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal stops the process."""
        try:
            super().run(sockets)
        finally:
            if self._signal is not None:
                self._leave()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown; a separate thread ends the process if the shutdown hangs."""
        if self._signal is None:
            self._signal = sig
            watchdog = threading.Timer(EXIT_SECONDS, self._leave)
            watchdog.daemon = True
            watchdog.start()
        super().handle_exit(sig, frame)

    def _leave(self) -> None:
        """Exit at once: a normal exit of Python waits for the network's thread, and takes seconds to free PyTorch."""
        assert self._signal is not None
        self._release()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"interrupted by {signal.Signals(self._signal).name}\n".encode())
        os._exit(128 + self._signal)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let pending requests finish for some seconds, answer the others with 503, and close all connections."""
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(ANSWER_SECONDS, self._drain.refuse_all),
            loop.call_later(CLOSE_SECONDS, self._close_connections),
        ]
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
