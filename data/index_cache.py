"""Cache a DatasetIndex on disk, and reuse it while its source files are unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.index import ARRAYS, DatasetIndex, map_array
from data.skips import Skip
from utils.errors import RunError
from utils.files import write_file

VERSION = 6  # increase when a reader or the index changes its meaning
KEPT = 64  # maximum number of indices; older ones are removed


def cache_folder() -> Path:
    """Where caches live: $MOBILENET_YOLO_CACHE, else the platform's folder for them. Never the data's own folder."""
    if chosen := os.environ.get("MOBILENET_YOLO_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "mobilenet_yolo"


def cached_index(request: list[Any], read: Callable[[], DatasetIndex]) -> DatasetIndex:
    """The index that `read` returns, from the cache if possible.

    Args:
        request: everything that `read` depends on besides the files themselves (plain types); paths in it are absolute.
        read: reads the data set; its `source["dependencies"]` names `files` and `folders` whose change makes it stale.

    Cached data never depend on the working folder: an index with a relative path is not written.

    A cache that is missing, stale, broken or cannot be written is never an error: the data set is read instead.
    """
    # `~` and read permissions differ by user, and a shared cache folder may serve several
    user = [os.getuid() if hasattr(os, "getuid") else 0, os.path.expanduser("~")]
    key = hashlib.blake2b(json.dumps([VERSION, user, request]).encode(), digest_size=12).hexdigest()
    folder = cache_folder() / "index"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError):
        dependencies = json.loads((folder / f"{key}.json").read_bytes())
        return _load(folder / f"{key}-{fingerprint(dependencies)}")
    index = read()
    with contextlib.suppress(OSError, RunError):  # a full or read-only disk only makes the next start slower
        dependencies = index.source["dependencies"]
        paths = [*dependencies["files"], *dependencies["folders"], *map(str, index.paths())]
        if not all(map(os.path.isabs, paths)):
            return index
        _save(index, folder, key, f"{key}-{fingerprint(dependencies)}", dependencies)
        _prune(folder)
    return index


def fingerprint(dependencies: dict[str, list[str]]) -> str:
    """Changes when one of the files, or a file anywhere below one of the folders, changes in name, size or time."""
    digest = hashlib.blake2b(digest_size=12)
    for path in dependencies["files"]:
        digest.update(_state(path))
    for path in dependencies["folders"]:
        _add_folder(digest, os.fsencode(path))
    return digest.hexdigest()


def _state(path: str) -> bytes:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b"missing\n"
    return b"%d %d %d %d\n" % _identity(status)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Distinguishes two files at the same path, even of equal size and time (`mv`, `cp -p`, `tar`, `touch`)."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _add_folder(digest: hashlib.blake2b, folder: bytes) -> None:
    """Names, sizes and times of all files below a folder; for large folders, system calls dominate the time."""
    names, states, below = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                    continue
                try:
                    status = entry.stat()
                    states.append(_identity(status))
                except OSError:  # a broken link
                    states.append((2**64 - 1, 0, 0, 0))
                names.append(entry.name)
    except OSError:
        digest.update(b"missing")
    order = sorted(range(len(names)), key=names.__getitem__)
    digest.update(folder + b"\0" + b"\0".join([names[i] for i in order]) + b"\0\0")
    digest.update(np.array(states, np.uint64).reshape(-1, 4)[order].tobytes())
    for each in sorted(below):
        _add_folder(digest, each)


def _save(index: DatasetIndex, folder: Path, key: str, name: str, dependencies: dict[str, list[str]]) -> None:
    """Write into a new folder and rename it, so that the cache is written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir()
        checksums = {}
        for each in ARRAYS:
            if (array := getattr(index, each)) is not None:
                np.save(temporary / f"{each}.npy", array, allow_pickle=False)
                checksums[each] = _checksum(temporary / f"{each}.npy")
        facts = {
            "name": index.name,
            "class_names": index.class_names,
            "category_ids": index.category_ids,
            "source": index.source,
            "skips": [asdict(skip) for skip in index.skips],
            "checksums": checksums,
        }
        (temporary / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(temporary, folder / name)
        write_file(folder / f"{key}.json", json.dumps(dependencies).encode())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: Path) -> DatasetIndex:
    """The index in a folder, its arrays mapped from the files, so that processes share them.

    Raises:
        OSError, ValueError, KeyError, TypeError: if anything in it is missing or invalid.
    """
    facts = json.loads((folder / "facts.json").read_bytes())
    arrays: dict[str, Any] = {}
    for each, checksum in facts["checksums"].items():
        if _checksum(folder / f"{each}.npy") != checksum:
            raise ValueError(f"{each}.npy is not what was written")
        arrays[each] = map_array(os.fspath(folder / f"{each}.npy"))
    ids = facts["category_ids"]
    os.utime(folder)  # last used
    return DatasetIndex(
        name=facts["name"],
        class_names=tuple(facts["class_names"]),
        category_ids=None if ids is None else tuple(ids),
        source=facts["source"],
        skips=tuple(Skip(**skip) for skip in facts["skips"]),
        **arrays,
    )


def _checksum(path: Path) -> int:
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _prune(folder: Path) -> None:
    kept = sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: -each.stat().st_mtime)
    for old in kept[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
