"""The options of benchmark.py."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nets.export.formats import FORMAT_OF_RUNTIME
from utils.config import option

PEERS = ("yolox_nano", "ssdlite")
# CPU time is meaningful on a busy machine: with one thread it equals the wall time on an idle core
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of benchmark.py."""

    models: tuple[str, ...] = option(
        (),
        "checkpoints and exported files; without any the built-in weights",
        nargs="*",
        positional=True,
        metavar="MODEL",
    )
    runtimes: tuple[str, ...] = option(
        ("torch", "onnxruntime"), "what to run checkpoints on", choices=("torch", *FORMAT_OF_RUNTIME)
    )
    precisions: tuple[str, ...] = option(("fp32",), "of exported checkpoints", choices=("fp32", "half", "int8"))
    batch_size: tuple[int, ...] = option((1,), "images run at once", low=1, high=1024)
    threads: tuple[int, ...] | None = option(None, "threads of the network (default: torch's)", low=1, high=1024)
    input_size: tuple[int, ...] | None = option(None, "sides of square inputs (default: the model's)")
    all_formats: bool = option(
        False, "every runtime in every precision beside the reference's network: --runtimes, --precisions, --reference"
    )
    repetitions: int = option(30, "how often each is run", low=2, high=100_000)
    clock: str = option(
        "wall", "cpu: processor time of all threads, for a machine that others use too", choices=tuple(CLOCKS)
    )
    compare: tuple[str, ...] = option((), "any other detectors' ONNX files to run beside ours", metavar="FILE.onnx")
    peer: tuple[str, ...] = option((), "published networks to run beside ours, random weights", choices=PEERS)
    reference: bool = option(False, "also the reference's MobileNetV2 network in PyTorch, as it is (not fused)")
    data: str | None = option(None, "a data set: scores each file (mAP50), and calibrates int8", metavar="PATH")
    limit: int | None = option(None, "score on the first N images only", low=1)
    calibration_images: int = option(200, "training images that calibrate int8", low=1, high=100_000)
    stages: bool = option(True, "also time decoding, preparing, network, post-processing and drawing apart")
    images: str | None = option(None, "a picture or folder for the stages (default: drawn, 576 x 768)", metavar="PATH")
    keep: str | None = option(None, "keep exported files and scores here: a second run takes them", metavar="DIR")
    json: str | None = option(None, "write all figures to this file", metavar="FILE")
    plot: str | None = option(None, "draw the figures into this file (.png, .svg, .pdf)", metavar="FILE")
    table: str | None = option(None, "write the table in Markdown to this file", metavar="FILE")
    formats_table: str | None = option(
        None, "write runtime x precision (ratio, mAP50, MB) to this file, or between its markers", metavar="FILE.md"
    )
    formats_plot: str | None = option(None, "draw mAP50 over the ratio, by runtime and precision", metavar="FILE")
