"""Read a JSON file given by the user, with one-line errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from utils.errors import UserError
from utils.files import StrPath, read_file

MAX_FILE_BYTES = 4 << 30


def read_json(
    path: StrPath,
    expected: str,
    max_bytes: int = MAX_FILE_BYTES,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read a JSON file in UTF-8 or UTF-16; `expected` describes it in errors, `object_hook` is that of `json.loads`.

    Raises:
        UserError: if it cannot be read, is larger than `max_bytes`, or is not JSON.
    """
    data = read_file(path, max_bytes)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        del data  # a COCO file has hundreds of megabytes
        return json.loads(text, object_hook=object_hook)
    except UnicodeDecodeError as error:
        raise UserError(path, "is not JSON: it is not UTF-8 text", f"give {expected}") from error
    except RecursionError as error:
        raise UserError(path, "is not JSON of a usual depth: it is nested too deeply", f"give {expected}") from error
    except ValueError as error:  # also of a number of thousands of digits
        where = f"{os.fspath(path)}:{getattr(error, 'lineno', 1)}"
        raise UserError(where, f"is not JSON: {getattr(error, 'msg', error)}", f"give {expected}") from error
