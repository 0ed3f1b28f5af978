"""Read and write video files, and read live streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.text import counted

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors are reported by this module instead

import cv2
import numpy as np

from prediction.codecs import CODECS, encoder_command, find_encoder
from utils.errors import RunError, UserError, warn

if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_SUFFIXES = "3gp asf avi flv m2ts m4v mjpeg mjpg mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
DEFAULT_FPS = 25.0  # for a file or camera without a frame rate
RECONNECTS = 5  # consecutive attempts to reconnect to a lost stream
BACK_OFF = 0.5  # seconds before the first attempt, doubled each time
SPARE_BYTES = 1 << 20  # reserved on the disk to finalise a video
FASTEST_FPS = 60.0  # maximum rate of a written video with irregular frames
STREAM_TIMEOUT = 10.0  # seconds without an answer or a frame before a stream counts as lost

# codecs that OpenCV's packages may open without a decoder, by four-character code
OPTIONAL_DECODERS = {b"av01": "AV1", b"hev1": "HEVC", b"hvc1": "HEVC", b"hevc": "HEVC", b"vvc1": "VVC"}


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Args:
        image: (H, W, 3) uint8 RGB.
        index: its index, from 0; a live stream counts the frames that were used.
        time: seconds since the start.
        lag: seconds between arrival and use; 0 for a file.
    """

    image: np.ndarray
    index: int
    time: float
    lag: float = 0.0


class VideoReader:
    """Iterate over the frames of a video file, in order, with the timestamps of the container.

    Args:
        path: the file.
        every: yield every N-th frame only; the others are not converted to arrays.

    Attributes:
        fps: average frames per second.
        write_fps: the frame rate for writing; that of the first frames if they are faster than the average, as in
            videos of phones. Known once iteration has begun.
        size: (height, width), pixels.
        frame_count: number of frames according to the file, or None if unknown.
        frames_read: number of frames read so far.

    Raises:
        UserError: if it is not a file, or the video cannot be decoded.
    """

    live = False
    dropped = 0

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path, self.every = Path(path), every
        self.frames_read = 0
        _check_file(self.path)
        with _safe_name(self.path) as name:
            self._capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError(path, "is not a video that can be decoded, or is truncated", "copy it again")
        self.fps = _plausible_fps(self._capture.get(cv2.CAP_PROP_FPS))
        self.write_fps = self.fps / every
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = int(count) if 0 < count < 1e9 else None
        height, width = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        self.size = (height, width)
        self._start, self._time = 0.0, -1.0

    def __iter__(self) -> Iterator[Frame]:
        first, second = self._read(), self._read()
        if first is not None and second is not None:
            rate = 1 / (second.time - first.time)
            self.write_fps = rate if self.write_fps * 1.5 < rate <= FASTEST_FPS else self.write_fps
        frame: Frame | None
        for frame in (first, second):
            if frame is not None:
                yield frame
        while second is not None and (frame := self._read()) is not None:
            yield frame

    def _read(self) -> Frame | None:
        """The next requested frame; None at the end."""
        while self._capture.grab():
            index, at = self.frames_read, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self.frames_read += 1
            if index == 0:
                self._start = at
            at -= self._start
            # some containers have no timestamps, or duplicate ones
            self._time = at if index == 0 or at > self._time else self._time + 1 / self.fps
            if index % self.every == 0:
                done, image = self._capture.retrieve()
                if not done:
                    return None
                return Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image), index, self._time)
        if not self.frames_read and (name := self._codec_name()):
            what = f"is {name} video, which this OpenCV cannot decode"
            raise UserError(self.path, what, f"convert it: ffmpeg -i {self.path.name} -c:v libx264 new.mp4")
        return None

    def _codec_name(self) -> str:
        """`AV1`, `HEVC` or `VVC`; else empty."""
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        return OPTIONAL_DECODERS.get(code.to_bytes(4, "little").lower(), "")

    @property
    def cut(self) -> str:
        """`7 of 12 frames` for a truncated file; empty for a complete one.

        Some containers only estimate their number of frames, so one in a hundred may be missing.
        """
        if self.frame_count is None or self.frame_count - self.frames_read <= self.frame_count // 100:
            return ""
        return f"{self.frames_read} of {self.frame_count} frames"

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LiveReader:
    """Iterate over the newest frames of a camera or stream; frames that arrive too fast are dropped.

    A thread reads the stream. A lost stream is reopened, up to five times in a row with growing pauses.

    Args:
        address: the number of a webcam, or an rtsp://, http:// or other address that FFmpeg opens.
        reconnects: number of consecutive attempts.
        back_off: seconds before the first attempt, doubled each time; None uses half a second.

    Attributes:
        fps, size: as reported by the stream; size is known after the first frame.
        dropped: frames that were replaced by newer ones before they were used.

    Raises:
        RunError: while iterating, if the stream is lost and cannot be reopened.
    """

    live = True
    frame_count = None
    cut = ""

    @property
    def write_fps(self) -> float:
        """The frame rate for writing."""
        return self.fps

    def __init__(self, address: int | str, reconnects: int = RECONNECTS, back_off: float | None = None) -> None:
        self.address = address
        self.reconnects, self.back_off = reconnects, BACK_OFF if back_off is None else back_off
        self.fps = DEFAULT_FPS
        self.size: tuple[int, int] | None = None
        self.dropped = 0
        self.frames_read = 0
        self._news = threading.Condition()
        self._newest: tuple[np.ndarray, float] | None = None
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reader of {address}", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        started: float | None = None
        while True:
            with self._news:
                while self._newest is None and self._error is None and not self._stop.is_set():
                    self._news.wait(0.5)  # Ctrl-C does not interrupt a wait without timeout on every system
                newest, self._newest = self._newest, None
                if newest is None:
                    if self._error is not None:
                        raise self._error
                    return
            image, arrived = newest
            started = arrived if started is None else started
            index = self.frames_read
            self.frames_read += 1
            lag = time.monotonic() - arrived
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index, arrived - started, lag)

    def close(self) -> None:
        self._stop.set()
        with self._news:
            self._news.notify_all()
        self._thread.join(timeout=STREAM_TIMEOUT)

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stop.is_set():
                if self._read_until_lost():
                    failures = 0
                if self._stop.is_set():
                    return
                if failures >= self.reconnects or (failures == 0 and self._camera_is_missing()):
                    break
                pause = self.back_off * 2**failures
                failures += 1
                warn(self.address, "no frames received", f"attempt {failures} of {self.reconnects} in {pause:g} s")
                self._stop.wait(pause)
            todo = "check the camera" if isinstance(self.address, int) else "check the address and the camera"
            attempts = f" after {failures} attempts" if failures else ""
            self._fail(RunError(self.address, f"no frames received{attempts}", todo))
        except Exception as error:
            self._fail(error)

    def _camera_is_missing(self) -> bool:
        """Whether a webcam never gave a frame, so that reconnecting is useless."""
        return isinstance(self.address, int) and self.size is None

    def _read_until_lost(self) -> bool:
        """Read until the stream is lost; returns whether it gave at least one frame."""
        capture = open_stream(self.address)
        came = False
        try:
            if not capture.isOpened():
                return False
            self.fps = _plausible_fps(capture.get(cv2.CAP_PROP_FPS))
            while not self._stop.is_set():
                done, image = capture.read()
                if not done:
                    return came
                came = True
                with self._news:
                    self.dropped += self._newest is not None
                    self.size = image.shape[:2]
                    self._newest = image, time.monotonic()
                    self._news.notify_all()
            return came
        finally:
            capture.release()

    def _fail(self, error: Exception) -> None:
        with self._news:
            self._error = error
            self._news.notify_all()


def open_stream(address: int | str) -> cv2.VideoCapture:
    """OpenCV's capture of a webcam number or stream address, with time-outs."""
    if isinstance(address, int):
        return cv2.VideoCapture(address)
    milliseconds = int(STREAM_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


class VideoWriter:
    """Write a video file that is playable up to its last written part even if the program is killed.

    Args:
        path: the file; its suffix must match the codec.
        fps: frames per second.
        size: (height, width), pixels.
        codec: a key of `CODECS`.

    Raises:
        RunError: if no encoder is available, or (on close) the written file is not readable.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int], codec: str = "mp4v") -> None:
        self.path, self.fps, self.size = path, fps, size
        self.frames_written = 0
        if find_encoder(codec) is not None:
            self._working = path
            self._writer: Any = _CommandWriter(path, fps, size, codec)
            return
        container, code = CODECS[codec].container, CODECS[codec].code
        self._working = path.with_suffix(container)
        if self._working != path and self._working.exists():
            raise UserError(self._working, "exists and would be overwritten", "move it, or choose another --output")
        self._writer = self._open(self._working, code)
        if not self._writer.isOpened() and self._working != path:  # this FFmpeg does not support fragmented MP4
            self._working = path
            self._writer = self._open(path, code)
        if not self._writer.isOpened():
            others = " or ".join(name for name in CODECS if name != codec and not CODECS[name].encoders)
            todo = f"install ffmpeg, or try --codec {others}" if CODECS[codec].encoders else f"try --codec {others}"
            raise RunError(path, f"this OpenCV cannot write {codec} video", todo)
        self._rename()

    def write(self, image: np.ndarray) -> None:
        """Append an RGB frame; a frame of another size is resized."""
        if image.shape[:2] != self.size:
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        is_command = isinstance(self._writer, _CommandWriter)
        self._writer.write(image if is_command else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.frames_written += 1
        free = shutil.disk_usage(self.path.parent).free
        if free < SPARE_BYTES:  # OpenCV does not report failed writes
            what = f"the disk is full after {counted(self.frames_written, 'frame')}: {free} bytes are free"
            raise RunError(self.path, what, "free some space; the part that was written can be played")

    def close(self) -> None:
        self._writer.release()
        self._rename()
        if not self.frames_written:
            self.path.unlink(missing_ok=True)
            return
        _name_brand(self.path)
        check = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        readable = check.isOpened() and check.read()[0]
        check.release()
        if not readable:
            raise RunError(self.path, "the video was not written", "check whether the disk is full")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path, code: str) -> cv2.VideoWriter:
        return cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), self.fps, self.size[::-1])

    def _rename(self) -> None:
        """Rename to the final suffix (FFmpeg chose the container by it); an open file cannot be renamed on Windows."""
        if self._working != self.path:
            with contextlib.suppress(PermissionError):
                os.replace(self._working, self.path)
                self._working = self.path


class _CommandWriter:
    """Write a video with the `ffmpeg` command, which reads frames from a pipe."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], codec: str) -> None:
        self.path = path
        if not path.parent.is_dir():
            raise RunError(path, "the video cannot be written: the folder does not exist", "create it first")
        height, width = size
        self._pad = (0, height % 2, 0, width % 2)  # I420 needs even sides
        command = encoder_command(codec, str(path.resolve()), fps, (height + height % 2, width + width % 2))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in release()
        # own session: Ctrl-C stops this program, which then finalises the video
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True
        )

    def write(self, image: np.ndarray) -> None:
        """Append an RGB frame."""
        if any(self._pad):
            image = cv2.copyMakeBorder(image, *self._pad, cv2.BORDER_REPLICATE)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).data)
        except (BrokenPipeError, ValueError) as error:
            raise self._failure() from error

    def release(self) -> None:
        """Wait until the file is complete."""
        if self._errors.closed:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise self._failure()
        self._errors.close()

    def _failure(self) -> RunError:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
        self._errors.close()
        return RunError(
            self.path, f"ffmpeg cannot write the video ({lines[-1][:200]})", "free some space, or try --codec mp4v"
        )


class TimedWriter:
    """Write frames at a constant rate: each is repeated until the next one arrived, which keeps the timing.

    Args:
        writer: the video writer.
    """

    def __init__(self, writer: VideoWriter) -> None:
        self.writer = writer
        self._last: np.ndarray | None = None

    def write(self, image: np.ndarray, at: float) -> None:
        """Write `image`, captured `at` seconds after the first frame."""
        due = round(at * self.writer.fps)
        while self._last is not None and self.writer.frames_written < due:
            self.writer.write(self._last)
        self._last = image
        if self.writer.frames_written <= due:
            self.writer.write(image)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video, by its suffix or else by its first bytes."""
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return is_video_content(file.read(16))
    except OSError:
        return False


def is_video_content(head: bytes) -> bool:
    """Whether the first 16 bytes belong to an MP4, Matroska, AVI, FLV or MPEG file."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # still images: same container
    known = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
    return head.startswith(known) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        what = "is a broken link" if path.is_symlink() else error.strerror or str(error)
        raise UserError(path, what, "check the name") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(path, "is not a regular file", "give a video file")
    if status.st_size == 0:
        raise UserError(path, "is empty", "copy it again")


@contextlib.contextmanager
def _safe_name(path: Path) -> Iterator[str]:
    """A file name that is safe for OpenCV, which aborts the process on names that are not UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"video{path.suffix if path.suffix.isascii() else ''}"
            link.symlink_to(path.resolve())
            yield str(link)
        return
    yield str(path)


def _plausible_fps(fps: float) -> float:
    return float(fps) if 0.1 <= fps <= 1000 else DEFAULT_FPS


def _name_brand(path: Path) -> None:
    """Set the MP4 brand of the finished file: the fragmented muxer writes the Smooth Streaming brand."""
    with open(path, "r+b") as file:
        head = file.read(24)
        if head[4:8] == b"ftyp" and head[8:12] == b"isml":
            file.seek(8)
            file.write(b"iso5\x00\x00\x02\x00iso6mp41")
