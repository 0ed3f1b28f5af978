"""Cost of the work around the network, each row next to its baseline in one run: `python -m benchmarks.table`.

Times are CPU time of one thread, so that the ratios are valid on a shared machine. The figures are compared with
those of the last `--save` on the same processor. The exit code is 1 if a row became slower.

    python -m benchmarks.table                                # all rows but those that need data
    python -m benchmarks.table --data VOCdevkit --save        # all rows; save the figures
    python -m benchmarks.table --only start help
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.harness import (
    REPOSITORY,
    Cost,
    Row,
    command_cost,
    cpu_in_turns,
    cpu_of_tree,
    in_turns,
    mean_cost,
    median_cost,
    save,
    slower_than_before,
    table,
)
from benchmarks.service_load import LoadOptions, Tally, make_pictures, send_requests, start
from data.open import default_splits, open_dataset
from evaluation.evaluator import EVAL_THRESHOLDS, FoundDetections, match_classes, score
from evaluation.metrics.coco import coco_figures
from evaluation.metrics.record import EvalRecord, box_areas
from imaging.detections import Detections
from imaging.image_io import decode_image, read_image, read_image_and_size, write_image
from imaging.scenes import draw_scene
from nets.assigner import ASSIGNERS
from nets.detector import Detector
from nets.export.load import load_runtime
from nets.loss_config import LossConfig
from nets.losses import YOLOLoss
from nets.model_config import STRIDES, ModelConfig
from nets.weights.bundled import find_model
from prediction.video import VideoReader, VideoWriter
from service.limits import PACKAGES
from utils.config import option, parse_options
from utils.cpus import set_num_threads
from utils.errors import MissingExtra, UserError, require_packages, run_command, warn

STORED = REPOSITORY / "benchmarks" / "results" / "table.json"
PHOTO = (3000, 4000)  # 12 megapixels
FRAME = (1080, 1920)
FRAMES = 60
PHOTOS = 60
EVAL_IMAGES = 500
REQUESTS = 20  # in each round, in turns with the network alone
SERVICE_ROUNDS = 10
LARGE_IMAGES = 120
OF_DATA = ("eval", "large")  # rows that need --data
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class TableOptions:
    """The options of `python -m benchmarks.table`."""

    only: tuple[str, ...] = option((), "measure only these rows", metavar="NAME")
    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    data: str | None = option(None, "path of a data set, for the rows `eval` and `large`", metavar="PATH")
    repetitions: int = option(5, "repetitions of each measurement", low=1, high=1000)
    clock: bool = option(False, "also measure rows by the clock, which needs an idle machine")
    save: bool = option(False, "save the figures, so that the next run is compared with them")


def main(argv: list[str] | None = None) -> int:
    """Measure the rows and print the table. Returns 1 if a row became slower."""
    options = parse_options(TableOptions, argv, description=__doc__ or "", prog="benchmarks.table")
    names = check_rows(options)
    set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="table-") as temporary:
        bench = Bench(options, Path(temporary))
        for name in names:
            for row in ROWS[name](bench):
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    slower = slower_than_before(rows, STORED)
    for line in slower:
        print(f"slower than before: {line}")
    if options.save:
        save(rows, STORED)
    return 1 if slower else 0


def check_rows(options: TableOptions) -> list[str]:
    """The rows to measure. Raises UserError for what would fail in the middle of a run of minutes."""
    for name in options.only:
        if name not in ROWS:
            raise UserError("--only", f"{name!r} is not a row", f"choose from {', '.join(ROWS)}")
        if name in OF_DATA and not options.data:
            raise UserError("--data", f"the row `{name}` needs a data set", "give --data PATH")
    if options.data:
        open_dataset(options.data, default_splits(options.data)[1])
    names = [
        name for name in ROWS if name in options.only or (not options.only and (options.data or name not in OF_DATA))
    ]
    if "service" in names:
        try:
            require_packages("the row `service`", PACKAGES, "serve")
        except MissingExtra as missing:
            if options.only:
                raise
            warn("row `service`", f"left out: {missing}")
            names.remove("service")
    return names


class Bench:
    """State shared by the rows: the model, a temporary folder and test images."""

    def __init__(self, options: TableOptions, folder: Path) -> None:
        self.options, self.folder, self.repetitions = options, folder, options.repetitions
        self.model = find_model(options.checkpoint)
        load_runtime(self.model, "cpu", "onnxruntime")  # exported, if it was not yet

    def predict(self, *arguments: str) -> Callable[[], Cost]:
        """A function that runs predict.py with these arguments in a separate process."""
        command = [sys.executable, str(REPOSITORY / "predict.py"), *arguments, "--checkpoint", str(self.model)]
        command += ["--device", "cpu", "--output", str(self.folder / "out"), "--overwrite"]
        return partial(command_cost, command, **ONE_THREAD)

    def predict_costs(self, commands: Mapping[str, Sequence[str]]) -> dict[str, Cost]:
        """Median costs of predict.py with different arguments, interleaved."""
        calls = {name: self.predict(*arguments) for name, arguments in commands.items()}
        return {name: median_cost(costs) for name, costs in in_turns(calls, self.repetitions).items()}

    def photo(self) -> Path:
        """Path of the file of `write_photo`."""
        path = self.folder / "photo.jpg"
        return path if path.exists() else write_photo(path)


def write_photo(path: Path) -> Path:
    """Write a 12-megapixel JPEG with sensor noise."""
    image = cv2.resize(draw_scene(0, 0)[0], PHOTO[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image += np.random.default_rng(0).normal(0, 4, image.shape).astype(np.int16)
    write_image(path, np.clip(image, 0, 255).astype(np.uint8), quality=90)
    return path


def runtime_rows(bench: Bench) -> Iterator[Row]:
    """One image with PyTorch and with the default runtime, and a batch of eight."""
    runtimes = {name: load_runtime(bench.model, "cpu", name) for name in ("torch", "onnxruntime")}
    runtimes["default"] = load_runtime(bench.model, "cpu")
    height, width = runtimes["torch"].config.input_size
    images = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    calls = {name: partial(runtime.run, images[:1]) for name, runtime in runtimes.items()}
    calls["eight"] = partial(runtimes["default"].run, images)
    times = cpu_in_turns(calls, 4 * bench.repetitions, warm_up=3)
    ms = {name: 1e3 * sample.median for name, sample in times.items()}
    yield Row("the network, runtime by default", ms["torch"], ms["default"], "ms", "PyTorch")
    yield Row("the network on PyTorch", ms["onnxruntime"], ms["torch"], "ms", "ONNX Runtime", 1.5)
    yield Row("an image, batch by default", ms["eight"] / 8, ms["default"], "ms", "batch 8", 1.0)


def decode_rows(bench: Bench) -> Iterator[Row]:
    """From a 12-megapixel file to the network's input."""
    path, letterbox = bench.photo(), load_runtime(bench.model, "cpu").config.letterbox

    def whole() -> np.ndarray:
        return letterbox.apply(read_image_and_size(path)[0])

    def reduced() -> np.ndarray:
        image, size = read_image_and_size(path, min_size=letterbox.decoded_size)
        return letterbox.apply(image, size=size)

    least = partial(decode_image, path.read_bytes(), reduce=8)  # hardly more than the Huffman decoding
    times = cpu_in_turns({"whole": whole, "reduced": reduced, "least": least}, bench.repetitions)
    whole_ms, reduced_ms, least_ms = (1e3 * times[name].median for name in ("whole", "reduced", "least"))
    yield Row("12-megapixel photograph to input", whole_ms, reduced_ms, "ms", "whole decode")
    yield Row("12-megapixel photograph, all of it", least_ms, reduced_ms, "ms", "decoding alone, at 1/8")


def memory_rows(bench: Bench) -> Iterator[Row]:
    """Memory of predict.py on sixty 12-megapixel photographs."""
    folder = bench.folder / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        shutil.copy(bench.photo(), folder / f"{number}.jpg")
    costs = [bench.predict(str(folder), *options)() for options in ((), ("--no-images", "--json"))]
    megabytes = [cost.memory / 1e6 for cost in costs]
    yield Row("memory, 60 photographs, nothing drawn", megabytes[0], megabytes[1], "MB", "drawn")


def start_rows(bench: Bench) -> Iterator[Row]:
    """`python predict.py photo.jpg` from start to written image."""
    path = bench.folder / "small.jpg"
    write_image(path, draw_scene(0, 1)[0])
    costs = bench.predict_costs({name: (str(path), "--runtime", name) for name in ("torch", "onnxruntime")})
    base, default = costs["torch"], costs["onnxruntime"]
    yield Row("predict.py photo.jpg", base.cpu, default.cpu, "s of CPU", "PyTorch")
    yield Row("predict.py photo.jpg, memory", base.memory / 1e6, default.memory / 1e6, "MB", "PyTorch")


def help_rows(bench: Bench) -> Iterator[Row]:
    """--help of every script, compared with importing PyTorch and torchvision."""
    scripts = ("train", "eval", "predict", "export", "dataset", "serve", "benchmark")
    commands = {name: partial(command_cost, [sys.executable, f"{name}.py", "--help"]) for name in scripts}
    commands["torch"] = partial(command_cost, [sys.executable, "-c", "import torch, torchvision"])
    costs = {name: median_cost(each) for name, each in in_turns(commands, bench.repetitions).items()}
    slowest = max(scripts, key=lambda name: costs[name].cpu)
    work = f"--help, the slowest ({slowest}.py)"
    yield Row(work, costs["torch"].cpu, costs[slowest].cpu, "s of CPU", "import torch, torchvision")


def coco_rows(bench: Bench) -> Iterator[Row]:
    """COCO AP of 5000 images with 80 classes and 100 detections per image."""
    record = make_record(5000, 80, 100, 8)
    calls = {name: partial(coco_figures, record, name) for name in ("pycocotools", "auto")}
    times = cpu_in_turns(calls, 1, warm_up=0)
    yield Row("COCO AP 5000 x 80 x 100", times["pycocotools"].median, times["auto"].median, "s", "pycocotools")


def make_record(images: int, classes: int, detections: int, objects_each: int) -> EvalRecord:
    """Random objects and detections; about a third of the detections are close to an object."""
    rng = np.random.default_rng(0)
    shape = (images, objects_each)
    corner = rng.uniform(0, 400, (*shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 200, (*shape, 2))], axis=2)
    labels = rng.integers(0, classes, shape)
    source = rng.integers(0, objects_each, (images, detections))
    spread = np.where(rng.random(source.shape) < 0.35, 8.0, 120.0)[..., None]
    moved = np.take_along_axis(boxes, source[..., None], 1) + rng.normal(0, 1, (*source.shape, 4)) * spread
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    position = np.arange(images)
    objects = boxes.reshape(-1, 4)
    return EvalRecord(
        class_names=tuple(f"class {c}" for c in range(classes)),
        image_ids=position,
        det_image=np.repeat(position, detections),
        det_boxes=moved.reshape(-1, 4),
        det_scores=rng.random(source.size),
        det_labels=np.take_along_axis(labels, source, 1).ravel(),
        gt_image=np.repeat(position, objects_each),
        gt_boxes=objects,
        gt_labels=labels.ravel(),
        gt_difficult=rng.random(labels.size) < 0.1,
        gt_crowd=np.zeros(labels.size, bool),
        gt_areas=box_areas(objects),
    )


def loss_rows(bench: Bench) -> Iterator[Row]:
    """Forward and backward pass of the loss at batch size 8 and 416 pixels, for each assigner."""
    config = ModelConfig(class_names=tuple(f"class {i}" for i in range(20)))
    for assigner in ASSIGNERS:
        loss = YOLOLoss(config, LossConfig(assigner=assigner))
        calls = {str(n): partial(loss_step, loss, *make_targets(n)) for n in (15, 60)}
        times = {name: 1e3 * sample.median for name, sample in cpu_in_turns(calls, 4 * bench.repetitions, 3).items()}
        yield Row(f"loss, {assigner}, 60 objects an image", times["15"], times["60"], "ms", "15 objects")


def make_targets(objects: int, batch: int = 8, size: int = 416) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Random raw predictions of 20 classes, and targets with `objects` boxes of 16 to 300 pixels per image."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, 3, size // s, size // s, 25, generator=generator) for s in STRIDES]
    centre = torch.rand(batch * objects, 2, generator=generator) * size
    half = torch.rand(batch * objects, 2, generator=generator) * 142 + 8
    boxes = torch.cat([centre - half, centre + half], dim=1).clamp(0, size)
    labels = torch.randint(0, 20, (batch * objects,), generator=generator)
    return maps, {"boxes": boxes, "labels": labels, "image_index": torch.arange(batch).repeat_interleave(objects)}


def loss_step(loss: YOLOLoss, maps: list[torch.Tensor], targets: dict[str, torch.Tensor]) -> None:
    sum(loss([m.detach().requires_grad_() for m in maps], targets).values()).backward()


def eval_command(model: Path, data: str, limit: int, *arguments: str) -> list[str]:
    """The command that evaluates a model on `limit` images on the CPU."""
    fixed = ["--checkpoint", str(model), "--data", data, "--limit", str(limit), "--device", "cpu", "--no-progress"]
    return [sys.executable, str(REPOSITORY / "eval.py"), *fixed, *(arguments or ("--runtime", "onnxruntime"))]


def eval_rows(bench: Bench) -> Iterator[Row]:
    """eval.py on five hundred images."""
    command = partial(eval_command, bench.model, bench.options.data or "", EVAL_IMAGES)
    old = command_cost(command("--runtime", "torch", "--batch-size", "8", "--evaluator", "pycocotools"), **ONE_THREAD)
    new = command_cost(command(), **ONE_THREAD)
    yield Row("eval.py, 500 images", old.cpu, new.cpu, "s of CPU", "PyTorch, batch 8, pycocotools")
    runtime = load_runtime(bench.model, "cpu", "onnxruntime")
    image = np.random.default_rng(0).integers(0, 256, (1, *runtime.config.input_size, 3), np.uint8)
    alone = EVAL_IMAGES * cpu_in_turns({"network": partial(runtime.run, image)}, 40, 5)["network"].median
    yield Row("eval.py, all of it", alone, new.cpu, "s of CPU", "network alone", 1.67)


def service_rows(bench: Bench) -> Iterator[Row]:
    """CPU time of a service request, including the decoder process, compared with the network alone."""
    load = LoadOptions(checkpoint=str(bench.model), batch_size=1, threads=1, device="cpu")
    pictures = make_pictures(16, *load.picture_size)
    runtime = load_runtime(bench.model, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (1, *runtime.config.input_size, 3), np.uint8)
    process, port = start(load)

    def request() -> float:
        before = cpu_of_tree(process.pid)
        send_requests(port, pictures, 1, REQUESTS, Tally(), 600)
        return (cpu_of_tree(process.pid) - before) / REQUESTS

    try:
        send_requests(port, pictures, 1, 20, Tally(), 600)  # starts the decoder, fills caches
        network = partial(mean_cost, partial(runtime.run, image), 0.2)
        costs = in_turns({"network": lambda: network().cpu, "request": request}, SERVICE_ROUNDS, warm_up=0)
    finally:
        process.terminate()
        process.wait(60)
    alone, cpu = (float(np.median(costs[name])) for name in ("network", "request"))
    yield Row("a request of the service", 1e3 * alone, 1e3 * cpu, "ms", "network alone", 1.21)


def video_rows(bench: Bench) -> Iterator[Row]:
    """A frame of a 1080p video: all work except the network, compared with the network at its own input size."""
    clip = bench.folder / "clip.mp4"
    scene = cv2.resize(draw_scene(0, 0)[0], (2 * FRAME[1], FRAME[0]), interpolation=cv2.INTER_CUBIC)
    with VideoWriter(clip, 25.0, FRAME, "mp4v") as writer:
        for number in range(FRAMES):
            left = number * FRAME[1] // FRAMES
            writer.write(np.ascontiguousarray(scene[:, left : left + FRAME[1]]))
    detector = Detector(load_runtime(bench.model, "cpu", "onnxruntime"))
    with VideoReader(clip) as reader:
        frames = [frame.image for frame in reader]
    square = detector.config.letterbox
    letterboxes = {"square": square, "trimmed": square.trimmed([FRAME], STRIDES[-1])}  # predict.py trims video frames
    inputs = {name: np.stack([each.apply(frame) for frame in frames]) for name, each in letterboxes.items()}

    def run(name: str) -> list[Any]:
        return [detector.runtime.run(one[None]) for one in inputs[name]]

    network = cpu_in_turns({name: partial(run, name) for name in inputs}, 2)
    alone, trimmed = (1e3 * network[name].median / FRAMES for name in ("square", "trimmed"))
    fixed = (str(clip), "--runtime", "onnxruntime", "--max-frames")
    costs = bench.predict_costs({"short": (*fixed, "4"), "long": (*fixed, str(FRAMES))})
    each = 1e3 * (costs["long"].cpu - costs["short"].cpu) / (FRAMES - 4)
    yield Row("1080p video, all but the network", alone, each - trimmed, "ms a frame", "network alone", 1.0)
    if bench.options.clock:
        wall = 1e3 * (costs["long"].wall - costs["short"].wall) / (FRAMES - 4)
        yield Row("1080p video, by the clock", alone, wall, "ms a frame", "network alone, CPU", 1.25)


def large_rows(bench: Bench) -> Iterator[Row]:
    """mAP50 on photographs of about 12 megapixels, decoded at full and at reduced size."""
    data = bench.options.data or ""
    index = open_dataset(data, default_splits(data)[1])
    index = index.subset(np.unique(np.linspace(0, len(index) - 1, LARGE_IMAGES).astype(int)))
    folder = bench.folder / "large"
    folder.mkdir()
    factors = np.ones(len(index))
    for i in range(len(index)):
        image = read_image(index.path(i))
        factors[i] = round((PHOTO[0] * PHOTO[1] / image.shape[0] / image.shape[1]) ** 0.5)
        large = cv2.resize(image, None, fx=factors[i], fy=factors[i], interpolation=cv2.INTER_CUBIC)
        write_image(folder / f"{i}.jpg", large, quality=90)
    detector = Detector(load_runtime(bench.model, "cpu", "onnxruntime"))
    scores = {}
    for way, least in (("whole", None), ("reduced", detector.decoded_size)):
        found = []
        for i in range(len(index)):
            image, size = read_image_and_size(folder / f"{i}.jpg", min_size=least)
            each = detector.detect_batch([image], EVAL_THRESHOLDS, [size])[0]
            found.append(Detections(each.boxes / factors[i], each.scores, each.labels))
        positions = np.arange(len(index))
        classes = match_classes(detector.config.class_names, index.class_names, index.name)
        result = score(
            index, detector.config.class_names, classes, FoundDetections.from_list(positions, found), coco=None
        )
        scores[way] = 100 * float(result.figures["voc10_mAP50"])
    yield Row("mAP50, 12-megapixel photographs", scores["whole"], scores["reduced"], "points", "whole decode")


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "runtime": runtime_rows,
    "decode": decode_rows,
    "memory": memory_rows,
    "start": start_rows,
    "help": help_rows,
    "coco": coco_rows,
    "loss": loss_rows,
    "eval": eval_rows,
    "service": service_rows,
    "large": large_rows,
    "video": video_rows,
}


if __name__ == "__main__":
    run_command(main)
