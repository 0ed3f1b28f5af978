"""Open a file that may be a model, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError
from utils.files import open_regular, page_or_pointer

MAX_FILE_BYTES = 4 << 30
MAX_XML_BYTES = 64 << 20  # OpenVINO's .xml holds no weights
GIVE_A_MODEL = "give a model file (.pth, .safetensors, .onnx...)"


def open_model_file(path: Path) -> BinaryIO:
    """Open a regular file that is not empty and not larger than any model. Raises UserError for anything else."""
    file = open_regular(path, GIVE_A_MODEL)
    size = os.fstat(file.fileno()).st_size
    if 0 < size <= MAX_FILE_BYTES:
        return file
    file.close()
    if not size:
        raise UserError(path, "is empty", "use another copy")
    raise UserError(path, f"is {size / 1e9:.1f} GB, larger than any detector here", GIVE_A_MODEL)


def check_exported_file(path: Path) -> None:
    """Reject a file that is obviously not an exported model, before its runtime reads it. Raises UserError."""
    with open_model_file(path) as file:
        head = file.read(512)
        size = os.fstat(file.fileno()).st_size
    check_not_page_or_pointer(path, head)
    if path.suffix.lower() == ".xml" and size > MAX_XML_BYTES:
        raise UserError(path, f"has {size / 1e6:.0f} MB, too large for a network's .xml", "use another copy")


def check_not_page_or_pointer(path: Path, head: bytes) -> None:
    """Reject web pages and Git LFS pointers by the first bytes of a file. Raises UserError."""
    kind = page_or_pointer(head)
    if kind is None and path.suffix.lower() != ".xml" and head.lstrip().lower().startswith((b"<!doctype", b"<?xml")):
        kind = "web page"  # XHTML; OpenVINO's .xml begins like it
    if kind == "web page":
        raise UserError(path, "is a web page, not weights", "download it again and check the response")
    if kind is not None:
        raise UserError(path, f"is a {kind}, not the weights", "run: git lfs pull")
