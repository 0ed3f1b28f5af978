"""Check output paths before a run starts, so that no results are lost."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from utils.errors import UserError
from utils.files import StrPath

LONGEST_NAME = 255  # maximum bytes of a file name on common file systems
# folders that belong to the data set of a file in the same folder: YOLO's, COCO's, and a year of a VOCdevkit
_PARTS = re.compile(r"(images|labels|annotations|jpegimages|imagesets|(train|val|test)\d*)$", re.IGNORECASE)
_VOC_PARTS = ("JPEGImages", "Annotations", "ImageSets")


def check_output_file(
    flag: str, path: StrPath, overwrite: bool, data: Iterable[StrPath | None] = (), is_folder: bool = False
) -> Path:
    """Check the path of an output file.

    Args:
        flag: the option that names it.
        overwrite: whether an existing file may be replaced.
        data: data sets, into which nothing may be written.
        is_folder: the file is a package, which the file system stores as a folder.

    Raises:
        UserError: if it exists, is not a file, is in a data set, or cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path) and not is_folder:
        raise UserError(flag, f"{path} is a folder", "give a file")
    if os.path.lexists(path) and not overwrite:
        raise UserError(flag, f"{path} exists and would be overwritten", "add --overwrite, or give another file")
    check_output_folder(flag, path.parent, data)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(flag, f"{path.name[:20]}... is too long for a file name", "give another file")
    return path


def check_output_folder(flag: str, path: StrPath, data: Iterable[StrPath | None] = ()) -> Path:
    """Check the path of an output folder. Raises UserError if it is inside a data set, or cannot be written."""
    path = Path(path)
    problem = _why_not_writable(path)
    if problem:
        raise UserError(flag, problem, "choose another folder")
    for each in data:
        for folder in [] if each is None else data_folders(each):
            if path.resolve().is_relative_to(folder.resolve()):
                what = f"{path} is inside the data set ({folder}), into which nothing is written"
                raise UserError(flag, what, "choose another folder")
    return path


def shortened_name(name: str, max_bytes: int) -> str:
    """Shorten a file name to `max_bytes` of UTF-8; file systems limit bytes, not characters."""
    return name.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def data_folders(data: StrPath) -> list[Path]:
    """The folders of a data set: its folder, or, if that is also a working folder, the subfolders with its files."""
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
    """Reason why a folder, which may not exist yet, is not writable; empty if it is writable."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        return f"{str(folder)[:20]}... is too long for a file name"
    nearest = Path(os.path.abspath(folder))
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(nearest):
        return f"{nearest} is {'not a folder' if os.path.exists(nearest) else 'a broken link'}"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is not writable"
