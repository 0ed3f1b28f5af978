"""Where the time goes in a row of `benchmarks.table`: `python -m benchmarks.profile decode|service|eval|torch`."""

from __future__ import annotations

import cProfile
import json
import os
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.harness import children_of, command_cost, cpu_by_thread, cpu_in_turns
from benchmarks.service_load import Tally, make_pictures, send_requests
from benchmarks.table import EVAL_IMAGES, eval_command, write_photo
from data.open import default_splits, open_dataset
from evaluation.evaluator import EVAL_THRESHOLDS
from imaging.image_io import decode_image, decode_image_and_size, read_header_bytes, read_image
from nets.detector import Detector
from nets.export.cache import cached_path
from nets.export.load import load_runtime
from nets.weights.bundled import find_model
from service.limits import PACKAGES, Limits
from utils.config import option, parse_options
from utils.cpus import set_num_threads
from utils.errors import UserError, require_packages, run_command

SAMPLE = 40  # images whose parts are measured one by one


@dataclass(frozen=True)
class ProfileOptions:
    """The options of `python -m benchmarks.profile`."""

    row: str = option("", "what to profile: decode, service, eval or torch", positional=True, metavar="ROW")
    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    data: str | None = option(None, "path of a data set, for `eval`", metavar="PATH")
    repetitions: int = option(20, "repetitions of each measurement", low=1, high=10_000)


def main(argv: list[str] | None = None) -> int:
    """Print the parts of one row, with their CPU time."""
    options = parse_options(ProfileOptions, argv, description=__doc__ or "", prog="benchmarks.profile")
    if options.row not in PARTS:
        raise UserError("ROW", f"{options.row!r} is not a row that has a profile", f"choose from {', '.join(PARTS)}")
    if options.row == "eval":
        if not options.data:
            raise UserError("--data", "the row `eval` needs a data set", "give --data PATH")
        open_dataset(options.data, default_splits(options.data)[1])  # an error is raised here, not after minutes
    set_num_threads(1)
    cv2.setNumThreads(1)
    print("| part | CPU ms |\n| --- | --- |")
    for name, seconds in PARTS[options.row](options, find_model(options.checkpoint)):
        print(f"| {name} | {1e3 * seconds:.2f} |", flush=True)
    return 0


def medians(calls: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    return {name: sample.median for name, sample in cpu_in_turns(calls, repetitions).items()}


def decode_parts(options: ProfileOptions, model: Path) -> Iterator[tuple[str, float]]:
    """A photograph of 12 megapixels, from the file to the network's input."""
    letterbox = load_runtime(model, "cpu").config.letterbox
    with tempfile.TemporaryDirectory() as folder:
        path = write_photo(Path(folder) / "photo.jpg")
        data = path.read_bytes()
        size, quarter = read_header_bytes(data).size, decode_image(data, reduce=4)
        eighth = partial(cv2.imdecode, np.frombuffer(data, np.uint8))
        calls: dict[str, Callable[[], object]] = {
            "reading the file": path.read_bytes,
            "header, EXIF, number of scans": partial(read_header_bytes, data),
            "decoding at 1/8, grey: the Huffman codes, hardly more": partial(eighth, cv2.IMREAD_REDUCED_GRAYSCALE_8),
            **{f"decoding at 1/{part}": partial(decode_image, data, reduce=part) for part in (8, 4, 2)},
            "decoding at 1/1": partial(decode_image, data),
            "decoding as chosen": partial(decode_image_and_size, data, min_size=letterbox.decoded_size),
            "resizing from 1/4": partial(letterbox.apply, quarter, size=size),
        }
        yield from medians(calls, options.repetitions).items()


def service_parts(options: ProfileOptions, model: Path) -> Iterator[tuple[str, float]]:
    """A request: the network alone, and the threads of the service; packages by cProfile, as shares of the thread."""
    require_packages("the profile of the service", PACKAGES, "serve")
    from service.app import build_app  # imported here: the other rows need no FastAPI
    from service.server import Server

    detector, pictures = Detector(load_runtime(model, "cpu")), make_pictures(16, 375, 500)
    number, limits = 10 * options.repetitions, Limits(batch_size=1)
    letterbox, profiler = detector.config.letterbox, cProfile.Profile(time.thread_time, builtins=False)
    image = decode_image(pictures[0])
    prepared = letterbox.apply(image)
    calls: dict[str, Callable[[], object]] = {
        "network alone": partial(detector.runtime.run, prepared[None]),
        "network with postprocessing": partial(detector.detect_batch, [prepared]),
        "decoding alone": partial(decode_image_and_size, pictures[0], min_size=letterbox.decoded_size),
        "resizing alone": partial(letterbox.apply, image),
    }
    yield from medians(calls, options.repetitions).items()
    for is_profiled in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = Server(build_app(detector, limits), limits)
            serve = partial(server.run, sockets=[listener])
            thread = threading.Thread(target=partial(profiler.runcall, serve) if is_profiled else serve)
            thread.start()
            ask = partial(send_requests, listener.getsockname()[1], pictures, 1, tally=Tally(), seconds=600)
            try:
                ask(number=20)
                before = cpu_of_threads()
                ask(number=number)
                used = {key: cpu - before.get(key, 0.0) for key, cpu in cpu_of_threads().items()}
            finally:
                server.should_exit = True
                thread.join(60)
        if not is_profiled:
            http, decoder = used.pop(thread.native_id or 0) / number, used.pop(0) / number
            yield "service: network's thread", max(used.values()) / number
            yield "service: decoder's process", decoder
            yield "service: HTTP thread", http
    own: dict[str, float] = defaultdict(float)
    for entry in profiler.getstats():
        own[package_of(entry.code)] += entry.inlinetime
    for name, seconds in sorted(own.items(), key=lambda each: -each[1])[:8]:
        yield f"HTTP thread, {name}", http * seconds / sum(own.values())


def cpu_of_threads() -> dict[int, float]:
    """CPU seconds of this process's threads by their number, and of all child processes as number 0."""
    children = children_of(os.getpid())
    return cpu_by_thread(os.getpid()) | {0: sum(sum(cpu_by_thread(child).values()) for child in children)}


def package_of(code: object) -> str:
    """The package in which a function was written; the event loop of uvloop has no Python functions."""
    path = Path(getattr(code, "co_filename", "built-in"))
    parts = path.parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return path.parent.name if path.parent.name in ("asyncio", "service", "json") else "the rest of Python"


def eval_parts(options: ProfileOptions, model: Path) -> Iterator[tuple[str, float]]:
    """eval.py on `EVAL_IMAGES` images; parts that depend on the image are measured on `SAMPLE` of them."""
    data = options.data or ""
    run = partial(eval_command, model, data)
    yield f"eval.py, {EVAL_IMAGES} images", command_cost(run(EVAL_IMAGES), OMP_NUM_THREADS="1").cpu
    yield "eval.py, 1 image: start, reading the data set, report", command_cost(run(1), OMP_NUM_THREADS="1").cpu
    detector = Detector(load_runtime(model, "cpu", "onnxruntime"))
    index, letterbox = open_dataset(data, default_splits(data)[1]), detector.config.letterbox
    paths = [index.path(i) for i in range(min(SAMPLE, len(index)))]
    images = [read_image(path, min_size=detector.decoded_size) for path in paths]
    inputs = [letterbox.apply(image)[None] for image in images]
    outputs = [detector.runtime.run(each) for each in inputs]
    stages: dict[str, Callable[[], object]] = {
        "network": lambda: [detector.runtime.run(each) for each in inputs],
        "decoding": lambda: [read_image(path, min_size=detector.decoded_size) for path in paths],
        "resizing": lambda: [letterbox.apply(image) for image in images],
        "postprocessing": lambda: [detector.runtime.read(each, EVAL_THRESHOLDS) for each in outputs],
    }
    for name, seconds in medians(stages, max(1, options.repetitions // 5)).items():
        yield f"{name}, {EVAL_IMAGES} images", seconds / len(paths) * EVAL_IMAGES


def torch_parts(options: ProfileOptions, model: Path) -> Iterator[tuple[str, float]]:
    """The operators of PyTorch (CPU time) and of ONNX Runtime (by its profiler) for one image, medians of each."""
    import onnxruntime
    import torch

    from nets.fuse import pack_convolutions

    load_runtime(model, "cpu", "onnxruntime")  # exported, if it was not yet
    runtime: Any = load_runtime(model, "cpu", "torch")
    image = np.random.default_rng(0).integers(0, 256, (1, *runtime.config.input_size, 3), np.uint8)
    times: dict[str, dict[str, list[float]]] = {"PyTorch": defaultdict(list), "ONNX Runtime": defaultdict(list)}

    def began(module: Any, _: object) -> None:
        module.began = time.thread_time()

    def ended(module: Any, _: object, output: object) -> None:
        weight = getattr(module, "conv", module).weight  # nets.fuse packs convolutions
        times["PyTorch"][kind_of("Conv", list(weight.shape))].append(time.thread_time() - module.began)

    for _ in range(3):
        runtime.run(image)
    whole = medians({"run": partial(runtime.run, image)}, options.repetitions)["run"]
    for module in runtime.model.modules():
        if isinstance(getattr(module, "conv", module), torch.nn.Conv2d):
            module.register_forward_pre_hook(began)
            module.register_forward_hook(ended)
    for _ in range(options.repetitions):
        runtime.run(image)
    count = sum(map(len, times["PyTorch"].values())) // options.repetitions
    single = pack_convolutions(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1)).requires_grad_(False))
    with torch.inference_mode():
        call = medians({"call": partial(single, torch.ones(1, 8, 1, 1))}, 50 * options.repetitions)["call"]
    yield "PyTorch: the network", whole
    yield f"PyTorch: {count} convolutions of 8 values, the cost of the calls", count * call
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.enable_profiling = 1, True
    file, providers = str(cached_path(model, "onnxruntime")), ["CPUExecutionProvider"]
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(file, settings, providers=providers)
        for _ in range(options.repetitions):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    for event in events:
        if event["name"].endswith("_kernel_time"):
            shapes = [shape for each in event["args"]["input_type_shape"] for shape in each.values()]
            kind = kind_of(event["args"]["op_name"], shapes[1] if len(shapes) > 1 else [])
            times["ONNX Runtime"][kind].append(event["dur"] / 1e6)
    for name, kinds in times.items():
        for kind, seconds in sorted(kinds.items(), key=lambda each: -sum(each[1])):
            yield f"{name}: {kind}", float(np.median(np.reshape(seconds, (options.repetitions, -1)), axis=0).sum())


def kind_of(operator: str, weight: list[int]) -> str:
    if "conv" not in operator.lower():
        return "all but convolutions"
    if list(weight[-2:]) == [1, 1]:
        return "1x1 convolutions"
    return "depthwise convolutions" if weight[-3] == 1 else "other convolutions"


PARTS = {"decode": decode_parts, "service": service_parts, "eval": eval_parts, "torch": torch_parts}


if __name__ == "__main__":
    run_command(main)
