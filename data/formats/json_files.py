"""Read JSON files of labelling tools."""

from __future__ import annotations

import json
from typing import Any

from utils.files import MEGABYTE, FileError, read_file

MAX_JSON_BYTES = 512 * MEGABYTE


def load_json(path: str) -> tuple[Any, str]:
    """The content of a JSON file, and the reason if it cannot be read (empty if it can)."""
    try:
        data = read_file(path, MAX_JSON_BYTES)
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return json.loads(data.decode(encoding)), ""
    except FileError as error:
        return None, error.what
    except (ValueError, RecursionError) as error:
        return None, f"is not whole JSON ({str(error)[:80]})"
