"""The detectors to time: checkpoints on every runtime and precision, exported files, the reference, other projects."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import command_cost
from data.index import DatasetIndex
from nets.detector import Detector
from nets.export.form import Form
from nets.export.formats import FORMAT_OF_RUNTIME, FORMATS, are_installed, file_kind
from nets.export.load import load_runtime
from nets.model_config import ModelConfig
from nets.runtime import Runtime
from nets.weights.bundled import find_model
from utils.cpus import num_threads
from utils.errors import MissingExtra, RunError, UserError, warn

if TYPE_CHECKING:
    from nets.export.parity import Parity
    from nets.yolov4 import YOLOv4
from benchmarks.compare.options import BenchmarkOptions

PARITY_PHOTOS = 8


@dataclass
class Entry:
    """One detector to time.

    Args:
        name: the name in the table.
        call: runs one batch; given images (B, H, W, 3) uint8.
        size: (height, width) of its input, pixels.
        runtime, precision: as shown in the table.
        file_bytes: size of the deployed files.
        memory_bytes: peak resident memory of a process that loads it and runs it once, with Python and runtime.
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


def build_entries(options: BenchmarkOptions, folder: Path, failed: list[str]) -> list[Entry]:
    """Build the entries. The first is the baseline: a peer, else an external file, else the reference, else a model.

    Exports that fail are omitted, and their names are added to `failed`. Raises RunError if no entry remains.
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
            entries += checkpoint_entries(model, path, config, options, folder, failed)
    if not entries:
        raise RunError("benchmark", "every export failed", "see the warnings above")
    return entries


def checkpoint_entries(
    model: YOLOv4, path: Path, config: ModelConfig, options: BenchmarkOptions, folder: Path, failed: list[str]
) -> list[Entry]:
    """One entry for each runtime and precision of a checkpoint. Exports that fail are omitted with a warning."""
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
                    warn(runtime, f"needs {' and '.join(exporter.packages)}, which is not installed", "skipped")
                continue
            exact = exporter.half if precision == "half" else precision
            if exact is None or (precision == "int8" and (not exporter.int8 or dynamic)):
                reason = f"this project does not export {exporter.title} in {precision}"
                warn(
                    runtime, "int8 files support batch size 1 only" if dynamic and exporter.int8 else reason, "skipped"
                )
                continue
            form = exporter.closest(Form(uint8_input=True, dynamic=dynamic, precision=exact))
            file = folder / f"{path.stem}-{digest(path)}-{config.size_words}-{runtime}-{exact}{exporter.suffix}"
            try:
                parity = export_entry_file(model, file, runtime, form, options)
            except MissingExtra as error:
                warn(f"{runtime} {precision}", str(error), "skipped")
                continue
            except RunError as error:
                warn(f"{runtime} {precision}", str(error), "skipped")
                if file.name not in failed:  # the export is repeated for each number of threads
                    failed.append(file.name)
                continue
            entries.append(dataclasses.replace(load_entry(path.stem, file, precision), parity=parity))
    return entries


def digest(path: Path) -> str:
    """Digest of the weights, so that files of another model with the same name are not reused."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def export_entry_file(model: YOLOv4, file: Path, runtime: str, form: Form, options: BenchmarkOptions) -> Parity:
    """Export a file and compare it with the network on photographs. An existing file is only compared."""
    from nets.export.check import check_export, export_and_check
    from nets.export.parity import read_photos
    from nets.export.quantize import calibration_images
    from nets.torch_runtime import TorchRuntime

    kind = FORMAT_OF_RUNTIME[runtime]
    photos = comparison_photos(model.config, options)
    if file.exists():
        parity = check_export(TorchRuntime(model), file, form, photos)
    elif form.precision == "int8":
        print(f"quantising {file.name}", flush=True)
        training = open_split(options, 0)
        calibration = read_photos([training.path(i) for i in calibration_images(training, options.calibration_images)])
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
    from nets.export.parity import drawn_photos, read_photos

    if not options.data:
        return drawn_photos(config, PARITY_PHOTOS)
    index = open_split(options, 1)
    return read_photos([index.path(i) for i in index.spread(PARITY_PHOTOS)])


@functools.cache
def open_split(options: BenchmarkOptions, which: int) -> DatasetIndex:
    """The data's training (0) or validation (1) split."""
    from data.open import default_splits, open_dataset

    return open_dataset(options.data or "", default_splits(options.data or "")[which])


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
    """An entry for a network of this project. If `precision` is None, it is read from the file."""
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
    """Load a model file on a runtime and warm it up. `size` (height, width) overrides a checkpoint's input size."""
    network = load_runtime(path, "cpu", runtime)
    if size is not None:
        network.config = network.config.replace(input_size=size)
    network.warm_up()
    return network


def peak_bytes(statement: str) -> int | None:
    """Peak resident memory in bytes of a process that runs only this statement, with the names of this module.

    None on systems other than POSIX.
    """
    if os.name != "posix":
        return None
    threads = {"OMP_NUM_THREADS": str(num_threads())}
    program = f"from benchmarks.compare.entries import *\n{statement}"
    return command_cost([sys.executable, "-c", program], **threads).memory


def reference_entry() -> Entry:
    """The reference network in PyTorch as its users run it: eager mode, batch norms not folded."""
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
    """A published network with random weights on ONNX Runtime."""
    from benchmarks.peers import export_peer

    path = folder / f"{name}.onnx"
    return other_entry(path if path.exists() else export_peer(name, path))


def other_entry(path: Path) -> Entry:
    """An ONNX file of any detector, run on random inputs. Raises UserError if the file does not exist."""
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
