"""A service on a free port of 127.0.0.1, and a detector that finds coloured rectangles, for the tests of serve.py."""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest

from imaging.detections import Detections
from nets.model_config import ModelConfig
from service.limits import Limits
from utils.thresholds import Thresholds

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[serve]'")
pytest.importorskip("httptools", reason="httptools is not installed: pip install -e '.[serve]'")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: pip install -e '.[serve]'")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: pip install -e '.[serve]'")

RED, GREEN, BLUE = (230, 20, 20), (20, 200, 20), (20, 20, 230)
SCORES = (0.9, 0.6, 0.2)


class Painted:
    """Finds one red, one green and one blue rectangle, with scores 0.9, 0.6 and 0.2.

    Attributes:
        batches: number of images of each call.
        gate: a call waits until it is set.
    """

    def __init__(self) -> None:
        self.config = ModelConfig(class_names=("red", "green", "blue"), input_size=(96, 96), score_threshold=0.4)
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
        self.batches.append(len(images))
        assert self.gate.wait(300)
        if self.broken:
            raise RuntimeError("out of memory")
        assert all(image.shape == (*self.config.input_size, 3) for image in images), (
            "the batch holds inputs, not pictures"
        )
        return [self._detect(image, thresholds.score_threshold) for image in images]

    def _detect(self, image: np.ndarray, threshold: float) -> Detections:
        rows = []
        for label, colour in enumerate((RED, GREEN, BLUE)):
            ys, xs = np.nonzero(np.abs(image.astype(int) - colour).sum(axis=-1) < 120)
            if len(xs) and SCORES[label] >= threshold:
                rows.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, SCORES[label], label))
        table = np.array(rows, dtype=float).reshape(-1, 6)
        return Detections(table[:, :4], table[:, 4], table[:, 5])


def other_painted() -> Painted:
    """The same with other class names, another input size and a higher threshold."""
    detector = Painted()
    detector.config = detector.config.replace(
        class_names=("rot", "gruen", "blau", "gelb"), input_size=(64, 128), score_threshold=0.7
    )
    return detector


def scene(width: int = 192, height: int = 192) -> np.ndarray:
    """Three rectangles: red at (10 %, 10 %, 40 %, 30 %), green and blue below."""
    image = np.full((height, width, 3), 110, np.uint8)
    for number, colour in enumerate((RED, GREEN, BLUE)):
        top = int(height * (0.1 + 0.3 * number))
        image[top : top + int(height * 0.2), int(width * 0.1) : int(width * 0.4)] = colour
    return image


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Address:
    """Host and port of a service."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            lowered = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, lowered, reply.read())
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; 0 if it does not exist yet."""
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


@contextmanager
def running(app: Any, limits: Limits | None = None, port: int = 0, **changes: Any) -> Iterator[Address]:
    """The app behind the real server, in a thread."""
    import socket

    from service.server import Server

    with socket.create_server(("127.0.0.1", port)) as listener:
        server = Server(app, dataclasses.replace(limits or Limits(), **changes))
        server.config.timeout_graceful_shutdown = 2
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Address(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)


def until(condition: Any, seconds: float = 600.0) -> None:
    """Wait for a condition that another thread or process fulfils."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
