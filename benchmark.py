"""Measure how fast detectors are: by runtime, precision, batch, threads and size, stage by stage, beside others."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.formats_table import draw_formats, fill_markers, formats_table
from benchmarks.harness import command_cost
from data.index import DatasetIndex
from nets.detector import Detector
from nets.export.form import Form
from nets.export.formats import FORMAT_OF_RUNTIME, FORMATS, are_installed, file_kind
from nets.export.load import load_runtime
from nets.model_config import ModelConfig, input_size_option
from nets.runtime import Runtime
from nets.timing import (
    CONTROL,
    Sample,
    control_call,
    energy_joules,
    interleave,
    machine,
    noise_reasons,
)
from nets.weights.bundled import find_model
from utils.config import option, parse_options
from utils.cpus import num_threads, set_num_threads
from utils.errors import MissingExtra, RunError, UserError, run_command, warn
from utils.files import write_atomically
from utils.thresholds import Thresholds

if TYPE_CHECKING:
    from nets.export.parity import Parity
    from nets.yolov4 import YOLOv4

PEERS = ("yolox_nano", "ssdlite")
LOW_THRESHOLD = 0.001  # of evaluation; the slowest case for postprocessing
STAGE_REPETITIONS = 20
PARITY_PHOTOS = 8
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


@dataclass
class Entry:
    """One detector to time.

    Args:
        name: the name in the table.
        call: runs one batch; given images (B, H, W, 3) uint8.
        size: (height, width) of its input, pixels.
        runtime, precision: as shown in the table.
        file_bytes: size of the deployed files.
        memory_bytes: most in RAM of a process that loads it and runs it once, Python and the runtime included.
        detector_of: builds a detector for scoring; None for models of other projects.
        model: the source model; entries of the same model are grouped.
        parity: difference from the checkpoint that it was exported from.
        file: the file to load.
    """

    name: str
    call: Callable[[np.ndarray], Any]
    size: tuple[int, int]
    runtime: str
    precision: str = "fp32"
    file_bytes: int | None = None
    memory_bytes: int | None = None
    detector_of: Callable[[], Detector] | None = None
    model: str = ""
    parity: Parity | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Row:
    """The figures of one entry at one batch size and number of threads; times in milliseconds a batch."""

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
    """Everything that was measured."""

    rows: list[Row] = field(default_factory=list)
    baseline: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns 1 if an export failed (the others are still measured)."""
    options = parse_options(BenchmarkOptions, argv, description=__doc__ or "", prog="benchmark.py")
    if options.all_formats:
        options = dataclasses.replace(
            options, runtimes=("torch", *FORMAT_OF_RUNTIME), precisions=("fp32", "half", "int8"), reference=True
        )
    check_outputs(options)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = Result()
        usual = 1 if options.clock == "cpu" else num_threads()
        for threads in options.threads or (usual,):
            set_num_threads(threads)
            entries = build_entries(options, folder, result)
            scores = score_entries(entries, options, folder) if options.data and not result.rows else {}
            for batch_size in options.batch_size:
                measure(result, entries, batch_size, threads, options, scores)
        if options.stages:
            measure_stages(result, options)
    report(result, options)
    if result.failed:
        print(f"failed, and not measured: {', '.join(result.failed)}")
    return 1 if result.failed else 0


def check_outputs(options: BenchmarkOptions) -> None:
    """Raises UserError, before any work, if an output cannot be written or a step cannot run."""
    for field_name in ("json", "plot", "table", "formats_table", "formats_plot"):
        name = getattr(options, field_name)
        if name is not None and not Path(name).resolve().parent.is_dir():
            flag = "--" + field_name.replace("_", "-")
            raise UserError(flag, f"{Path(name).parent} is no folder", "create it first")
    if options.formats_table:
        fill_markers(Path(options.formats_table), "")
    if options.formats_plot and not options.data:
        raise UserError("--formats-plot", "there is nothing to score on", "add --data DATA")
    if options.clock == "cpu" and options.threads not in (None, (1,)):
        raise UserError("--clock", "processor time is a latency at one thread only", "add --threads 1")
    if "int8" in options.precisions and not options.data:
        raise UserError("--precisions", "int8 needs real images", "add --data DATA")
    for size in options.input_size or ():
        input_size_option(size)


# --- entries ---------------------------------------------------------------------------------------------------------


def build_entries(options: BenchmarkOptions, folder: Path, result: Result) -> list[Entry]:
    """The entries, baseline first: a peer, else an external file, else the reference network, else our first model.

    Exports that fail are left out and named in the result. Raises RunError if nothing is left.
    """
    from nets.weights.checkpoint import load_model  # late, as below: PyTorch and OpenCV, which --help does not need

    entries = [peer_entry(name, folder) for name in options.peer]
    entries += [other_entry(Path(name)) for name in options.compare]
    if options.reference:
        entries.append(reference_entry())
    for name in options.models or (str(find_model()),):
        path = Path(name)
        if path.is_dir() or file_kind(path) != "checkpoint":
            entries.append(load_entry(path.stem, find_model(path)))
            continue
        model = load_model(path)
        for size in options.input_size or (None,):
            config = model.config if size is None else model.config.replace(input_size=(size, size))
            entries += checkpoint_entries(model, path, config, options, folder, result)
    if not entries:
        raise RunError("benchmark", "every export failed", "see the warnings above")
    return entries


def checkpoint_entries(
    model: YOLOv4, path: Path, config: ModelConfig, options: BenchmarkOptions, folder: Path, result: Result
) -> list[Entry]:
    """A checkpoint on each runtime in each precision."""
    model.config = config
    dynamic = any(size != 1 for size in options.batch_size)
    entries = []
    for runtime in options.runtimes:
        for precision in options.precisions:
            if runtime == "torch":
                if precision == "fp32":
                    entries.append(torch_entry(path, config))
                continue
            exporter = FORMATS[FORMAT_OF_RUNTIME[runtime]]
            if not are_installed(exporter.packages):
                if precision == options.precisions[0]:
                    warn(runtime, f"needs {' and '.join(exporter.packages)}, which is not installed", "left out")
                continue
            exact = exporter.half if precision == "half" else precision
            if exact is None or (precision == "int8" and (not exporter.int8 or dynamic)):
                reason = f"{exporter.title} has no {precision} here"
                warn(
                    runtime, "int8 files take one image at a time" if dynamic and exporter.int8 else reason, "left out"
                )
                continue
            form = exporter.closest(Form(uint8_input=True, dynamic=dynamic, precision=exact))
            file = folder / f"{path.stem}-{digest(path)}-{config.size_words}-{runtime}-{exact}{exporter.suffix}"
            try:
                parity = export_entry_file(model, file, runtime, form, options)
            except MissingExtra as error:
                warn(f"{runtime} {precision}", str(error), "left out")
                continue
            except RunError as error:
                warn(f"{runtime} {precision}", str(error), "left out")
                if file.name not in result.failed:  # each number of threads tries again
                    result.failed.append(file.name)
                continue
            entries.append(dataclasses.replace(load_entry(path.stem, file, precision), parity=parity))
    return entries


def digest(path: Path) -> str:
    """Digest of the weights, so that files of another model with the same name are not reused."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def export_entry_file(model: YOLOv4, file: Path, runtime: str, form: Form, options: BenchmarkOptions) -> Parity:
    """Export a file and compare it with the network on photographs; an existing file is only compared."""
    from nets.export.check import check_export, export_and_check
    from nets.export.quantize import calibration_images
    from nets.torch_runtime import TorchRuntime

    kind = FORMAT_OF_RUNTIME[runtime]
    photos = comparison_photos(model.config, options)
    if file.exists():
        parity = check_export(TorchRuntime(model), file, form, photos)
    elif form.precision == "int8":
        print(f"quantising {file.name}", flush=True)
        training = open_split(options, 0)
        calibration = read_images(training, calibration_images(training, options.calibration_images))
        FORMATS[kind].quantize(model, file, form, calibration, None)
        parity = check_export(TorchRuntime(model), file, form, photos)
    else:
        print(f"exporting {file.name}", flush=True)
        found = export_and_check(model, file, kind, form, photos)
        assert found is not None  # all of FORMAT_OF_RUNTIME run here
        parity = found
    print(f"  parity with the checkpoint: {parity}", flush=True)
    return parity


def comparison_photos(config: ModelConfig, options: BenchmarkOptions) -> list[np.ndarray]:
    """Photographs of the validation split, or synthetic images if there is no data."""
    from nets.export.parity import drawn_photos

    if not options.data:
        return drawn_photos(config, PARITY_PHOTOS)
    index = open_split(options, 1)
    return read_images(index, np.unique(np.linspace(0, len(index) - 1, min(PARITY_PHOTOS, len(index))).astype(int)))


def read_images(index: DatasetIndex, positions: Iterable[int]) -> list[np.ndarray]:
    """Read some images of a split."""
    from imaging.image_io import read_image

    return [read_image(index.path(int(i))) for i in positions]


def torch_entry(path: Path, config: ModelConfig) -> Entry:
    """A checkpoint in PyTorch, as predict.py runs it."""
    return network_entry(path.stem, path, "torch", "fp32", config.input_size)


def load_entry(name: str, file: Path, precision: str | None = None) -> Entry:
    """An exported file of this project."""
    entry = network_entry(name, file, "auto", precision)
    files = FORMATS[file_kind(file)].files(file)
    size = sum(each.stat().st_size for each in files if each.is_file())
    return dataclasses.replace(entry, file=files[1] if len(files) > 1 else file, file_bytes=size)  # [1] has the weights


def network_entry(
    name: str, path: Path, runtime: str, precision: str | None = None, size: tuple[int, int] | None = None
) -> Entry:
    """One of our networks; precision None is that of the file."""
    network = load_network(path, runtime, size)
    form = getattr(network, "form", None)
    precision = precision or (form.precision if form else "fp32")
    model = f"{name} {network.config.size_words}"

    def call(images: np.ndarray) -> Any:
        if network.fixed_batch is None:
            return network.run(images)
        return [network.run(images[i : i + 1]) for i in range(len(images))]

    return Entry(
        f"{model} {network.name} {precision}",
        call,
        network.config.input_size,
        network.name,
        precision,
        path.stat().st_size,
        peak_bytes(f"load_network(Path({str(path.resolve())!r}), {runtime!r}, {size!r})"),
        lambda: Detector(network),
        model,
        file=path,
    )


def load_network(path: Path, runtime: str, size: tuple[int, int] | None = None) -> Runtime:
    """A model file on a runtime, after its first image; `size` replaces a checkpoint's input size."""
    network = load_runtime(path, "cpu", runtime)
    if size is not None:
        network.config = network.config.replace(input_size=size)
    network.warm_up()
    return network


def peak_bytes(statement: str) -> int | None:
    """Most memory in RAM of a process that does nothing but this statement, with the names of this module."""
    if os.name != "posix":
        return None
    threads = {"OMP_NUM_THREADS": str(num_threads())}
    return command_cost([sys.executable, "-c", f"from benchmark import *\n{statement}"], **threads).memory


def reference_entry() -> Entry:
    """The reference network in PyTorch as its users run it: eager mode, batch norms not fused."""
    import torch

    from nets.yolov4 import YOLOv4

    config = ModelConfig(class_names=tuple(f"class{i}" for i in range(20)))
    model = YOLOv4(config).eval()

    @torch.inference_mode()
    def call(images: np.ndarray) -> Any:
        return model(torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255)

    size = sum(p.numel() for p in model.parameters()) * 4
    return Entry("reference eager 416", call, config.input_size, "torch eager", file_bytes=size)


def peer_entry(name: str, folder: Path) -> Entry:
    """A published network, rebuilt with random weights, on ONNX Runtime."""
    from benchmarks.peers import export_peer

    path = folder / f"{name}.onnx"
    return other_entry(path if path.exists() else export_peer(name, path))


def other_entry(path: Path) -> Entry:
    """Any detector's ONNX file, run on noise of its input shape."""
    from nets.export.onnx_runtime import open_session

    if not path.is_file():
        raise UserError("--compare", f"{path} does not exist", "give an ONNX file")
    session = open_session(path)
    inputs = {i.name: i for i in session.get_inputs()}
    sides = [d for i in inputs.values() for d in i.shape[2:] if len(i.shape) == 4 and isinstance(d, int) and d > 4]
    size = (sides[0], sides[-1]) if sides else (416, 416)
    rng = np.random.default_rng(0)
    kinds = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

    def noise(i: Any, batch: int) -> np.ndarray:
        free = [batch, 3, *size] if len(i.shape) == 4 else [batch] * len(i.shape)
        shape = [d if isinstance(d, int) else free[axis] for axis, d in enumerate(i.shape)]
        kind = kinds.get(i.type, np.float32)
        return (
            rng.integers(0, 255, shape).astype(kind) if kind in (np.uint8, np.int64) else rng.random(shape).astype(kind)
        )

    made: dict[int, dict[str, np.ndarray]] = {}

    def call(images: np.ndarray) -> Any:
        feed = made.setdefault(len(images), {name: noise(i, len(images)) for name, i in inputs.items()})
        batch = len(next(iter(feed.values())))
        return [session.run(None, feed) for _ in range(len(images) // batch)]

    call(np.zeros((1, 1)))
    return Entry(path.stem, call, size, "onnxruntime", file_bytes=path.stat().st_size)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(
    result: Result,
    entries: Sequence[Entry],
    batch_size: int,
    threads: int,
    options: BenchmarkOptions,
    scores: dict[str, float],
) -> None:
    """Time all entries in turns, and add their rows and what speaks against them."""
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
    """The figures of one entry."""
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
        print(f"{entry.name}: mAP50 {scores[entry.name]:.2f} on {len(index)} images of {index.name}", flush=True)
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


@functools.cache
def open_split(options: BenchmarkOptions, which: int) -> DatasetIndex:
    """The data's training (0) or validation (1) split."""
    from data.open import default_splits, open_dataset

    return open_dataset(options.data or "", default_splits(options.data or "")[which])


# --- stages ----------------------------------------------------------------------------------------------------------


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


def random_network(config: ModelConfig) -> YOLOv4:
    """The same network with random weights and high scores everywhere: the worst case for NMS."""
    import torch

    from nets.yolov4 import YOLOv4

    torch.manual_seed(0)
    model = YOLOv4(config).eval()
    for level in model.head.levels:
        torch.nn.init.normal_(level[-1].weight, 0.0, 0.1)
        torch.nn.init.zeros_(level[-1].bias)
    return model


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
        raise UserError("--images", f"{path} holds no pictures", "name a picture or a folder of pictures")
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


# --- reports ---------------------------------------------------------------------------------------------------------


def report(result: Result, options: BenchmarkOptions) -> None:
    """Print the results and write the files that the options name."""
    table = markdown_table(result)
    print(table)
    for stage in result.stages:
        parts = ", ".join(f"{n} {stage[n]:.2f}" for n in ("decode", "preprocess", "network", "postprocess", "draw"))
        print(
            f"stages of {stage['image']} ({stage['size']}), one thread, CPU ms, score >= {stage['threshold']:g}, "
            f"{stage['detections']} found: {parts}; all but network and drawing {stage['all_but_network']:.2f}"
        )
    for reason in result.noise:
        warn("noise", reason)
    if result.noise:
        print("these figures cannot be trusted by themselves; the ratios suffer less (medians of neighbouring runs)")
    if options.table:
        write_atomically(Path(options.table), (table + "\n").encode())
    if options.json:
        write_atomically(Path(options.json), json.dumps(to_json(result, options), indent=1).encode())
    if options.plot:
        draw_plot(result, Path(options.plot))
    rows = [dataclasses.asdict(row) for row in result.rows]
    if options.formats_table:
        path = Path(options.formats_table)
        text = formats_table(rows, result.baseline)
        write_atomically(path, fill_markers(path, text).encode())
    if options.formats_plot:
        draw_formats(rows, result.baseline, Path(options.formats_plot))


def markdown_table(result: Result) -> str:
    """All rows as Markdown; ratios are relative to the baseline, the first row."""
    head = [
        "network",
        "runtime",
        "precision",
        "batch",
        "threads",
        "ms",
        "quartiles",
        "images/s",
        "ratio",
        "mAP50",
        "MB",
    ]
    head += ["MB in RAM", *(["J"] if any(row.joules is not None for row in result.rows) else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in result.rows:
        low, high = row.quartiles_ms
        cells = [row.name, row.runtime, row.precision, row.batch_size, row.threads, f"{row.median_ms:.1f}"]
        cells += [f"{low:.1f} to {high:.1f}", f"{row.images_per_second:.1f}", f"{row.ratio:.2f}"]
        cells += ["" if row.map50 is None else f"{row.map50:.1f}"]
        cells += ["" if mb is None else f"{mb:.1f}" for mb in (row.file_mb, row.memory_mb)]
        cells += [f"{row.joules:.3f}"] if row.joules is not None else []
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", f"ratio: to {result.baseline}, median over the repetitions of the same run"])


def to_json(result: Result, options: BenchmarkOptions) -> dict[str, Any]:
    """The result as plain types for JSON."""
    return {
        "machine": machine(),
        "options": dataclasses.asdict(options),
        "baseline": result.baseline,
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "stages": result.stages,
        "noise": result.noise,
        "trusted": not result.noise,
    }


def draw_plot(result: Result, path: Path) -> None:
    """Plot the medians as bars with their quartiles."""
    from matplotlib.figure import Figure  # no window, no global state

    rows = result.rows[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row.name}, batch {row.batch_size}, {row.threads} threads" for row in rows]
    medians = [row.median_ms for row in rows]
    errors = [[m - r.quartiles_ms[0] for m, r in zip(medians, rows, strict=True)]]
    errors.append([r.quartiles_ms[1] - m for m, r in zip(medians, rows, strict=True)])
    axes.barh(range(len(rows)), medians, xerr=errors, color="#4c78a8", ecolor="#333333")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    for place, row in enumerate(rows):
        axes.text(row.quartiles_ms[1], place, f" {row.median_ms:.1f} ms, x {row.ratio:.2f}", va="center", fontsize=8)
    axes.set_xlabel("milliseconds a batch: median and quartiles")
    axes.set_title("not to be trusted: the machine was busy" if result.noise else f"ratio to {result.baseline}")
    axes.margins(x=0.25)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError("--plot", str(error)[:100], "name it .png, .svg or .pdf") from error


if __name__ == "__main__":
    run_command(main)
