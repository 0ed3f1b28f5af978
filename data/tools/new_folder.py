"""Check and write a new folder, atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from utils.errors import RunError, UserError
from utils.output_rules import data_folders


def check_new_folder(where: str, folder: Path, data: Path | None = None) -> None:
    """Refuse to overwrite files, or to write into a data set.

    Args:
        where: the argument that names the folder, for the message.
        folder: the folder to write.
        data: the data set.

    Raises:
        UserError: if `folder` is not a folder, is not empty, or is in a folder of `data`.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(where, f"{folder} is not a folder", "give a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(where, f"{folder} exists and is not empty", "give a new folder")
    if data is not None:
        homes = [each.resolve() for each in ([data] if data.is_dir() else data_folders(data))]
        if any(folder.resolve().is_relative_to(home) for home in homes):
            raise UserError(where, f"{folder} is inside the data set {data}", "give a separate folder")


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
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free
        what = f"the disk is full ({free / 1e6:.0f} MB are free): nothing was written"
        raise RunError(target, what, "free some space, or choose a folder on another disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
