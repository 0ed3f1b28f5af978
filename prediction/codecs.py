"""The codecs of written videos, and the encoder that this machine has for each."""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Codec:
    """A kind of video file.

    Args:
        suffix: suffix of the file.
        container: suffix by which OpenCV's FFmpeg chooses the container.
        code: four-character code.
        plays: whether browsers and phones play it.
        encoders: encoders of the `ffmpeg` command for it, best first; empty if OpenCV writes it.
    """

    suffix: str
    container: str
    code: str
    plays: bool = True
    encoders: tuple[str, ...] = ()


# --codec -> codec. `auto` is `h264` if an encoder is available, else `mp4v`.
CODECS = {
    # always fragmented MP4: a truncated file still plays up to the cut
    "h264": Codec(".mp4", ".ismv", "avc1", encoders=("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")),
    "mp4v": Codec(".mp4", ".ismv", "mp4v", plays=False),
    "vp9": Codec(".webm", ".webm", "VP90"),  # about ten times slower to write
    "mjpg": Codec(".avi", ".avi", "MJPG", plays=False),  # large files, the fastest to write
}
CODEC_NAMES = ("auto", *CODECS)
# `ultrafast` takes as long as OpenCV's mp4v, `superfast` twice as long (docs/SPEED.md)
ENCODER_OPTIONS = {"libx264": ("-preset", "ultrafast", "-crf", "23")}


def choose_codec(name: str) -> str:
    """`auto` to a key of `CODECS`."""
    if name != "auto":
        return name
    return "h264" if find_encoder("h264") else "mp4v"


@functools.cache
def find_encoder(codec: str) -> tuple[str, str] | None:
    """The `ffmpeg` command of this machine and its encoder for a codec; None if OpenCV has to write it.

    OpenCV's packages hold no H.264 encoder. The command is a separate program, available from
    Linux distributions, Homebrew and conda.
    """
    command = shutil.which("ffmpeg") if CODECS[codec].encoders else None
    if command is None:
        return None
    try:
        known = subprocess.run(
            [command, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=20, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return next(((command, encoder) for encoder in CODECS[codec].encoders if encoder in known), None)


def encoder_command(codec: str, path: str, fps: float, size: tuple[int, int]) -> list[str]:
    """The `ffmpeg` command line that writes I420 frames of (height, width) from its stdin to `path`."""
    found = find_encoder(codec)
    assert found is not None
    command, encoder = found
    height, width = size
    return [
        *(command, "-hide_banner", "-loglevel", "error", "-nostdin", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", f"{fps:.6f}", "-i", "pipe:0"),
        *("-an", "-c:v", encoder, *ENCODER_OPTIONS.get(encoder, ()), "-threads", "1", "-pix_fmt", "yuv420p"),
        *("-g", str(max(1, round(2 * fps))), "-movflags", "+frag_keyframe+empty_moov+default_base_moof"),
        *("-f", "mp4", path),
    ]
