"""Measure interleaved times of the detectors, their scores, and the time of each stage for one image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import random_network
from data.index import DatasetIndex
from nets.detector import Detector
from nets.export.formats import file_kind
from nets.export.load import load_runtime
from nets.model_config import ModelConfig
from nets.timing import (
    CONTROL,
    Sample,
    control_call,
    energy_joules,
    interleave,
    noise_reasons,
)
from nets.weights.bundled import find_model
from utils.cpus import num_threads, set_num_threads
from utils.errors import UserError
from utils.files import write_atomically
from utils.thresholds import Thresholds

if TYPE_CHECKING:
    from nets.export.parity import Parity
from benchmarks.compare.entries import Entry, digest, open_split
from benchmarks.compare.options import CLOCKS, BenchmarkOptions
from utils.text import counted

LOW_THRESHOLD = 0.001  # score threshold of evaluation: the slowest case for postprocessing
STAGE_REPETITIONS = 20


@dataclass(frozen=True)
class Row:
    """Results of one entry at one batch size and number of threads. Times are in milliseconds per batch."""

    name: str
    runtime: str
    precision: str
    input_size: tuple[int, int]
    batch_size: int
    threads: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    minimum_ms: float
    images_per_second: float
    ratio: float
    file_mb: float | None
    memory_mb: float | None
    joules: float | None = None
    map50: float | None = None
    model: str = ""
    parity: Parity | None = None


@dataclass
class Result:
    """All results of a benchmark. `noise` lists reasons why the times are unreliable, `failed` the failed exports."""

    rows: list[Row] = field(default_factory=list)
    baseline: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def measure(
    result: Result,
    entries: Sequence[Entry],
    batch_size: int,
    threads: int,
    options: BenchmarkOptions,
    scores: dict[str, float],
) -> None:
    """Time all entries, interleaved, and add their rows and the reasons why the times are unreliable to `result`."""
    rng = np.random.default_rng(0)
    calls: dict[str, Callable[[], Any]] = {CONTROL: control_call()}
    for entry in entries:
        images = rng.integers(0, 256, (batch_size, *entry.size, 3), np.uint8)
        calls[entry.name] = partial(entry.call, images)
    samples = interleave(calls, options.repetitions, clock=CLOCKS[options.clock])
    control = samples.pop(CONTROL)
    baseline = entries[0].name
    for entry in entries:
        joules = None if options.clock == "cpu" else joules_of(calls[entry.name], batch_size)
        row = make_row(entry, samples[entry.name], samples[baseline], batch_size, threads, joules)
        result.rows.append(dataclasses.replace(row, map50=scores.get(entry.name)))
    result.baseline = baseline
    reasons = noise_reasons(control, samples, shares_matter=options.clock == "wall")
    result.noise += [f"{threads} threads, batch {batch_size}: {reason}" for reason in reasons]


def make_row(entry: Entry, sample: Sample, base: Sample, batch_size: int, threads: int, joules: float | None) -> Row:
    """Build the row of one entry from its sample and the baseline's."""
    low, high = sample.quartiles
    return Row(
        entry.name,
        entry.runtime,
        entry.precision,
        entry.size,
        batch_size,
        threads,
        1e3 * sample.median,
        (1e3 * low, 1e3 * high),
        1e3 * sample.minimum,
        batch_size / sample.median,
        sample.ratio(base),
        None if entry.file_bytes is None else entry.file_bytes / 1e6,
        None if entry.memory_bytes is None else entry.memory_bytes / 1e6,
        joules,
        model=entry.model,
        parity=entry.parity,
    )


def joules_of(call: Callable[[], Any], batch_size: int, runs: int = 10) -> float | None:
    """Processor energy per image in joules, if the machine reports it."""
    before = energy_joules()
    if before is None:
        return None
    for _ in range(runs):
        call()
    after = energy_joules()
    return None if after is None or after < before else (after - before) / (runs * batch_size)


def score_entries(entries: Sequence[Entry], options: BenchmarkOptions, folder: Path) -> dict[str, float]:
    """mAP50 (VOC2010), in points, of each of our entries; earlier scores are cached in `folder`."""
    index = open_split(options, 1)
    if options.limit is not None:
        index = index.subset(np.arange(min(options.limit, len(index))))
    scores = {}
    for entry in entries:
        if entry.detector_of is None or entry.file is None:
            continue
        known = folder / f"{entry.file.stem}-{digest(entry.file)}-{entry.runtime}-{index_digest(index)}.score.json"
        if not known.exists():
            write_atomically(known, json.dumps({"map50": score(entry.detector_of(), index)}).encode())
        scores[entry.name] = json.loads(known.read_text())["map50"]
        print(
            f"{entry.name}: mAP50 {scores[entry.name]:.2f} on {counted(len(index), 'image')} of {index.name}",
            flush=True,
        )
    return scores


def score(detector: Detector, index: DatasetIndex) -> float:
    """mAP50 (VOC2010) in points, as eval.py computes it."""
    from evaluation.evaluator import evaluate

    found = evaluate(detector, index, batch_size=4, coco=None, progress=False)
    assert found is not None
    return 100 * float(found.figures["voc10_mAP50"] or 0.0)


def index_digest(index: DatasetIndex) -> str:
    """Digest of the images, the boxes and the scoring rules."""
    from evaluation.evaluator import EVAL_THRESHOLDS

    content = index.image_ids.tobytes() + index.boxes.tobytes() + index.labels.tobytes()
    return hashlib.sha256(content + repr(EVAL_THRESHOLDS).encode()).hexdigest()[:8]


def measure_stages(result: Result, options: BenchmarkOptions) -> None:
    """CPU time of one thread from a JPEG file to a drawn image, at the model's threshold and at a low one.

    An untrained network gives the most candidates. It is measured too if the model is a checkpoint.
    """
    from nets.torch_runtime import TorchRuntime

    path = find_model(options.models[0] if options.models else None)
    before = num_threads()
    set_num_threads(1)
    try:
        detectors = {"": Detector(load_runtime(path, "cpu"))}
        if path.is_file() and file_kind(path) == "checkpoint":
            detectors["random weights, "] = Detector(TorchRuntime(random_network(detectors[""].config)))
        with tempfile.TemporaryDirectory() as folder:
            for photo in stage_photos(options, Path(folder)):
                for weights, detector in detectors.items():
                    for threshold in (detector.config.score_threshold, LOW_THRESHOLD):
                        stage = time_stages(detector, photo, threshold)
                        result.stages.append(stage | {"image": weights + photo.name})
    finally:
        set_num_threads(before)


def stage_photos(options: BenchmarkOptions, folder: Path) -> list[Path]:
    """The images of --images (at most three), or one synthetic image."""
    from imaging.image_io import IMAGE_SUFFIXES, write_image
    from nets.export.parity import drawn_photos

    if options.images is None:
        import cv2

        drawn = cv2.resize(drawn_photos(ModelConfig(("a",)), 1)[0], (768, 576), interpolation=cv2.INTER_CUBIC)
        write_image(folder / "drawn.jpg", drawn, quality=90)
        return [folder / "drawn.jpg"]
    path = Path(options.images)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UserError("--images", f"{path} contains no images", "give an image or a folder of images")
    return files[:3]


def time_stages(detector: Detector, photo: Path, threshold: float) -> dict[str, Any]:
    """Median CPU milliseconds of each stage for one image."""
    from imaging.draw import draw_detections
    from imaging.image_io import read_image

    config, runtime = detector.config, detector.runtime
    image = read_image(photo)
    batch = np.empty((1, *config.input_size, 3), np.uint8)
    config.letterbox.apply(image, out=batch[0])
    outputs = runtime.run(batch)
    thresholds = Thresholds(threshold, multi_label=threshold <= LOW_THRESHOLD)
    found = detector.detect_batch([image], thresholds)[0]
    confident = found[found.scores >= config.score_threshold]
    calls: dict[str, Callable[[], Any]] = {
        "decode": lambda: read_image(photo),
        "preprocess": lambda: config.letterbox.apply(image, out=batch[0]),
        "network": lambda: runtime.run(batch),
        "postprocess": lambda: runtime.read(outputs, thresholds),
        "draw": lambda: draw_detections(image, confident, config.class_names),
    }
    samples = interleave(calls, STAGE_REPETITIONS, clock=time.thread_time)
    times = {name: 1e3 * sample.median for name, sample in samples.items()}
    around = sum(times[name] for name in ("decode", "preprocess", "postprocess"))
    size = "x".join(str(side) for side in image.shape[1::-1])
    facts = {"image": photo.name, "size": size, "threshold": threshold, "detections": len(found)}
    return {**facts, **times, "all_but_network": around}
