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
        "checkpoints and exported files (default: the bundled weights)",
        nargs="*",
        positional=True,
        metavar="MODEL",
    )
    runtimes: tuple[str, ...] = option(
        ("torch", "onnxruntime"), "runtimes for checkpoints", choices=("torch", *FORMAT_OF_RUNTIME)
    )
    precisions: tuple[str, ...] = option(
        ("fp32",), "precisions of exported checkpoints", choices=("fp32", "half", "int8")
    )
    batch_size: tuple[int, ...] = option((1,), "images per batch", low=1, high=1024)
    threads: tuple[int, ...] | None = option(None, "threads of the network (default: torch's)", low=1, high=1024)
    input_size: tuple[int, ...] | None = option(None, "square input sizes in pixels (default: the model's)")
    all_formats: bool = option(
        False, "all runtimes and precisions, and the reference network; sets --runtimes, --precisions, --reference"
    )
    repetitions: int = option(30, "number of timed runs of each entry", low=2, high=100_000)
    clock: str = option("wall", "cpu: CPU time of all threads, for a shared machine", choices=tuple(CLOCKS))
    compare: tuple[str, ...] = option(
        (), "ONNX files of other detectors to measure in the same run", metavar="FILE.onnx"
    )
    peer: tuple[str, ...] = option(
        (), "published networks with random weights to measure in the same run", choices=PEERS
    )
    reference: bool = option(False, "also measure the reference's MobileNetV2 network in PyTorch (not fused)")
    data: str | None = option(None, "data set for mAP50 of each file and for int8 calibration", metavar="PATH")
    limit: int | None = option(None, "compute mAP50 on the first N images only", low=1)
    calibration_images: int = option(200, "number of training images for int8 calibration", low=1, high=100_000)
    stages: bool = option(True, "also time decoding, preprocessing, network, postprocessing and drawing separately")
    images: str | None = option(
        None, "image or folder for the stages (default: a synthetic image, 576 x 768)", metavar="PATH"
    )
    keep: str | None = option(None, "folder for exported files and scores, which later runs reuse", metavar="DIR")
    json: str | None = option(None, "write all results to this file as JSON", metavar="FILE")
    plot: str | None = option(None, "plot the results to this file (.png, .svg, .pdf)", metavar="FILE")
    table: str | None = option(None, "write the Markdown table to this file", metavar="FILE")
    formats_table: str | None = option(
        None, "write the table of runtimes and precisions to this file, or between its markers", metavar="FILE.md"
    )
    formats_plot: str | None = option(None, "plot mAP50 against time, by runtime and precision", metavar="FILE")
