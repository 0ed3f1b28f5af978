"""Open a file that may be a model; needs no PyTorch."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

MAX_FILE_BYTES = 4 << 30
MAX_XML_BYTES = 64 << 20  # OpenVINO's .xml holds no weights


def open_model_file(path: Path) -> BinaryIO:
    """Open a regular file of a sane size. Raises UserError for anything else, a named pipe too."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer for ever
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
        try:
            file = open(descriptor, "rb")  # noqa: SIM115 -- the caller closes it
        except OSError:  # a folder
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UserError(path, "is a folder", "give a model file (.pth, .safetensors, .onnx...)") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(path, f"cannot be read: {reason}", "give a model file") from error
    status = os.fstat(file.fileno())
    what, todo = "", "give a model file (.pth, .safetensors, .onnx...)"
    if not stat.S_ISREG(status.st_mode):
        what = "is not a file"
    elif not status.st_size:
        what, todo = "is empty", "use another copy"
    elif status.st_size > MAX_FILE_BYTES:
        what = f"is {status.st_size / 1e9:.1f} GB, larger than any detector here"
    if what:
        file.close()
        raise UserError(path, what, todo)
    return file


def refuse_no_model(path: Path) -> None:
    """Raises UserError for what is no exported file at a glance, in our words and not in those of its runtime."""
    with open_model_file(path) as file:
        head = file.read(512)
        size = os.fstat(file.fileno()).st_size
    refuse_pages_and_pointers(path, head)
    if path.suffix.lower() == ".xml" and size > MAX_XML_BYTES:
        raise UserError(path, f"has {size / 1e6:.0f} MB, which no network's .xml has", "use another copy")


def refuse_pages_and_pointers(path: Path, head: bytes) -> None:
    """Raises UserError for what is no model at a glance, from the first bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(path, "is a Git LFS pointer, not the weights themselves", "run: git lfs pull")
    pages = (b"<!doctype html", b"<html", *(() if path.suffix.lower() == ".xml" else (b"<!doctype", b"<?xml")))
    if text.startswith(pages):
        raise UserError(path, "is a web page, not weights", "download it again and look at what comes")
