"""Frames per second of predict.py on a video beside those of the network alone: `python -m benchmarks.video`.

Starting up is left out: a run over a few frames is subtracted from one over all. Besides frames a second it tells CPU
time, which holds on a machine that others use too: what is done beside the network fits on a second core as long as it
is less than the network takes on the first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from data.tools.demo import draw_scene
from nets.export.formats import RUNTIMES
from nets.export.load import load_runtime
from nets.weights.bundled import find_model
from prediction.command import predict
from prediction.options import PredictOptions
from prediction.video import VideoReader, VideoWriter
from utils.config import parse_options
from utils.errors import run_command

BATCH = 8  # predict.py's
SHORT = BATCH  # frames of the run that is subtracted


@dataclass(frozen=True)
class Cost:
    """Seconds for a frame.

    Args:
        wall: by the clock on the wall.
        cpu: CPU time of all threads.
    """

    wall: float
    cpu: float


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """A drawn scene that the camera pans over."""
    scene = cv2.resize(draw_scene(0, 0)[0], (2 * width, height), interpolation=cv2.INTER_CUBIC)
    with VideoWriter(path, 25.0, (height, width)) as writer:
        for number in range(frames):
            left = round((1 - abs(1 - 2 * number / frames)) * width)
            writer.write(np.ascontiguousarray(scene[:, left : left + width]))


def timed(work: Callable[[], object], frames: int) -> Cost:
    """What `work` takes for each of its frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) / frames, (time.process_time() - cpu) / frames)


def network_alone(checkpoint: Path, runtime: str, video: Path) -> Callable[[int], Cost]:
    """The network on the video's own frames, prepared beforehand."""
    network = load_runtime(checkpoint, "cpu", runtime)
    letterbox = network.config.letterbox
    with VideoReader(video) as reader:
        frames = [letterbox.apply(frame.image) for frame, _ in zip(reader, range(4 * BATCH), strict=False)]
    batches = [np.stack(frames[start : start + BATCH]) for start in range(0, len(frames), BATCH)]
    network.run(batches[0])

    def run(count: int) -> Cost:
        batch_numbers = [number % len(batches) for number in range(count // BATCH)]
        return timed(lambda: [network.run(batches[number]) for number in batch_numbers], len(batch_numbers) * BATCH)

    return run


def pipeline(checkpoint: Path, runtime: str, video: Path, folder: Path) -> Callable[[int], Cost]:
    """predict.py: decoding, drawing and encoding included, starting up not."""

    def once(frames: int) -> Cost:
        arguments = [str(video), "--checkpoint", str(checkpoint), "--runtime", runtime, "--max-frames", str(frames)]
        arguments += ["--output", str(folder / "out"), "--overwrite", "--device", "cpu"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return timed(lambda: predict(parse_options(PredictOptions, arguments, description="")), 1)

    def run(count: int) -> Cost:
        short, whole = once(SHORT), once(count)
        frames = count - SHORT
        return Cost((whole.wall - short.wall) / frames, (whole.cpu - short.cpu) / frames)

    return run


def main(argv: list[str] | None = None) -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the built-in weights")
    parser.add_argument(
        "--runtime", default="onnxruntime", choices=[r for r in RUNTIMES if r not in ("auto", "fastest")]
    )
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--size", type=int, nargs=2, default=(576, 768), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1, help="of the network; the others take what is left")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(argv)
    if options.frames < 4 * BATCH:
        parser.error(f"--frames: at least {4 * BATCH}")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    checkpoint = find_model(options.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        video = Path(temporary) / "clip.mp4"
        write_video(video, options.frames, *options.size)
        alone = network_alone(checkpoint, options.runtime, video)
        whole = pipeline(checkpoint, options.runtime, video, Path(temporary))
        pairs = [(alone(options.frames), whole(options.frames)) for _ in range(options.repeat)]
    height, width = options.size
    print(f"{checkpoint.name} on {options.runtime}, {options.threads} threads, {width} x {height}, mp4v in and out")
    for name, costs in (("network alone", [a for a, _ in pairs]), ("predict.py", [w for _, w in pairs])):
        wall, cpu = (1e3 * statistics.median(getattr(cost, kind) for cost in costs) for kind in ("wall", "cpu"))
        print(f"{name:<14} {1e3 / wall:7.1f} frames/s, {wall:6.2f} ms a frame, {cpu:6.2f} ms CPU")
    share = statistics.median(a.wall / w.wall for a, w in pairs)
    rest = statistics.median(w.cpu / a.cpu - 1 for a, w in pairs)
    print(f"frames/s beside the network alone: {100 * share:.0f} %")
    print(f"CPU of all else (decoding, preparing, reading, drawing, encoding): {100 * rest:.0f} % of the network's")


if __name__ == "__main__":
    run_command(main)
