"""Downloads from a server on 127.0.0.1 with faults: broken connections, corrupt data, ignored Range, changed files."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data.tools.download as data_download
import utils.download as generic
from data.tools.download import DATASETS, Archive, download_dataset, extract
from utils.download import download, verify_file
from utils.errors import RunError, UserError

CONTENT = bytes(range(256)) * 1200  # 300 kB
SHA = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """The planned responses to requests, in order, and the received requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file.bin": CONTENT}
        self.faults: list[str] = []
        self.ranges: list[str | None] = []
        self.etag = '"one"'
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            fault = state.faults.pop(0) if state.faults else ""
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            body = state.files.get(self.path)
            if fault == "503" or body is None:
                self.send_response(503 if fault else 404)
                self.send_header("Retry-After", "7")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "drop":
                self.close_connection = True
                return
            start = 0
            match = re.fullmatch(r"bytes=(\d+)-", asked or "")
            same = self.headers.get("If-Range", state.etag) == state.etag
            if match and same and fault != "no-range":
                start = int(match[1])
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            part = body[start:]
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", state.etag)
            self.end_headers()
            if fault == "corrupt":
                part = b"\xff" * len(part)
            if fault in ("break", "break-early"):
                part = part[: len(part) // 2 if fault == "break" else 0]
                self.close_connection = True
            self.wfile.write(part)

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    yield state
    http_server.shutdown()
    http_server.server_close()
    thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Downloads /file.bin without waiting. The requested pauses are recorded in `fetch.pauses`."""

    def run(**options: object) -> Path:
        options = {"sha256": SHA, "progress": False, "sleep": run.pauses.append, **options}  # type: ignore[attr-defined]
        return download(f"{server.url}/file.bin", tmp_path / "deep" / "file.bin", **options)  # type: ignore[arg-type]

    run.pauses = []  # type: ignore[attr-defined]
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_completely_and_only_once(server: Server, fetch: Callable[..., Path]) -> None:
    path = fetch(md5=MD5, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.bin"]
    fetch()
    assert server.ranges == [None]


def test_a_broken_connection_is_continued(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["break", "break"]
    assert fetch().read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_later_run_continues_the_part_of_an_earlier_one(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["break", "break-early"]
    with pytest.raises(RunError, match=r"save it as .*file\.bin.*resume"):
        fetch(retries=1)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(CONTENT) // 2}-"


def test_a_server_that_ignores_range_sends_it_all_again(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["break", "no-range"]
    assert fetch().read_bytes() == CONTENT


def test_a_file_that_changed_between_two_connections_is_not_mixed(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["break", "break-early"]
    with pytest.raises(RunError):
        fetch(retries=1)
    server.files["/file.bin"], server.etag = CONTENT[::-1], '"two"'
    assert fetch(sha256=None).read_bytes() == CONTENT[::-1]


def test_a_part_without_its_note_is_not_trusted(server: Server, fetch: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.bin.part").write_bytes(b"somebody else's")
    assert fetch().read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_complete_partial_download_is_kept(server: Server, fetch: Callable[..., Path], tmp_path: Path) -> None:
    server.faults = ["break", "break-early"]
    with pytest.raises(RunError):
        fetch(retries=1)
    (tmp_path / "deep" / "file.bin.part").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(CONTENT)}-"


def test_corrupt_bytes_are_fetched_once_more(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["corrupt"]
    assert fetch().read_bytes() == CONTENT


def test_corrupt_downloads_are_never_given_the_final_name(
    server: Server, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    server.faults = ["corrupt", "corrupt"]
    with pytest.raises(RunError, match=f"not {SHA}"):
        fetch()
    assert names(tmp_path / "deep") == []


def test_a_wrong_file_is_kept_until_the_right_one_is_complete(
    server: Server, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"old")
    server.faults = ["corrupt", "corrupt"]
    with pytest.raises(RunError):
        fetch()
    assert path.read_bytes() == b"old"
    assert fetch().read_bytes() == CONTENT


def test_busy_and_dropping_servers_are_retried(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["503", "drop", "drop"]
    assert fetch().read_bytes() == CONTENT
    pauses: list[float] = fetch.pauses  # type: ignore[attr-defined]
    assert pauses[0] == 7.0  # what Retry-After says
    assert pauses[1] < pauses[2] * 2 and max(pauses) <= generic.MAX_PAUSE


def test_a_failed_download_error_describes_the_manual_way(server: Server, fetch: Callable[..., Path]) -> None:
    server.faults = ["drop"] * 9
    with pytest.raises(RunError, match=r"cannot be downloaded.*download it elsewhere and save it as .*file\.bin"):
        fetch(retries=3)
    assert len(fetch.pauses) == 2  # type: ignore[attr-defined]


def test_no_server_at_all_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="save it as"):
        download("http://127.0.0.1:9/none", tmp_path / "x", progress=False, retries=2, sleep=lambda s: None)


def test_missing_files_are_not_requested_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="404"):
        download(f"{server.url}/none", tmp_path / "x", progress=False)
    assert len(server.ranges) == 1


def test_another_size_is_rejected_before_it_is_fetched(server: Server, fetch: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match=f"{len(CONTENT)} bytes on the server, not 5"):
        fetch(size=5)


def test_a_full_disk_is_known_beforehand(
    server: Server, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic.shutil, "disk_usage", lambda folder: _Usage())
    with pytest.raises(RunError, match="GiB are free"):
        fetch()


class _Usage:
    free = 1000


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "x.bin"])
def test_only_http_is_an_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="http"):
        download(url, tmp_path / "x")


def test_digests_of_a_few_digits_are_taken(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert verify_file(tmp_path / "x", sha256=SHA[:8].upper()) == ""
    assert "not 00000000" in verify_file(tmp_path / "x", sha256="00000000")


def tar_bytes(members: dict[str, bytes | str]) -> bytes:
    """A tar of files; a str content makes a link to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes], link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_archives_unpack(make: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(make({"x/one.txt": b"1", "x/y/ü 2.txt": b"22", "empty": b""}))
    assert extract(tmp_path / "a", tmp_path / "out", progress=False) == 3
    assert (tmp_path / "out" / "x" / "y" / "ü 2.txt").read_bytes() == b"22"
    assert names(tmp_path / "out" / "x") == ["one.txt", "y"]


@pytest.mark.parametrize(
    "content",
    [
        tar_bytes({"good": b"1", "../bad": b"2"}),
        tar_bytes({"good": b"1", "/bad": b"2"}),
        tar_bytes({"good": b"1", "x\\..\\bad": b"2"}),
        tar_bytes({"good": b"1", "C:bad": b"2"}),
        tar_bytes({"good": b"1", "link": "/etc"}),
        zip_bytes({"good": b"1", "a/../../bad": b"2"}),
        zip_bytes({"good": b"/etc"}, link=True),
        zip_bytes({"bomb": b"\0" * (30 << 20)}),
        tar_bytes({"good": b"1" * 9999})[:5000],
        zip_bytes({"good": os.urandom(9999)})[:-40],
        b"<html>please log in</html>",
    ],
)
def test_unsafe_and_damaged_archives_leave_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(RunError, match=r"a: (has|is|would)"):
        extract(tmp_path / "a", tmp_path / "out", progress=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a"]


def test_a_flipped_bit_in_a_zip_is_found_by_its_crc(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"good": os.urandom(5000)}))
    data[2000] ^= 1
    (tmp_path / "a").write_bytes(bytes(data))
    with pytest.raises(RunError, match="damaged"):
        extract(tmp_path / "a", tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == []


def test_a_data_set_is_downloaded_from_a_mirror_unpacked_and_reused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tar_bytes({"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"a"})
    second = tar_bytes({"VOCdevkit/VOC2007/JPEGImages/2.jpg": b"b"})
    parts = []
    for name, content in (("one.tar", first), ("two.tar", second)):
        server.files[f"/mirror/{name}"] = content
        parts.append(Archive(f"https://official.invalid/{name}", hashlib.md5(content).hexdigest()))
    monkeypatch.setitem(data_download.DATASETS, "voc07", tuple(parts))
    server.faults = ["break"]
    monkeypatch.setattr(generic.random, "uniform", lambda low, high: 0.0)
    for _ in range(2):
        folder = download_dataset("voc07", tmp_path, mirror=f"{server.url}/mirror/", progress=False)
        assert folder == tmp_path / "VOCdevkit"
        assert names(folder / "VOC2007" / "JPEGImages") == ["1.jpg", "2.jpg"]
    assert len(server.ranges) == 3  # the broken one, its rest, the second; nothing in the second round
    assert names(tmp_path / "archives") == ["one.tar.done", "two.tar.done"]


def test_a_manually_downloaded_archive_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_bytes({"VOCdevkit/VOC2012/x": b"1"})
    part = Archive("https://official.invalid/by-hand.tar", hashlib.md5(content).hexdigest(), len(content))
    monkeypatch.setitem(data_download.DATASETS, "voc12", (part,))
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "by-hand.tar").write_bytes(content)
    download_dataset("voc12", tmp_path, keep_archives=True, progress=False)
    assert (tmp_path / "VOCdevkit" / "VOC2012" / "x").exists()
    assert (tmp_path / "archives" / "by-hand.tar").exists()


def test_an_unknown_data_set_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="voc07, voc12, voc0712, coco2017"):
        download_dataset("voc99", tmp_path)


def test_voc_digests_are_those_torchvision_states() -> None:
    voc = pytest.importorskip("torchvision.datasets.voc")
    stated = {entry["url"]: entry["md5"] for entry in voc.DATASET_YEAR_DICT.values()}
    assert all(stated[archive.url] == archive.md5 for archive in DATASETS["voc0712"])
