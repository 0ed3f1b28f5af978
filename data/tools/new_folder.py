"""Write a folder atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from utils.errors import RunError


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` at the end; after an error or signal it is removed.

    Args:
        target: a folder that does not exist or is empty.

    Raises:
        RunError: if the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            target.rmdir()
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free
        what = f"the disk is full ({free / 1e6:.0f} MB are free): nothing was written"
        raise RunError(target, what, "free some space, or choose a folder on another disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
