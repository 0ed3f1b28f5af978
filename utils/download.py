"""Download a file over HTTP, with resume after a broken connection and a check of the complete file."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from utils.errors import RunError, UserError, warn
from utils.files import file_digest, naming_errors

CHUNK = 1 << 20  # bytes read at once
TIMEOUT = 30.0  # seconds without a byte after which a connection counts as broken
OPEN_SECONDS = 60.0  # for a connection and the headers of its response
SLOW_SECONDS, SLOW_BYTES = 30.0, 30_000  # a connection with fewer bytes in this time counts as broken
RETRIES = 6  # consecutive attempts without a new byte
MAX_PAUSE = 60.0  # maximum seconds between two attempts
SPARE = 64 << 20  # bytes left free on the disk
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
USER_AGENT = "yolov4-mobilenet"


class _Broken(Exception):
    """The connection failed in a way that may be temporary.

    Args:
        reason: the reason, as text.
        pause: seconds that the server asked to wait.
        weight: number of failures that it counts as; a name that cannot be resolved is rarely a temporary fault.
        is_slow: whether it counts as a failure although bytes were received.
    """

    def __init__(self, reason: str, pause: float | None = None, weight: int = 1, is_slow: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.weight, self.is_slow = pause, weight, is_slow


class SlowError(OSError):
    """The server sends too few bytes per second."""


class TooLargeError(OSError):
    """The server sends more bytes than allowed."""


class BrokenOffError(OSError):
    """The connection ended before the end of the response."""


def open_url(url: str, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> Any:
    """Open an http or https address and return the response; its headers must arrive within `OPEN_SECONDS`.

    Raises:
        OSError, http.client.HTTPException, ValueError: as `urllib.request.urlopen`; SlowError after `OPEN_SECONDS`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept": "*/*", **(headers or {})})
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=timeout))
        except BaseException as error:  # raised below, in the caller's thread
            answers.put(error)

    # a thread, because the socket's timeout restarts at each byte, and headers may arrive byte by byte
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=OPEN_SECONDS)
    except queue.Empty:
        raise SlowError(f"no response within {OPEN_SECONDS:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def read_chunks(response: Any, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a response as they arrive.

    Raises:
        TooLargeError: after `max_bytes`.
        SlowError: if fewer than `SLOW_BYTES` come in `SLOW_SECONDS`.
        BrokenOffError: if the connection ends too early.
        OSError, http.client.HTTPException: of the connection otherwise.
    """
    total = since = 0
    started = time.monotonic()
    while data := _read_some(response, total):
        total, since = total + len(data), since + len(data)
        if total > max_bytes:
            raise TooLargeError(f"sends more than {max_bytes} bytes")
        yield data
        now = time.monotonic()
        if now - started > SLOW_SECONDS:
            if since < SLOW_BYTES:
                raise SlowError(f"sends only {since} bytes in {now - started:.0f} s")
            started, since = now, 0
    left = getattr(response, "length", None)  # read1 does not report a broken connection
    if left:
        raise BrokenOffError(f"the connection was lost after {total} of {total + left} bytes")


def _read_some(response: Any, total: int) -> bytes:
    try:
        return response.read1(CHUNK)
    except http.client.IncompleteRead as error:
        raise BrokenOffError(f"the connection was lost after {total} bytes") from error


@dataclass(frozen=True)
class _Job:
    """One download: address, target, and the partial file with a note of its source."""

    url: str
    path: Path
    timeout: float

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".part.json")

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    *,
    progress: bool = True,
    retries: int = RETRIES,
    timeout: float = TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `path`; an existing file that passes the checks is kept.

    The bytes go to `path.part`, which a later call continues (HTTP Range, only if the server still has the same file).
    It is renamed to `path` after the checks have passed.

    Args:
        sha256, md5: expected hexadecimal digest. torchvision's eight-digit prefixes are accepted too.
        size: expected size in bytes.
        progress: show a progress bar.
        retries: attempts in a row without a new byte before giving up.
        timeout: seconds without a byte after which a connection counts as broken.
        sleep: function that waits between attempts.

    Raises:
        UserError: for an address that is not http or https.
        RunError: no network, no such file, disk full, or a file that fails the checks.
    """
    job = _Job(url, Path(path), timeout)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(url, "is not an http or https address", "give an address that starts with https://")
    if job.path.exists():
        wrong = verify_file(job.path, sha256, md5, size)
        if not wrong:
            return job.path
        warn(job.path, wrong, "it is downloaded again")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(2):  # a download that continued a stale or damaged part is restarted once
        continued = job.part.exists()
        _fetch(job, size, progress, retries, sleep)
        wrong = verify_file(job.part, sha256, md5, size)
        if not wrong:
            os.replace(job.part, job.path)
            job.note.unlink(missing_ok=True)
            return job.path
        job.discard()
        if attempt == 0:
            warn(url, wrong, "the partial file is discarded" if continued else "trying again")
    raise RunError(url, wrong, f"it was deleted; try another mirror, or save the correct file as {job.path}")


def verify_file(path: Path, sha256: str | None = None, md5: str | None = None, size: int | None = None) -> str:
    """Check a file; returns the problem as text, or an empty string."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, not {size}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        digest = file_digest(path, name)
        if not digest.startswith(expected.lower()):
            return f"has {name} {digest}, not {expected.lower()}"
    return ""


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises RunError if the disk of `folder` has less than `needed` bytes (and a reserve) free."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        gib = 1 << 30
        message = f"{what} needs {needed / gib:.2f} GiB and {free / gib:.2f} GiB are free"
        raise RunError(folder, message, "free some space, or choose another disk with --output")


def _fetch(job: _Job, size: int | None, progress: bool, retries: int, sleep: Callable[[float], None]) -> None:
    """Complete the part file, with as many connections as needed."""
    from tqdm import tqdm

    failures = 0
    hide = None if progress else True  # None: tqdm hides itself where there is no terminal
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=job.path.name, disable=hide) as bar:
        while True:
            before = _part_size(job)
            try:
                return _receive(job, size, bar)
            except _Broken as broken:
                failures = 0 if _part_size(job) > before and not broken.is_slow else failures + broken.weight
                if failures >= retries:
                    raise _unreachable(job, str(broken)) from broken
                pause = min(2.0**failures * random.uniform(0.5, 1.0), MAX_PAUSE)
                pause = pause if broken.pause is None else min(broken.pause, MAX_PAUSE)
                warn(job.url, f"{broken}, after {_part_size(job)} bytes", f"again in {pause:.0f} s")
                sleep(pause)


def _receive(job: _Job, size: int | None, bar: Any) -> None:
    """Download over one connection. Raises _Broken if it ends before the file is complete."""
    note = _read_note(job)
    have = _part_size(job)
    validator = note.get("validator", "") if have else ""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator  # a file that has changed is sent whole, not from the middle
    try:
        response = open_url(job.url, headers, job.timeout)
    except urllib.error.HTTPError as error:
        return _refused(job, error, have)
    except (OSError, http.client.HTTPException) as error:
        offline = isinstance(getattr(error, "reason", None), socket.gaierror)
        raise _Broken(_reason(error), weight=RETRIES // 2 if offline else 1) from error
    with response:
        start, total = _extent(response.status, response.headers, have)
        if start not in (0, have):
            job.discard()
            raise _Broken(f"the server sent bytes from {start} instead of {have}")
        if start and total != note.get("total", total):
            job.discard()
            raise _Broken("the file on the server has changed")
        if size is not None and total is not None and total != size:
            job.discard()
            raise RunError(job.url, f"has {total} bytes on the server, not {size}", "check the address or the mirror")
        check_disk(job.path.parent, (total or size or 0) - start, job.path.name)
        _write_note(job, {"url": job.url, "validator": _validator(response.headers), "total": total})
        bar.total = total or size
        bar.n = start
        bar.refresh()
        with open(job.part, "r+b" if start else "wb", buffering=0) as file:
            file.seek(start)
            file.truncate()
            _copy(job, response, file, bar, (size or total or start + (1 << 62)) - start)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _part_size(job) < total:
        raise _Broken("the connection was lost")


def _copy(job: _Job, response: Any, file: IO[bytes], bar: Any, max_bytes: int) -> None:
    """Write the received bytes. Raises RunError for more than `max_bytes` or a full disk."""
    unchecked = 0
    try:
        for data in read_chunks(response, max_bytes):
            unchecked += len(data)
            if unchecked > SPARE // 2:  # the server may not send the file's length
                check_disk(job.path.parent, 0, job.path.name)
                unchecked = 0
            with naming_errors(job.part):
                file.write(data)
            bar.update(len(data))
    except TooLargeError:
        job.discard()
        raise RunError(job.url, "sends more bytes than its size", "check the address or the mirror") from None
    except SlowError as error:
        raise _Broken(str(error), is_slow=True) from error
    except RunError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Broken("the connection was lost" if isinstance(error, BrokenOffError) else _reason(error)) from error


def _refused(job: _Job, error: urllib.error.HTTPError, have: int) -> None:
    """Handle an HTTP error: nothing left to download, try again, or give up."""
    with error:
        if error.code == 416 and have:
            match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if match and int(match[1]) == have:
                return  # the part is already complete
            job.discard()
            raise _Broken("the partial file is longer than the file on the server")
        if error.code in RETRY_STATUS:
            wait = error.headers.get("Retry-After", "")
            raise _Broken(f"the server answered {error.code} {error.reason}", float(wait) if wait.isdigit() else None)
        todo = f"check the address or the mirror, or download it manually and save it as {job.path}"
        raise RunError(job.url, f"the server answered {error.code} {error.reason}", todo) from error


def _extent(status: int, headers: Message, have: int) -> tuple[int, int | None]:
    """(first byte, total bytes) of a response; the total is None if the server does not send it."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if not match:
            return have, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(headers: Message) -> str:
    """The validator of this version of the file: a strong ETag, or else Last-Modified (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{getattr(reason, 'strerror', None) or reason or type(reason).__name__}".strip() or type(error).__name__


def _unreachable(job: _Job, reason: str) -> RunError:
    todo = f"without a network, download it elsewhere and save it as {job.path}; run again to resume {job.part.name}"
    return RunError(job.url, f"cannot be downloaded ({reason})", todo)


def _part_size(job: _Job) -> int:
    return job.part.stat().st_size if job.part.exists() else 0


def _read_note(job: _Job) -> dict[str, Any]:
    """Read the note of the part file; a part of another address, or of unknown origin, is deleted."""
    try:
        note = json.loads(job.note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    if not isinstance(note, dict) or note.get("url") != job.url:
        job.discard()
        return {}
    return note


def _write_note(job: _Job, note: dict[str, Any]) -> None:
    job.note.write_text(json.dumps(note), encoding="utf-8")
