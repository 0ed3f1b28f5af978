"""Commands in a shell: closed streams, closed pipes, full disks, slow URLs, long file names."""

from __future__ import annotations

import io
import json
import os
import shutil
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import eval as eval_command
import prediction.sources as sources
import utils.download as downloads
from data.tools.download import extract
from imaging.detections import Detections
from imaging.image_io import write_image
from prediction.outputs import WRITERS, OutputFolder, Result
from prediction.sources import list_sources, unique_names
from utils.download import SlowError, download, open_url, read_chunks
from utils.errors import RunError, run_command
from utils.output_rules import LONGEST_NAME

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# a command that prints, works, prints and works
COMMAND = """
import sys, time
sys.path.insert(0, {root!r})
from utils.errors import run_command

def main(argv):
    read = sys.stdin.read()
    for number in range(2000):
        print("line", number, flush=number % 10 == 0)
    open(argv[0], "w").write("the work" + read)
    print("done", file=sys.stderr)

run_command(main, [sys.argv[1]])
"""
SHELLS = {
    "a closed stdin": ("{command} <&- > /dev/null", 0),
    "a closed stdout": ("{command} < /dev/null >&-", 0),
    "a closed stderr": ("{command} < /dev/null > /dev/null 2>&-", 0),
    "all closed": ("{command} <&- >&- 2>&-", 0),
    "a reader that leaves": ("{command} < /dev/null | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0),
    "a reader that never comes": ("{command} < /dev/null | true; exit ${{PIPESTATUS[0]}}", 0),
    "both readers leave": ("{command} < /dev/null 2>&1 | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0),
}
if Path("/dev/full").exists():
    SHELLS["a full disk"] = ("{command} < /dev/null > /dev/full", 1)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="these are lines for bash")


@needs_bash
@pytest.mark.parametrize("kind", SHELLS)
def test_the_work_completes_with_closed_streams(kind: str, tmp_path: Path) -> None:
    script, result = tmp_path / "command.py", tmp_path / "result"
    script.write_text(COMMAND.format(root=str(REPOSITORY)))
    line, code = SHELLS[kind]
    command = f"{sys.executable} {script} {result}"
    done = subprocess.run(["bash", "-c", line.format(command=command)], capture_output=True, text=True, timeout=1500)
    assert done.returncode == code, done.stderr
    assert result.read_text() == "the work"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code:
        assert "error: stdout: cannot be written: No space left on device; " in done.stderr


@needs_bash
@pytest.mark.slow
def test_predict_writes_all_images_though_its_reader_leaves_after_the_first(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_image(tmp_path / "in" / f"{number}.png", np.full((64, 64, 3), 40 * number, np.uint8))
    line = f"{sys.executable} {REPOSITORY}/predict.py in --output out --save json --device cpu --input-size 64"
    for words in ("| head -1; exit ${PIPESTATUS[0]}", "<&- >&-"):
        done = subprocess.run(["bash", "-c", f"{line} {words}"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "out").glob("*.png"))) == 6
        assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 6
        shutil.rmtree(tmp_path / "out")


# ---- addresses that are slow or endless


@contextmanager
def serving(answer: Callable[[Callable[[bytes], object]], None]) -> Iterator[str]:
    """URL of a server that responds with `answer`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with suppress(OSError):  # the client has had enough
                answer(self.request.sendall)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.jpg"
        server.shutdown()


def drip_head(send: Callable[[bytes], object]) -> None:
    send(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        send(b"a")
        time.sleep(0.05)


def drip_body(send: Callable[[bytes], object]) -> None:
    send(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\xff\xe0")
    while True:
        send(b"a")
        time.sleep(0.05)


def endless(send: Callable[[bytes], object]) -> None:
    send(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\xff\xe0")
    while True:
        send(bytes(65536))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(sources, "IMAGE_BYTES", 10 << 20)


@pytest.mark.parametrize("answer", [drip_head, drip_body, endless])
def test_a_slow_or_endless_url_is_reported_and_skipped(answer: Callable, impatient: None) -> None:
    with serving(answer) as address:
        started = time.monotonic()
        found, skips = list_sources([address])
    assert not found and [skip.where for skip in skips] == [address]
    assert time.monotonic() - started < 300
    words = {drip_head: "no response within", drip_body: "sends only", endless: "is larger than"}
    assert words[answer] in skips[0].what


@pytest.mark.parametrize("answer", [drip_head, drip_body])
def test_a_slow_download_ends_with_an_error(answer: Callable, impatient: None, tmp_path: Path) -> None:
    with serving(answer) as address, pytest.raises(RunError, match=r"no response within|sends only"):
        download(address, tmp_path / "a", progress=False, retries=2, timeout=0.3, sleep=lambda _: None)


def test_a_download_stops_at_its_size(impatient: None, tmp_path: Path) -> None:
    with serving(endless) as address, pytest.raises(RunError, match="sends more bytes than its size"):
        download(address, tmp_path / "a", size=1000, progress=False, sleep=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_the_parts_of_fetching_raise_what_they_say(impatient: None) -> None:
    with serving(drip_head) as address, pytest.raises(SlowError):
        open_url(address)
    with serving(drip_body) as address, open_url(address) as response, pytest.raises(SlowError):
        list(read_chunks(response, 10**9))


# ---- names and disks


def result(name: str, key: str) -> Result:
    found = Detections(np.array([[0.0, 0, 5, 5]]), np.array([0.9]), np.array([0]))
    return Result(name, key, found, (8, 8), np.zeros((8, 8, 3), np.uint8))


def test_a_name_of_253_bytes_can_be_written_in_every_form(tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    names = ["a" * 249 + ".jpg", "é" * 124 + "b.jpg", "語" * 83 + ".jpg", "語" * 82 + "abc.jpg"]
    for name in names:
        assert 250 <= len(os.fsencode(name)) <= 253
        write_image(pictures / name, np.zeros((8, 8, 3), np.uint8))
    found, skips = list_sources([str(pictures)])
    keys = [key for key, _ in unique_names(found, lambda _: ".jpg")]
    assert len(found) == 4 and not skips and len(set(keys)) == 4
    classes = ["語" * 200]
    for kind, make in WRITERS.items():
        writer = make(OutputFolder(tmp_path / kind), classes)
        for source, key in zip(found, keys, strict=True):
            writer.add(result(source.name, key))
        writer.close()
    written = [path.name for path in tmp_path.rglob("*")]
    assert max(len(os.fsencode(name)) for name in written) <= LONGEST_NAME


def test_a_folder_with_an_image_file_name_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    write_image(tmp_path / "y.jpg", np.zeros((8, 8, 3), np.uint8))
    found, skips = list_sources([str(tmp_path)])
    assert [source.file_name for source in found] == ["y.jpg"]
    assert [(skip.where, skip.what) for skip in skips] == [(str(tmp_path / "x.jpg"), "is a folder, not an image")]


class FullDisk:
    """A file on a disk with little free space."""

    def __init__(self, file: io.FileIO, room: int) -> None:
        self.file, self.end = file, room

    def write(self, data: bytes) -> int:
        room = self.end - self.file.tell()
        if room <= 0:
            raise OSError(28, os.strerror(28))
        return self.file.write(data[:room])

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [6, 100, 400, 700])
def test_a_full_disk_error_names_the_file_and_leaves_a_valid_list(tmp_path: Path, room: int) -> None:
    writer = WRITERS["json"](OutputFolder(tmp_path), ["cat"])
    writer._file = FullDisk(writer._file, room)  # type: ignore[attr-defined]
    written = 0
    with pytest.raises(
        RunError, match=r"detections\.json: cannot be written: No space left on device; free some space"
    ):
        for number in range(100):
            writer.add(result(f"{number}.jpg", str(number)))
            written += 1
    writer.close()
    assert len(json.loads((tmp_path / "detections.json").read_text())) == written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_at_the_start_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, os.strerror(28), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"detections\.json: cannot be written: No space left"):
        WRITERS["json"](OutputFolder(tmp_path), ["cat"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("x/a", "x/a/b/c")])
def test_an_archive_with_a_file_and_a_folder_of_one_name_is_rejected(tmp_path: Path, names: tuple[str, str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"1"))
    with pytest.raises(RunError, match="a file and a folder with the same name"):
        extract(tmp_path / "a.tar", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# ---- truth without objects


@pytest.mark.parametrize("boxes", ["none in the images that are scored", "crowds only"])
def test_truth_without_objects_is_scored_without_an_internal_error(
    boxes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_image(tmp_path / f"{number}.jpg", np.zeros((64, 64, 3), np.uint8))
    crowd = int(boxes == "crowds only")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": crowd}
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 64} for n in range(2)]
    truth = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
    found = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 20, 20], "score": 0.5} for n in range(2)]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    limit = [] if crowd else ["--limit", "1"]
    argv = ["--data", str(tmp_path / "truth.json"), "--detections", str(tmp_path / "found.json"), *limit]
    with pytest.raises(SystemExit) as left:
        run_command(eval_command.main, [*argv, "--json", str(tmp_path / "figures.json")])
    assert left.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "figures.json").exists()
