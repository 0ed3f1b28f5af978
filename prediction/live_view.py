"""Show frames live: in an OpenCV window if available, else on a local web page."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

QUALITY = 80  # of the page's JPEGs, 0 to 100
BOUNDARY = b"frame"
PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>predict</title><style>body{margin:0;background:#222;color:#ddd;font:16px sans-serif;text-align:center}
img{max-width:100vw;max-height:100vh}</style><img src="/stream" alt="frames with detections"></html>"""


class Window:
    """An OpenCV window; closing it or pressing q or Escape stops the run."""

    name = "predict"

    def __init__(self) -> None:
        cv2.namedWindow(self.name, cv2.WINDOW_NORMAL)
        self.closed = False

    def show(self, image: np.ndarray) -> None:
        """Show an RGB image."""
        cv2.imshow(self.name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        self.closed = key in (ord("q"), 27) or cv2.getWindowProperty(self.name, cv2.WND_PROP_VISIBLE) < 1

    def close(self) -> None:
        cv2.destroyWindow(self.name)


class Page:
    """A web page at 127.0.0.1 that shows the newest frame; only this machine can open it.

    Args:
        port: 0 chooses a free port.

    Attributes:
        address: URL of the page.
    """

    def __init__(self, port: int = 0) -> None:
        self.closed = False
        self._news = threading.Condition()
        self._jpeg, self._number = b"", 0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, name="live view", daemon=True).start()

    def show(self, image: np.ndarray) -> None:
        """Show an RGB image."""
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        with self._news:
            self._jpeg, self._number = encoded.tobytes(), self._number + 1
            self._news.notify_all()

    def close(self) -> None:
        with self._news:
            self.closed = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _next(self, number: int) -> tuple[bytes, int] | None:
        """Wait for the frame after `number`; None after the end."""
        with self._news:
            self._news.wait_for(lambda: self._number > number or self.closed)
            return (self._jpeg, self._number) if self._number > number else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30

            def do_GET(self) -> None:
                if self.path == "/":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                    self.send_header("Content-Length", str(len(PAGE)))
                    self.end_headers()
                    self.wfile.write(PAGE)
                elif self.path == "/stream":
                    self._stream()
                else:
                    self.send_error(404)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                number = 0
                try:
                    while (news := page._next(number)) is not None:
                        jpeg, number = news
                        head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (BOUNDARY, len(jpeg))
                        self.wfile.write(head + jpeg + b"\r\n")
                except OSError:
                    return  # the browser has closed the page

            def log_message(self, format: str, *values: Any) -> None:
                """Log nothing, to keep the progress bar intact."""

        return Handler


def open_view() -> Window | Page:
    """A window if OpenCV and the system support it, else a web page."""
    try:
        return Window()
    except cv2.error:
        return Page()
