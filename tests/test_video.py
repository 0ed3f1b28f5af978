"""Video files and streams: writing and reading, truncated files, killed writers, reconnecting streams."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from prediction import codecs, video
from prediction.codecs import CODECS, choose_codec, encoder_command, find_encoder
from prediction.video import LiveReader, TimedWriter, VideoReader, VideoWriter
from utils.errors import RunError, UserError

REPOSITORY = Path(__file__).resolve().parent.parent

FIXTURES = Path(__file__).resolve().parent / "fixtures"


def grey(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def write(path: Path, frames: int = 12, codec: str = "mp4v", fps: float = 12.0) -> Path:
    with VideoWriter(path, fps, (48, 64), codec) as writer:
        for number in range(frames):
            writer.write(grey(20 * number % 250))
    return path


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_written_video_has_its_rate_and_size(tmp_path: Path, codec: str) -> None:
    if codec == "h264" and find_encoder(codec) is None:
        pytest.skip("there is no ffmpeg command with an H.264 encoder")
    path = write(tmp_path / f"clip{CODECS[codec].suffix}", codec=codec, fps=29.97)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert reader.fps == pytest.approx(29.97, abs=0.01) and reader.size == (48, 64)
    assert [frame.index for frame in frames] == list(range(12)) and not reader.cut
    assert frames[6].time == pytest.approx(6 / 29.97, abs=1e-3)
    assert [abs(int(frame.image.mean()) - 20 * frame.index) <= 6 for frame in frames] == [True] * 12
    assert sorted(tmp_path.iterdir()) == [path]


def test_frames_are_rgb(tmp_path: Path) -> None:
    image = grey(0)
    image[..., 0] = 220
    with VideoWriter(tmp_path / "red.mp4", 5, (48, 64)) as writer:
        writer.write(image)
    with VideoReader(tmp_path / "red.mp4") as reader:
        red, green, blue = next(iter(reader)).image.mean(axis=(0, 1))
    assert red > 150 and green < 60 and blue < 60


def test_a_truncated_video_reports_the_number_of_read_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    with VideoWriter(path, 12, (48, 64), "mjpg") as writer:
        for _ in range(12):
            writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.65)])
    with VideoReader(path) as reader:
        frames = len(list(reader))
    assert 4 <= frames <= 9
    assert reader.cut == f"{frames} of 12 frames"


def test_a_video_whose_end_with_its_index_is_missing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plain.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(12):
        writer.write(grey(9))
    writer.release()
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match="decoded"):
        VideoReader(path)


@pytest.mark.parametrize("content", [b"", b"no video at all", b"<html></html>" * 99])
def test_a_file_that_is_not_a_video_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    for path in (tmp_path / "x.mp4", tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(UserError):
            VideoReader(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo") or sys.platform == "win32", reason="names on Windows are always Unicode")
def test_names_that_are_not_utf8_and_pipes_do_no_harm(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4"))
    write(tmp_path / "clip.mp4").rename(strange)
    with VideoReader(strange) as reader:
        assert len(list(reader)) == 12
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="not a regular file"):
        VideoReader(tmp_path / "pipe.mp4")


def test_a_writer_that_is_killed_leaves_a_video_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "killed.mp4"
    program = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import numpy as np
from pathlib import Path
from prediction.video import VideoWriter
writer = VideoWriter(Path({str(path)!r}), 25, (240, 320))
noise = np.random.default_rng(0)
for _ in range(60):
    writer.write(noise.integers(0, 255, (240, 320, 3), dtype=np.uint8))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=1500)
    with VideoReader(path) as reader:
        assert len(list(reader)) >= 30


def test_a_full_disk_is_reported_with_the_number_of_written_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10.0, (48, 64))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    monkeypatch.setattr("prediction.video.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RunError, match=r"a.mp4: the disk is full after 4 frames: 1000 bytes are free; free some space"):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert len(list(reader)) == 4


def test_a_writer_without_frames_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "none.mp4", 25, (48, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        VideoWriter(tmp_path / "no" / "clip.mp4", 25, (48, 64))


def test_live_frames_are_written_so_that_time_runs_as_it_did(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "live.mp4", 10, (48, 64)) as writer:
        timed = TimedWriter(writer)
        for at in (0.0, 0.01, 0.5, 1.0):
            timed.write(grey(50), at)
    assert writer.frames_written == 11


def test_the_kind_of_a_file_is_known_by_suffix_or_content(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4").rename(tmp_path / "clip.bin")
    (tmp_path / "x.png").write_bytes(cv2.imencode(".png", grey(3))[1].tobytes())
    assert video.is_video(clip) and video.is_video("a.MKV")
    assert not video.is_video(tmp_path / "x.png") and not video.is_video(tmp_path / "none")


# --- streams ---------------------------------------------------------------------------------------------------------


class Camera:
    """A camera that sends MJPEG over HTTP and closes the connection after `frames` images."""

    def __init__(self, frames: int, pause: float = 0.01) -> None:
        camera = self
        self.connections = self.sent = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(frames):
                        camera.sent += 1
                        jpeg = cv2.imencode(".jpg", grey(camera.sent * 2 % 250))[1].tobytes()
                        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                        self.wfile.write(head + jpeg + b"\r\n")
                        time.sleep(pause)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/camera"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    camera = Camera(frames=10)
    yield camera
    with contextlib.suppress(OSError):
        camera.stop()


def test_a_stream_that_drops_is_opened_again_and_one_that_stays_dead_is_an_error_after_five_attempts(
    camera: Camera, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = LiveReader(camera.address, back_off=0.01)
    indices = []
    with pytest.raises(RunError, match="no frames received after 5 attempts"):
        for frame in reader:
            indices.append(frame.index)
            assert frame.image.shape == (48, 64, 3) and frame.lag >= 0
            if camera.connections >= 3 and camera.server.socket.fileno() >= 0:
                camera.stop()
    reader.close()
    assert camera.connections >= 3
    assert indices == list(range(len(indices))) and len(indices) > 10
    assert "attempt 5 of 5" in capsys.readouterr().err


def test_a_slow_reader_gets_the_newest_frame(camera: Camera) -> None:
    with LiveReader(camera.address, back_off=0.01) as reader:
        frames = iter(reader)
        next(frames)
        time.sleep(0.3)
        late = next(frames)
    assert reader.dropped >= 1
    assert late.lag < 0.25


def test_a_missing_webcam_is_reported_at_once() -> None:
    with LiveReader(97) as reader, pytest.raises(RunError, match="no frames received"):
        next(iter(reader))


def test_a_webcam_is_opened_by_its_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.avi", codec="mjpg")
    monkeypatch.setattr(video, "open_stream", lambda address: cv2.VideoCapture(str(clip)) if address == 0 else None)
    with LiveReader(0, reconnects=0) as reader:
        frame = next(iter(reader))
    assert frame.image.shape == (48, 64, 3) and reader.size == (48, 64)


# ---- codecs and times


def test_h264_is_taken_where_there_is_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, name in ((("/usr/bin/ffmpeg", "libx264"), "h264"), (None, "mp4v")):
        monkeypatch.setattr(codecs, "find_encoder", lambda codec, found=found: found)
        assert choose_codec("auto") == name and choose_codec("vp9") == "vp9"


def test_without_the_command_or_its_encoder_h264_is_rejected_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    find_encoder.cache_clear()
    try:
        assert find_encoder("h264") is None
        monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
        with pytest.raises(RunError, match="install ffmpeg, or try --codec mp4v"):
            VideoWriter(tmp_path / "a.mp4", 10, (48, 64), "h264")
    finally:
        find_encoder.cache_clear()


@pytest.mark.skipif(find_encoder("h264") is None, reason="there is no ffmpeg command with an H.264 encoder")
def test_h264_of_any_size_has_what_browsers_need_and_an_error_of_the_encoder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, 10, (47, 63), "h264") as writer:
        for level in (10, 200):
            writer.write(grey(level, (47, 63)))
    data = path.read_bytes()
    assert b"avc1" in data and data.index(b"moov") < data.index(b"mdat")  # plays while it is loaded
    with VideoReader(path) as reader:
        assert [abs(int(frame.image.mean()) - level) < 8 for frame, level in zip(reader, (10, 200), strict=True)]
    monkeypatch.setattr("prediction.video.encoder_command", lambda *a: [*encoder_command(*a)[:-1], str(tmp_path)])
    with pytest.raises(RunError, match="ffmpeg cannot write the video"):
        writer = VideoWriter(tmp_path / "b.mp4", 10, (48, 64), "h264")
        for _ in range(500):
            writer.write(grey(1))
        writer.close()


def test_times_are_those_of_the_container_and_every_nth_frame_keeps_its_own() -> None:
    times = [0.0, 0.04, 0.08, 0.12, 0.16, 0.8, 1.84, 1.88, 1.92, 1.96]  # as ffprobe lists them
    with VideoReader(FIXTURES / "variable_rate.mp4") as reader:
        assert [frame.time for frame in reader] == pytest.approx(times)
        assert reader.fps == 5.0 and reader.write_fps == pytest.approx(25)
    with VideoReader(FIXTURES / "variable_rate.mp4", every=3) as reader:
        frames = list(reader)
    assert [frame.index for frame in frames] == [0, 3, 6, 9] and not reader.cut
    assert [frame.time for frame in frames] == pytest.approx(times[::3])


def test_frames_of_a_video_of_variable_rate_are_written_at_their_times(tmp_path: Path) -> None:
    with VideoReader(FIXTURES / "variable_rate.mp4") as reader:
        frames = list(reader)
        with VideoWriter(tmp_path / "a.mp4", reader.write_fps, reader.size) as writer:
            timed = TimedWriter(writer)
            for frame in frames:
                timed.write(frame.image, frame.time)
    with VideoReader(tmp_path / "a.mp4") as reader:
        written = list(reader)
    assert len(written) == 50 and written[-1].time == pytest.approx(1.96)
    near = [np.abs(written[round(frame.time * 25)].image.astype(int) - frame.image).mean() for frame in frames]
    assert max(near) < 12


def test_a_codec_without_a_decoder_is_named() -> None:
    with VideoReader(FIXTURES / "av1.mp4") as reader:
        try:
            assert len(list(reader)) == 6  # some packages of OpenCV can decode it
        except UserError as error:
            assert "is AV1 video, which this OpenCV cannot decode; convert it: ffmpeg" in str(error)
