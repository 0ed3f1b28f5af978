"""Read a JSON file given by the user, with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_file

MAX_FILE_BYTES = 4 << 30


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file, UTF-8.
        expected: description of the expected file, for errors.

    Raises:
        UserError: if it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_file(path, MAX_FILE_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(path, "is not UTF-8 text", f"give {expected}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}", f"is not JSON: {getattr(error, 'msg', error)}", f"give {expected}") from error
