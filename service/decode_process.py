"""Decode images in a separate process that the service can kill: images from stdin, network inputs to stdout.

    python -m service.decode_process MEMORY [DESCRIPTOR]
        MEMORY      memory limit for decoding, bytes
        DESCRIPTOR  file descriptor of memory that is shared with the service

A frame is two lengths (8 bytes), a JSON object and raw bytes. The parent sends the image; the answer contains the
network's input, unless that fits into the shared memory. Neither side unpickles anything, because a malicious image may
have compromised the decoder, which runs in a sandbox (`service.sandbox`).
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imaging.image_io import ImageError, decode_image_and_size, decoded_bytes, read_header_bytes
from imaging.letterbox import Letterbox
from service.sandbox import confine, cpu_time
from utils.allocator import keep_freed_memory

LENGTHS = struct.Struct("<II")
PIPE_BYTES = 1 << 20
REPOSITORY = Path(__file__).resolve().parent.parent
NO_MEMORY = np.empty(0, np.uint8)
OWN_MODULES = (REPOSITORY / "imaging", REPOSITORY / "utils")  # some are imported when a format needs them


def frame(head: dict[str, Any], data: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The parts of one message."""
    text = json.dumps(head).encode()
    return [LENGTHS.pack(len(text), len(data)) + text, data]


def main() -> None:
    """Decode until stdin is closed, which happens when the service exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all processes of a terminal; the parent handles it
    cv2.setNumThreads(1)
    keep_freed_memory(only_small=True)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output of libraries must not appear between two frames
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(sink.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    shared = _map(int(sys.argv[2])) if len(sys.argv) > 2 else NO_MEMORY
    confine(int(sys.argv[1]), OWN_MODULES)
    with contextlib.suppress(BrokenPipeError):
        _send(sink, {"ready": True})
        while True:
            lengths = source.read(LENGTHS.size)
            if len(lengths) < LENGTHS.size:
                return
            head_length, data_length = LENGTHS.unpack(lengths)
            head, data = json.loads(source.read(head_length)), source.read(data_length)
            with cpu_time(head["seconds"]):
                answer = _answer(head, data, shared)
            _send(sink, *answer)


def _map(descriptor: int) -> np.ndarray:
    """The shared memory as (N,) uint8."""
    memory = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    return np.frombuffer(memory, np.uint8)


def _answer(
    head: dict[str, Any], data: bytes, shared: np.ndarray = NO_MEMORY
) -> tuple[dict[str, Any], bytes | memoryview]:
    """Decode one image; returns the JSON object and the bytes of the answer, none if they are in `shared`."""
    started = time.perf_counter()
    where, limit = head["where"], head["max_megapixels"]
    try:
        header = read_header_bytes(data, where, limit)
        letterbox = Letterbox(**head["letterbox"])
        if decoded_bytes(header, letterbox.decoded_size) > 3 * head["most_pixels"]:
            return {"is_big": True}, b""
        image, size = decode_image_and_size(data, where, limit, letterbox.decoded_size)
        shape = (*letterbox.input_size, 3)
        count = math.prod(shape)
        is_shared = count <= len(shared)
        image = letterbox.apply(image, shared[:count].reshape(shape) if is_shared else None, size)
    except ImageError as error:
        return {"code": error.code, "error": str(error)}, b""
    except MemoryError:
        return {"code": "image_too_big", "error": f"{where}: not enough memory to decode it; shrink it"}, b""
    answer = {"size": header.size, "seconds": time.perf_counter() - started}
    return answer, b"" if is_shared else image.data.cast("B")


def _send(sink: Any, head: dict[str, Any], data: bytes | memoryview = b"") -> None:
    for part in frame(head, data):
        view = memoryview(part)
        while len(view):
            view = view[sink.write(view) :]


if __name__ == "__main__":
    main()
