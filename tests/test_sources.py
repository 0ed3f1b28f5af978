"""Sources of predict.py: all ways to give images and videos, with real files and a real server."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from imaging.image_io import write_image
from prediction.sources import Source, list_sources, unique_names
from prediction.video import VideoWriter


def picture(path: Path, level: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((20, 30, 3), level, np.uint8))
    return path


def clip(path: Path) -> Path:
    with VideoWriter(path, 10, (48, 64)) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/c.jpg", ".hidden/d.jpg"):
        picture(tmp_path / "in" / name)
    clip(tmp_path / "in" / "v.mp4")
    (tmp_path / "in" / "notes.md").write_text("no picture")
    return tmp_path / "in"


def names(sources: list[Source]) -> list[str]:
    return [Path(source.name).name for source in sources]


def test_a_folder_gives_its_images_and_videos_in_order_and_others_only_when_asked(folder: Path) -> None:
    sources, skips = list_sources([str(folder)])
    assert names(sources) == ["a.png", "b.jpg", "v.mp4"] and not skips
    assert [source.kind for source in sources] == ["image", "image", "video"]
    assert names(list_sources([str(folder)], recursive=True)[0]) == ["a.png", "b.jpg", "v.mp4", "c.jpg"]


def test_globs_match_here_and_below(folder: Path) -> None:
    assert names(list_sources([str(folder / "*.jpg")])[0]) == ["b.jpg"]
    assert names(list_sources([str(folder / "**" / "*.jpg")])[0]) == ["b.jpg", "c.jpg"]
    sources, skips = list_sources([str(folder / "*.tif")])
    assert not sources and skips[0].what == "matches no file"


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    picture(tmp_path / "photo [1].jpg")
    assert names(list_sources([str(tmp_path / "photo [1].jpg")])[0]) == ["photo [1].jpg"]


def test_a_list_names_images_relative_to_itself_with_comments_bom_and_windows_ends(folder: Path) -> None:
    text = f"# comment\r\nb.jpg\r\n\r\nsub/c.jpg\r\n{folder / 'a.png'}\r\nnone.jpg\r\n"
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    sources, skips = list_sources([str(folder / "list.txt")])
    assert names(sources) == ["b.jpg", "c.jpg", "a.png"]
    assert len(skips) == 1 and skips[0].where.endswith("none.jpg")


@pytest.mark.parametrize("content", [b"", b"\n\n# only\n", b"\0\1\2binary"])
def test_an_empty_list_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    sources, skips = list_sources([str(tmp_path / "list.txt")])
    assert not sources and skips[0].code == "bad_list"


def test_a_list_that_contains_itself_terminates(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("list.txt\n")
    sources, _ = list_sources([str(tmp_path / "list.txt")])
    assert [source.kind for source in sources] == ["image"]  # and reading it will say that it is no picture


def test_stdin_is_an_image_or_a_list(folder: Path) -> None:
    data = (folder / "b.jpg").read_bytes()
    (source,), _ = list_sources(["-"], stdin=io.BytesIO(data))
    assert source.name == "stdin" and source.read_image().shape == (20, 30, 3)
    listed, _ = list_sources(["-"], stdin=io.BytesIO(f"{folder / 'a.png'}\n{folder / 'v.mp4'}\n".encode()))
    assert names(listed) == ["a.png", "v.mp4"]
    nothing, skips = list_sources(["-"], stdin=io.BytesIO(b""))
    assert not nothing and skips[0].where == "stdin"


def test_numbers_are_webcams_unless_there_is_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "1.jpg").rename(tmp_path / "1")
    sources, _ = list_sources(["0", "1", "rtsp://10.0.0.1/cam"])
    assert [source.kind for source in sources] == ["stream", "image", "stream"]
    assert sources[0].address == 0 and sources[2].address == "rtsp://10.0.0.1/cam"
    assert sources[0].file_name == "webcam0"


def test_missing_sources_are_skipped_and_the_rest_is_processed(folder: Path) -> None:
    (folder / "empty").mkdir()
    given = [folder / "none.jpg", folder / "b.jpg", folder / "empty"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
        given += [folder / "pipe.jpg", folder / "broken.jpg"]
    sources, skips = list_sources([str(path) for path in given])
    assert names(sources) == ["b.jpg"] and len(skips) == len(given) - 1
    assert {skip.what for skip in skips} >= {"does not exist", "contains no images or videos"}


@pytest.mark.skipif(sys.platform == "win32" or sys.platform == "darwin", reason="names here are always Unicode")
def test_names_that_are_not_utf8_can_be_listed_and_read(tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/\xff\xfe \xe7.jpg"
    picture(tmp_path / "x.jpg").rename(os.fsdecode(strange))
    for given in (str(tmp_path), os.fsdecode(strange)):
        (source,), _ = list_sources([given])
        assert source.read_image().shape == (20, 30, 3)
        source.file_name.encode("utf-8")


class Site:
    """A server with a few files."""

    def __init__(self, files: dict[str, tuple[str, bytes, int | None]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] not in files:
                    self.send_error(404)
                    return
                kind, data, length = files[self.path.partition("?")[0]]
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    jpeg, video = (folder / "b.jpg").read_bytes(), (folder / "v.mp4").read_bytes()
    site = Site(
        {
            "/a.jpg": ("image/jpeg", jpeg, None),
            "/plain": ("application/octet-stream", jpeg, None),
            "/clip": ("application/octet-stream", video, None),
            "/cam": ("multipart/x-mixed-replace; boundary=x", b"", None),
            "/cut.jpg": ("image/jpeg", jpeg[:200], len(jpeg)),
            "/cut.mp4": ("video/mp4", video[: len(video) // 2], len(video)),
            "/page": ("text/html", b"<html>not found</html>", None),
        }
    )
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_urls_give_images_videos_and_streams_by_their_content(site: Site, tmp_path: Path) -> None:
    paths = ["/a.jpg?size=1", "/plain", "/clip", "/cam"]
    sources, skips = list_sources([site.root + path for path in paths], download_folder=tmp_path)
    assert not skips
    assert [source.kind for source in sources] == ["image", "image", "video", "stream"]
    assert sources[0].read_image().shape == (20, 30, 3) and sources[0].file_name == "a.jpg"
    with sources[2].open_video() as reader:
        assert len(list(reader)) == 3


def test_failing_urls_are_skipped_with_their_reason(site: Site) -> None:
    sources, skips = list_sources(
        [site.root + "/none.jpg", site.root + "/cut.jpg", site.root + "/cut.mp4", "http://127.0.0.1:9/x.jpg", "http://"]
    )
    assert not sources and len(skips) == 5
    assert "404" in skips[0].what and all("was lost" in skip.what for skip in skips[1:3])


def test_an_html_response_is_not_an_image(site: Site) -> None:
    (source,), _ = list_sources([site.root + "/page"])
    with pytest.raises(ValueError, match="web page"):
        source.read_image()


def test_outputs_of_equal_names_get_different_ones() -> None:
    given = ["x/a.jpg", "x/a.png", "y/a.jpg", "y/A.JPG", "x/v.avi", "x/v.mp4", "z/.jpg", "x/a-2.jpg"]
    sources = [
        Source("video" if Path(name).suffix in (".avi", ".mp4") else "image", name, Path(name)) for name in given
    ]

    def suffix(source: Source) -> str:
        return ".mp4" if source.kind == "video" else Path(source.name).suffix.lower() or ".jpg"

    pairs = list(unique_names(sources, suffix))
    assert pairs[:3] == [("a", "a.jpg"), ("a.png", "a.png"), ("a-2", "a-2.jpg")]
    assert pairs[4:6] == [("v", "v.mp4"), ("v-2", "v-2.mp4")]
    drawn = [pair[1].lower() for pair in pairs]
    keys = [pair[0].lower() for pair in pairs]
    assert len(set(drawn)) == len(drawn) and len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "name", ["../../etc/x.jpg", "http://h/..%2f..%2fx.jpg", "a\nb.jpg", "c:\\x\\y.jpg", "http://host/"]
)
def test_a_source_never_names_a_file_outside_the_output_folder(name: str) -> None:
    file_name = Source("image", name, Path(name)).file_name
    assert file_name and not set(file_name) & set('/\\:\n"') and not file_name.startswith(".")
