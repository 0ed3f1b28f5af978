"""Read regular files up to a maximum size, and write files atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from utils.errors import RunError, UserError

MEGABYTE = 1 << 20
StrPath = str | os.PathLike[str]


class FileError(UserError):
    """A file that cannot be read or is not what it should be.

    Args:
        code: short, stable name of the fault, e.g. `missing_file`; the other arguments are those of `UserError`.
    """

    todos: ClassVar[dict[str, str]] = {
        "missing_file": "check the name",
        "not_a_file": "give a file",
        "unreadable_file": "check its name and permissions",
        "file_too_big": "give a smaller one",
    }

    def __init__(self, code: str, where: object, what: str, todo: str = "") -> None:
        self.code = code
        super().__init__(where, what, todo or self.todos.get(code, ""))
        self.args = (code, *self.args)  # for pickle, as those of UserError


def read_file(path: str | bytes | os.PathLike[str], max_bytes: int, head: int | None = None) -> bytes:
    """Read a regular file.

    Args:
        path: any file name; it need not be UTF-8.
        max_bytes: reject a larger file before reading it.
        head: read only the first `head` bytes.

    Raises:
        FileError: `missing_file`, `not_a_file` (folder, pipe, socket, device), `unreadable_file`, `file_too_big`.
    """
    with _opened(path, max_bytes) as (file, _):
        return file.read(max_bytes if head is None else head)


def read_lines(path: StrPath, max_bytes: int) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers; names may be any bytes, or UTF-16.

    Raises:
        FileError: as `read_file`.
    """
    data = read_file(path, max_bytes)
    utf_16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16", "replace") if utf_16 else data.decode("utf-8", "surrogateescape").lstrip("\ufeff")
    return [(number, line) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line.strip()]


def read_ends(path: str | bytes | os.PathLike[str], max_bytes: int, head: int, tail: int) -> tuple[bytes, bytes, int]:
    """The first `head` and the last `tail` bytes of a regular file, and its size; as `read_file` otherwise."""
    with _opened(path, max_bytes) as (file, size):
        start = file.read(head)
        if size <= len(start):
            return start, start[-tail:], len(start)
        file.seek(-min(tail, size), os.SEEK_END)
        return start, file.read(tail), size


@contextlib.contextmanager
def _opened(path: str | bytes | os.PathLike[str], max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yields it and its size. Raises as `read_file`."""
    with open_regular(path) as file:
        where, size = os.fsdecode(path), os.fstat(file.fileno()).st_size
        if size > max_bytes:
            what = f"has {size / MEGABYTE:.1f} MB; the limit is {max_bytes / MEGABYTE:.3g} MB"
            raise FileError("file_too_big", where, what, "give a smaller file")
        try:
            yield file, size
        except OSError as error:
            raise _explain(error, path, where) from None


def open_regular(path: str | bytes | os.PathLike[str], todo: str = "") -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: any file name.
        todo: what to do, in every error; by default, it depends on the error.

    Raises:
        FileError: `missing_file`, `not_a_file` (folder, pipe, socket, device), `unreadable_file`.
    """
    where = os.fsdecode(path)
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        raise FileError("unreadable_file", where, "is not a valid file name", todo or "check the name") from None
    except OSError as error:
        raise _explain(error, path, where, todo) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = f"is a {_kind(mode)}, not a file"
        raise FileError("not_a_file", where, what, todo or "replace it by a regular file")
    return open(descriptor, "rb")


def page_or_pointer(head: bytes) -> str | None:
    """What a download left in place of the file, seen in its first bytes: `web page`, `Git LFS pointer`, or None."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "web page"
    return "Git LFS pointer" if text.startswith(b"version https://git-lfs") else None


def write_file(path: StrPath, data: bytes) -> None:
    """Write `data` to a temporary file in the same folder and rename it, so that no reader sees a partial file.

    Raises:
        RunError: if the folder is missing or not writable, or the disk is full; no temporary file is left.
    """
    path = Path(path)
    with replacing(path, f".{secrets.token_hex(8)}.tmp", len(data)) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, name: str, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary file called `name`, for `size` bytes (None: unknown), and rename it to `path`, or remove it.

    Raises:
        RunError: for an OSError, such as of a full disk.
    """
    temporary = path.with_name(name)
    try:
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise _not_written(path, size, error) from error


def file_digest(path: Path, name: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    digest = hashlib.new(name, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # hashlib.file_digest came with Python 3.11
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: StrPath, data: bytes, before_rename: Callable[[], None] | None = None) -> None:
    """Write to a temporary file, sync, read back and rename: a reader sees the complete old or new file.

    Args:
        path: the file.
        data: its new content.
        before_rename: called last; if it raises, the old file is unchanged.

    Raises:
        RunError: if it cannot be written (for a full disk, with the missing size); the old file is then unchanged.
    """
    path = Path(path)
    with replacing(path, f".{path.name}.{os.getpid()}.tmp", len(data)) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read back from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if temporary.read_bytes() != data:
            raise OSError("the data read back differs from the data written")
        if before_rename is not None:
            before_rename()
    with naming_errors(path):
        _sync_folder(path.parent)


@contextlib.contextmanager
def naming_errors(path: StrPath) -> Iterator[None]:
    """Context manager that converts an OSError when writing to an open file into a RunError with the file's name."""
    try:
        yield
    except OSError as error:
        raise _not_written(Path(path), None, error) from error


def _not_written(path: Path, size: int | None, error: OSError) -> RunError:
    """The error for a file of `size` bytes that could not be written; for a full disk, with the missing size."""
    what, todo = f"cannot be written: {error.strerror or error}", "choose another folder"
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if size is None:
        return RunError(path, what, f"free some space or {todo}" if is_full else todo)
    if os.path.lexists(path):
        todo = f"the previous file is unchanged; {todo}"
    free = _free_bytes(path.parent)
    if is_full and free is not None:
        what += f"; it needs {_size(size)}, {_size(free)} are free, {_size(max(size - free, 1))} are missing"
        todo = todo.replace("choose", "free some space or choose")
    return RunError(path, what, todo)


def _sync_folder(folder: Path) -> None:
    """Sync a folder so that a rename is durable; no effect if folders cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes} bytes"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _explain(error: OSError, path: str | bytes | os.PathLike[str], where: str, todo: str = "") -> FileError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        broken = os.path.islink(path)
        todo = todo or ("restore its target, or remove it" if broken else "check the name")
        return FileError("missing_file", where, "is a broken link" if broken else "does not exist", todo)
    if error.errno == errno.ELOOP:
        return FileError("missing_file", where, "is a link to itself", todo or "remove it")
    replace = todo or "replace it by a regular file"
    if error.errno == errno.ENXIO:
        return FileError("not_a_file", where, "is a socket or pipe, not a file", replace)
    with contextlib.suppress(OSError):  # Windows: a folder is `permission denied`
        if os.path.isdir(path):
            return FileError("not_a_file", where, "is a folder, not a file", replace)
    what = f"cannot be read ({error.strerror or error})"
    return FileError("unreadable_file", where, what, todo or "check its permissions and the disk")
