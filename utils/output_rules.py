"""Check output paths before the work begins, so that no results are lost."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from utils.errors import UserError

LONGEST_NAME = 255  # bytes of one part of a path, on all common file systems
# folders beside a data set's file that belong to it: YOLO's, COCO's, and a year of a VOCdevkit
_PARTS = re.compile(r"(images|labels|annotations|jpegimages|imagesets|(train|val|test)\d*)$", re.IGNORECASE)
_VOC_PARTS = ("JPEGImages", "Annotations", "ImageSets")


def check_output_file(
    flag: str, path: str | os.PathLike[str], overwrite: bool, data: Iterable[str | os.PathLike[str] | None] = ()
) -> Path:
    """The path of a file that may be written.

    Args:
        flag: the option that names it.
        path: the file.
        overwrite: whether an existing file may be replaced.
        data: data sets, in which nothing may be written.

    Raises:
        UserError: if it exists, is not a file, is in a data set, or cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(flag, f"{path} is a folder", "name a file")
    if os.path.lexists(path) and not overwrite:
        raise UserError(flag, f"{path} exists and would be overwritten", "add --overwrite, or name another file")
    check_output_folder(flag, path.parent, data)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(flag, f"{path.name[:20]}... is too long for a name", "name another file")
    return path


def check_output_folder(
    flag: str, path: str | os.PathLike[str], data: Iterable[str | os.PathLike[str] | None] = ()
) -> Path:
    """The path of a folder that can be made or written into.

    Raises:
        UserError: if it lies in a data set, or cannot be written.
    """
    path = Path(path)
    problem = _why_not_writable(path)
    if problem:
        raise UserError(flag, problem, "choose another folder")
    for each in data:
        for folder in [] if each is None else data_folders(each):
            if path.resolve().is_relative_to(folder.resolve()):
                what = f"{path} lies in the data ({folder}), into which nothing is written"
                raise UserError(flag, what, "choose another folder")
    return path


def shortened_name(name: str, max_bytes: int) -> str:
    """The beginning of a file's name, in so many bytes of UTF-8; file systems count bytes and not characters."""
    return name.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def data_folders(data: str | os.PathLike[str]) -> list[Path]:
    """The folders that hold a data set: its own, or, where that is one to work in, those in it that hold its files."""
    path = Path(data)
    if os.path.isdir(path) and not Path.cwd().is_relative_to(path.resolve()):
        return [path]
    folder = path if os.path.isdir(path) else path.parent
    with contextlib.suppress(OSError):
        return [each for each in folder.iterdir() if each.is_dir() and _holds_data(each)]
    return []


def _holds_data(folder: Path) -> bool:
    return bool(_PARTS.match(folder.name)) or any((folder / part).is_dir() for part in _VOC_PARTS)


def _why_not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not be there yet; empty if something can."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        return f"{str(folder)[:20]}... is too long for a name"
    nearest = Path(os.path.abspath(folder))
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(nearest):
        return f"{nearest} is {'not a folder' if os.path.exists(nearest) else 'a broken link'}"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written into"
