"""List all files below a folder; links to folders are followed without loops."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import StrPath

MAX_DEPTH = 32
_IGNORED = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"})


def walk_files(
    root: StrPath,
    homes: Sequence[str] | None = None,
    on_error: Callable[[OSError], None] | None = None,
    limit: int | None = None,
    recursive: bool = True,
    hidden: bool = False,
) -> tuple[list[str], list[str]]:
    """Paths of the files below a folder, and the links that were not followed.

    The files of a folder come before those of the folders in it, both in the order of their names. Hidden files and
    files of file managers (`Thumbs.db`, `__MACOSX`) are omitted.

    Args:
        root: the folder.
        homes: real paths of folders; links to targets outside of them are not followed. None follows every link.
        on_error: called for a folder that cannot be listed.
        limit: maximum number of files.
        recursive: also list subfolders.
        hidden: also list hidden files and folders.

    Raises:
        UserError: if there are more than `limit` files.
    """
    files: list[str] = []
    outside: list[str] = []
    prefixes = None if homes is None else tuple(home.rstrip(os.sep) + os.sep for home in homes)
    seen: set[str] = set()

    def is_outside(path: str) -> bool:
        real = os.path.realpath(path)
        return prefixes is not None and os.path.exists(real) and not (real + os.sep).startswith(prefixes)

    def visit(folder: str, depth: int) -> None:
        real = os.path.realpath(folder)
        if real in seen or depth > MAX_DEPTH:
            return
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if on_error is not None:
                on_error(error)
            return
        folders: list[str] = []
        links: list[str] = []
        for entry in entries:
            if (entry.name.startswith(".") and not hidden) or entry.name.casefold() in _IGNORED:
                continue
            if entry.is_symlink() and is_outside(entry.path):
                outside.append(entry.path)
            elif not os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
                files.append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)
        for each in [*folders, *links] if recursive else []:  # entries of the folder itself keep their own names
            visit(each, depth + 1)
        if limit is not None and len(files) > limit:
            raise UserError(Path(root), f"contains more than {limit} files", "give the folder of the data set itself")

    visit(os.fspath(root), 0)
    return files, outside
