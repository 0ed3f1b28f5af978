"""Every command with invalid input: one line in the standard form, the right exit code, and no files written."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train_makers import TINY, demo_data

import eval as eval_command
import export
import predict
import serve
import train
from nets.model_config import ModelConfig
from nets.weights import import_reference
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from prediction.options import PredictOptions
from training import options as training_options
from utils.config import check_options, leaves, options_to_dict
from utils.errors import run_command

FORM = re.compile(r"error: \S.*?: \S.*; \S.*")
SECONDS = 5.0  # of this process's own time in which the worst of inputs must be refused
COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train.main,
    "eval": eval_command.main,
    "predict": predict.main,
    "export": export.main,
    "serve": serve.main,
    "import": import_reference.main,
}
OPTIONS = {
    "train": training_options.TrainOptions,
    "eval": eval_command.EvalOptions,
    "predict": PredictOptions,
    "export": export.ExportOptions,
    "serve": serve.ServeOptions,
}


# ---- what is needed: a data set, a checkpoint, and everything that is neither


@functools.cache
def ground() -> Path:
    """A folder with all files that the cases use. It must not be changed."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    shutil.copytree(demo_data(), folder / "data")
    torch.manual_seed(0)
    config = ModelConfig(("car", "boat"), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    checkpoint = Checkpoint(config, YOLOv4(config).state_dict())
    for suffix in (".pth", ".safetensors"):
        save_checkpoint(folder / f"good{suffix}", checkpoint)
    whole = (folder / "good.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    (folder / "flipped.pth").write_bytes(flipped)
    torch.save([1, 2], folder / "list.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "other.pth")
    torch.save({"weights": torch.nn.Linear(2, 2)}, folder / "code.pth")
    for suffix in ("pth", "safetensors", "onnx", "xml", "torchscript", "pt", "json", "txt", "yaml", "jpg", "mp4"):
        for name, content in CONTENTS.items():
            (folder / f"{name}.{suffix}").write_bytes(content)
        (folder / f"folder.{suffix}").mkdir()
        os.mkfifo(folder / f"pipe.{suffix}")
        (folder / f"broken.{suffix}").symlink_to("nowhere")
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
        _make_socket(folder, f"socket.{suffix}")
    for suffix in ("json", "torchscript", "pth"):
        (folder / f"taken.{suffix}").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "photo").mkdir()
    picture = next((folder / "data" / "VOC2026" / "JPEGImages").glob("*.jpg"))
    shutil.copy(picture, folder / "photo" / "photo.jpg")
    return folder


CONTENTS = {
    "empty": b"",
    "page": b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "noise": bytes(range(256)) * 8,
    "zeros": bytes(4096),
}
KINDS = (*CONTENTS, "folder", "pipe", "broken", "loop", "socket")


def _make_socket(folder: Path, name: str) -> None:
    """The address of a socket has at most about a hundred bytes, so it is given relative to its folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as each:
            each.bind(name)
    finally:
        os.chdir(before)


def listing(folder: Path) -> list[tuple[str, int, int]]:
    entries = sorted(folder.rglob("*"))
    return [(str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in entries]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder. It must be empty after the test, and the files of the cases must be unchanged."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))
    before = listing(ground())
    yield work
    assert listing(ground()) == before, "something was written where it should not be"
    assert not list(work.iterdir()), "something was left behind"


def refused(command: str, argv: list[str], code: int, *words: str, capsys: Any) -> str:
    """Run a command that must exit with `code` and one standard line that contains `words`. Returns the line."""
    started = time.process_time()
    with pytest.raises(SystemExit) as left:
        run_command(COMMANDS[command], argv)
    took = time.process_time() - started
    said = capsys.readouterr()
    lines = [line for line in said.err.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in said.err + said.out
    assert left.value.code == code, f"exit code {left.value.code}: {lines[-1:]}"
    assert len(errors) == 1 and lines[-1] == errors[0] and FORM.fullmatch(errors[0]), lines
    assert "internal:" not in errors[0] and "Errno" not in errors[0], errors
    assert all(line.startswith(("error: ", "warning: ")) or "%|" in line for line in lines), lines  # or a progress bar
    for word in words:
        assert word in errors[0], errors[0]
    assert took < SECONDS, f"{took:.1f} s"
    return errors[0]


def fill(text: str) -> list[str]:
    return [word.format(g=ground(), d=ground() / "data") for word in text.split()]


# ---- options: every one of every command, below and above its range, of the wrong type, not one of its choices


def bad_values(cls: type) -> Iterator[tuple[str, list[str]]]:
    """(option, arguments that give it an invalid value)."""
    for leaf in leaves(cls).values():
        meta, hint = leaf.field.metadata, leaf.hint
        kind = next((k for k in (bool, int, float) if k is hint or k in _parts(hint)), str)
        if kind is bool or meta["positional"]:
            continue
        flag = f"--{leaf.name.replace('_', '-')}"
        count = meta["nargs"] if isinstance(meta["nargs"], int) else 1
        wrong: list[str] = ["sideways"] if meta["choices"] else []
        if kind in (int, float):
            wrong += ["many", "nan", "1e999", "9" * 400, ""]
            wrong += [str(meta[end] + step) for end, step in (("low", -1), ("high", 1)) if meta[end] is not None]
            wrong += [str(meta["above"])] if meta["above"] is not None else []
        for value in wrong:
            yield flag, [flag, *([value] * count)]


def _parts(hint: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    for part in typing.get_args(hint):
        found += (part, *_parts(part))
    return found


@pytest.mark.parametrize("command", OPTIONS)
def test_no_option_takes_a_value_outside_of_its_range(command: str, place: Path, capsys: Any) -> None:
    count = 0
    for flag, words in bad_values(OPTIONS[command]):
        line = refused(command, words, 2, capsys=capsys)
        assert line.startswith(f"error: {flag}: "), line
        shown = words[1] if len(words[1]) < 20 else "digits"
        assert shown in line or words[1] in line or repr(words[1]) in line or "inf" in line, line
        count += 1
    assert count > 10


# ---- files: every option that names one, given every kind of file that it cannot use

# command line up to the file -> the suffix that the option expects
READS = {
    "train --run-dir run --data": ".json",
    "train --run-dir run  --data": ".yaml",
    "train --run-dir run --data {d} --val-data": ".json",
    "train --run-dir run --data {d} --classes": ".txt",
    "train --run-dir run --data {d} --weights": ".pth",
    "train --run-dir run --data {d} --weights ": ".safetensors",
    "train --run-dir run --data {d} --pretrained": ".pth",
    "train --run-dir run --data {d} --pretrained ": ".safetensors",
    "train --config": ".json",
    "train --resume": ".pth",
    "eval --data {d} --checkpoint": ".pth",
    "eval --data {d} --checkpoint ": ".onnx",
    "eval --checkpoint {g}/good.pth --data": ".json",
    "eval --checkpoint {g}/good.pth --data ": ".yaml",
    "eval --data {d} --detections": ".json",
    "eval --compare {g}/taken.json": ".json",
    "eval --config": ".json",
    "predict {g}/photo/photo.jpg --checkpoint": ".pth",
    "predict {g}/photo/photo.jpg --checkpoint ": ".safetensors",
    "predict {g}/photo/photo.jpg  --checkpoint": ".onnx",
    "predict {g}/photo/photo.jpg   --checkpoint": ".torchscript",
    "predict {g}/photo/photo.jpg --checkpoint  ": ".xml",
    "predict {g}/photo/photo.jpg  --checkpoint  ": ".pt",
    "export --output out.onnx --checkpoint": ".pth",
    "export --checkpoint {g}/good.pth --output out.onnx --data": ".json",
    "serve --port 0 --checkpoint": ".pth",
    "serve --port 0 --checkpoint {g}/good.pth --browser-model": ".onnx",
    "import": ".pth",
    "import ": ".safetensors",
}
RESULTS = {"import": ["out.pth"]}
TINY_WORDS = [*TINY, "--epochs", "1"]  # should one begin after all


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", READS, ids=lambda words: f"{words} {READS[words]}")
def test_unusable_input_is_rejected(words: str, kind: str, place: Path, capsys: Any) -> None:
    command, *argv = fill(words)
    name = f"{kind}{READS[words]}"
    argv = [*(TINY_WORDS if "--run-dir" in words else []), *argv, str(ground() / name), *RESULTS.get(command, [])]
    refused(command, argv, 2, capsys=capsys)


@pytest.mark.parametrize("words", READS, ids=lambda words: f"{words} {READS[words]}")
@pytest.mark.parametrize("name", ["gone", "n" * 300, "\udcff\udcfe", "line\nbreak", "/dev/zero"], ids=repr)
def test_a_name_without_a_file_is_rejected(words: str, name: str, place: Path, capsys: Any) -> None:
    command, *argv = fill(words)
    path = name if name.startswith("/") else name + READS[words]
    argv = [*(TINY_WORDS if "--run-dir" in words else []), *argv, path, *RESULTS.get(command, [])]
    refused(command, argv, 2, capsys=capsys)


# what is the matter with a model file -> what the line says of it
MODELS = {
    "cut.pth": "truncated or damaged",
    "flipped.pth": "damaged",
    "list.pth": "",
    "other.pth": "",
    "code.pth": "could run code",
    "page.pth": "is a web page",
    "pointer.pth": "git lfs pull",
    "empty.pth": "is empty",
    "folder.pth": "is a folder",
    "pipe.pth": "not a file",
}
USERS = [
    "train --run-dir run --data {d} --weights",
    "train --run-dir run --data {d} --pretrained",
    "eval --data {d} --checkpoint",
    "predict {g}/photo/photo.jpg --checkpoint",
    "export --output out.onnx --checkpoint",
    "serve --port 0 --checkpoint",
    "import",
]


@pytest.mark.parametrize("words", USERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_is_rejected_with_its_reason(name: str, words: str, place: Path, capsys: Any) -> None:
    command, *argv = fill(words)
    argv = [*(TINY_WORDS if "--run-dir" in words else []), *argv, str(ground() / name), *RESULTS.get(command, [])]
    reason = MODELS[name] if (command, name) not in {("export", "folder.pth")} else ""
    line = refused(command, argv, 2, name, capsys=capsys)
    assert reason in line or (name == "folder.pth" and "folder" in line), line


# ---- results: every option that names one, given every place where it cannot be

WRITES = {
    "eval --data {d} --checkpoint {g}/good.pth --json": "--json",
    "eval --data {d} --checkpoint {g}/good.pth --report": "--report",
    "eval --data {d} --checkpoint {g}/good.pth --save-detections": "--save-detections",
    "eval --compare {g}/taken.json {g}/taken.json --json": "--json",
    "export --data {d} --checkpoint {g}/good.pth --format torchscript --output": "",
    "import {g}/other.pth": "OUT.pth",
}
SUFFIX = {"export": ".torchscript", "import": ".pth"}


@pytest.mark.parametrize("where", ["{g}/taken{s}", "{g}/folder{s}", "{g}/taken.json/x{s}", "{g}/" + "n" * 300 + "{s}"])
@pytest.mark.parametrize("words", WRITES)
def test_a_result_that_cannot_be_written_is_rejected_before_the_work(
    words: str, where: str, place: Path, capsys: Any
) -> None:
    command, *argv = fill(words)
    suffix = SUFFIX.get(command, ".json")
    argv.append(where.format(g=ground(), s=suffix))
    line = refused(command, argv, 2, WRITES[words], capsys=capsys)
    assert "taken" not in where or where.endswith("x{s}") or "is there" in line or "exists" in line


@pytest.mark.parametrize(
    "words",
    [
        "train --data {d} --run-dir {d}/run",
        "train --data {d} --run-dir {d}/VOC2026/run",
        "train --data {d} --run-dir {d}/VOC2026/JPEGImages",
        "eval --data {d} --checkpoint {g}/good.pth --json {d}/figures.json",
        "eval --data {d} --checkpoint {g}/good.pth --voc-submission {d}/VOC2026/results",
        "export --data {d} --checkpoint {g}/good.pth --output {d}/VOC2026/m.onnx",
        "predict {g}/photo --checkpoint {g}/good.pth --output {g}/photo",
        "predict {g}/photo --checkpoint {g}/good.pth --output {g}/photo/out",
    ],
)
def test_nothing_is_written_into_data(words: str, place: Path, capsys: Any) -> None:
    command, *argv = fill(words)
    refused(command, [*argv, *(TINY_WORDS if command == "train" else [])], 2, capsys=capsys)


@pytest.mark.parametrize("where", ["{g}/taken.json", "{g}/taken.json/run", "{g}/photo", "{g}/broken.pth", "x" * 300])
def test_a_run_starts_in_a_folder_of_its_own_only(where: str, place: Path, capsys: Any) -> None:
    argv = ["--data", str(ground() / "data"), *TINY, "--run-dir", where.format(g=ground())]
    refused("train", argv, 2, "--run-dir: ", capsys=capsys)


@pytest.mark.parametrize("where", ["{g}/taken.json", "{g}/taken.json/out", "{g}/broken.pth", "x" * 300])
def test_predictions_go_into_a_folder_only(where: str, place: Path, capsys: Any) -> None:
    sources = [str(ground() / "photo" / "photo.jpg"), "--checkpoint", str(ground() / "good.pth")]
    refused("predict", [*sources, "--output", where.format(g=ground())], 2, capsys=capsys)


# ---- runs that cannot be resumed


@functools.cache
def run_files() -> dict[str, bytes]:
    """config.json and last.pth of a run that was interrupted in its second epoch."""
    folder = Path(tempfile.mkdtemp(prefix="run-")) / "run"
    values = {"data": str(ground() / "data"), "run_dir": str(folder), "input_size": [64], "epochs": 2}
    options = check_options(training_options.TrainOptions, values)
    config = ModelConfig(("car",), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    folder.mkdir()
    info = {"options": options_to_dict(options), "world_size": 1, "epoch": 1, "data": {}, "num_train_images": 8}
    save_checkpoint(folder / "last.pth", Checkpoint(config, YOLOv4(config).state_dict(), info=info, training={"a": 1}))
    import json

    return {
        "last.pth": (folder / "last.pth").read_bytes(),
        "config.json": json.dumps(options_to_dict(options)).encode(),
    }


def with_file(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for each, content in run_files().items():
            data = change(content) if each == name else content
            if data is not None:
                (folder / each).write_bytes(data)

    return make


def changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    return with_file(name, lambda data: data.replace(old.encode(), new.encode(), 1))


BAD_RUNS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing there": (lambda folder: None, "is not the folder of a run"),
    "no configuration": (with_file("config.json", lambda data: None), "is not the folder of a run"),
    "configuration cut": (with_file("config.json", lambda data: data[:50]), "not JSON"),
    "configuration empty": (with_file("config.json", lambda data: b""), "not JSON"),
    "configuration a list": (with_file("config.json", lambda data: b"[]"), "one JSON object"),
    "configuration not UTF-8": (with_file("config.json", lambda data: b"\xff{}"), "not UTF-8"),
    "configuration too large": (with_file("config.json", lambda data: data + b" " * (2 << 20)), "MB"),
    "configuration nested": (with_file("config.json", lambda data: b"[" * 200_000), "not JSON"),
    "configuration of digits": (with_file("config.json", lambda data: b'{"epochs": ' + b"9" * 5000 + b"}"), "not JSON"),
    "epochs of many digits": (changed("config.json", '"epochs": 2', '"epochs": ' + "9" * 400), "--epochs"),
    "rate of many digits": (
        changed("config.json", '"learning_rate": null', '"learning_rate": ' + "9" * 400),
        "--learning-rate",
    ),
    "batch of 0": (changed("config.json", '"batch_size": 16', '"batch_size": 0'), "--batch-size: 0 is out of range"),
    "batch a word": (changed("config.json", '"batch_size": 16', '"batch_size": "all"'), "--batch-size"),
    "batch null": (changed("config.json", '"batch_size": 16', '"batch_size": null'), "--batch-size"),
    "a name with a zero byte": (changed("config.json", '"backbone": null', '"backbone": "a\\u0000b"'), "--backbone"),
    "another backbone": (changed("config.json", '"backbone": null', '"backbone": "mobilenet_v1"'), "--backbone"),
    "other epochs": (changed("config.json", '"epochs": 2', '"epochs": 3'), "--epochs 3 (the run: 2)"),
    "checkpoint cut": (with_file("last.pth", lambda data: data[: len(data) // 2]), "truncated or damaged"),
    "checkpoint empty": (with_file("last.pth", lambda data: b""), "is empty"),
    "checkpoint a page": (with_file("last.pth", lambda data: CONTENTS["page"]), "is a web page"),
    "checkpoint flipped": (with_file("last.pth", lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:]), ""),
    "checkpoint of another data set": (lambda folder: with_file("", bytes)(folder), "the data has changed: classes"),
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_a_damaged_or_different_run_is_not_resumed(kind: str, place: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    make, words = BAD_RUNS[kind]
    make(folder)
    before = listing(folder)
    refused("train", ["--resume", str(folder), "--device", "cpu"], 2, words, capsys=capsys)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"world_size": "two"}, "contains no options of a run"),
        ({"world_size": 0}, "contains no options of a run"),
        ({"epoch": None}, "contains no options of a run"),
        ({"options": [1]}, "contains no options of a run"),
        ({"data": "here"}, "contains no options of a run"),
        ({"options": {"batch_size": "x"}}, "--batch-size"),
    ],
)
def test_a_checkpoint_with_a_false_training_state_is_not_resumed(
    info: dict[str, Any], words: str, place: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(run_files()["config.json"])
    config = ModelConfig(("car",), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    save_checkpoint(folder / "last.pth", Checkpoint(config, YOLOv4(config).state_dict(), info=info, training={"a": 1}))
    refused("train", ["--resume", str(folder), "--device", "cpu"], 2, words, capsys=capsys)


def test_a_file_without_training_state_is_not_resumed(place: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(run_files()["config.json"])
    config = ModelConfig(("car",), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
    checkpoint = Checkpoint(config, YOLOv4(config).state_dict(), info={"finished": False})
    save_checkpoint(folder / "last.pth", checkpoint)
    refused("train", ["--resume", str(folder)], 2, "contains no training state", capsys=capsys)


def test_every_error_says_what_to_do() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    missing = []
    rooms = ("nets", "utils", "imaging", "service", "training")
    parts = [path for room in rooms for path in (root / room).rglob("*.py")]
    for path in [*root.glob("*.py"), *parts]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("UserError", "RunError"):
                is_whole = len(node.args) >= 3 or any(isinstance(arg, ast.Starred) for arg in node.args)
                if not is_whole and not any(word.arg == "todo" for word in node.keywords):
                    missing.append(f"{path.name}:{node.lineno}")
    assert not missing


# ---- options that do not go together, and words that are none

TOGETHER = {
    "train": "--data: is required",
    "train --data {d} --input-size 100": "--input-size: 100 100",
    "train --data {d} --input-size 32": "--input-size: 32 32",
    "train --data {d} --scale 2 1": "--scale",
    "train --data {d} --mosaic-scale 2 1": "--mosaic-scale",
    "train --data {d} --backbone resnet50": "--backbone: 'resnet50'",
    "train --data {d} --backbone timm:": "timm",
    "train --data {d} --anchors mine": "--anchors",
    "train --data {d} --weights {g}/good.pth --pretrained {g}/good.pth": "--weights",
    "train --data {d} --freeze-layers 3": "--freeze-layers",
    "train --data {d} --device tpu": "--device: 'tpu'",
    "train --data {d} --device meta": "--device: 'meta'",
    "train --data {d} --device mps": "--device: 'mps'",
    "train --data {d} --device cuda:99": "--device: 'cuda:99'",
    "train --data {d} --device cuda:-1": "--device",
    "train --data {d} --train-split nowhere": "nowhere",
    "train --data {d} --val-split nowhere": "nowhere",
    "train --resume {g}/empty --run-dir x": "--resume",
    "train --resume auto": "--run-dir: is required",
    "train --data {g}/empty": "",
    "train --preset nothing": "--preset",
    "train --nonsense 1": "--nonsense",
    "train --epochs": "--epochs",
    "train --data": "--data",
    "train stray": "stray",
    "eval": "--data",
    "eval --data {d} --split nowhere --checkpoint {g}/good.pth": "nowhere",
    "eval --data {d} --checkpoint {g}/good.pth --input-size 100": "--input-size",
    "eval --data {d} --checkpoint {g}/good.pth --runtime abacus": "--runtime",
    "eval --data {d} --checkpoint {g}/good.pth --device nowhere": "--device",
    "eval --compare {g}/taken.json": "--compare",
    "predict": "SOURCE",
    "predict nowhere.jpg --checkpoint {g}/good.pth": "nowhere.jpg",
    "predict {g}/empty --checkpoint {g}/good.pth": "contains no images",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --classes unicorn": "unicorn",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --score-threshold 2": "2",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --score-threshold car=x": "",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --line 1,2,3": "1,2,3",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --zone 1,2": "1,2",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --input-size 33": "33",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --save poem": "poem",
    "predict {g}/photo/photo.jpg --checkpoint {g}/good.pth --device cuda:7": "--device",
    "export --checkpoint {g}/good.pth --raw --nms --output x.onnx": "--raw",
    "export --checkpoint {g}/good.pth --half --int8 --output x.onnx": "--half",
    "export --checkpoint {g}/good.pth --int8 --output x.onnx": "--int8",
    "export --checkpoint {g}/good.pth --output x.pth": "--output",
    "export --checkpoint {g}/good.pth --output nowhere/x.onnx": "nowhere",
    "export --checkpoint {g}/good.pth --input-size 7 --output x.onnx": "--input-size",
    "export --checkpoint {g}/good.pth --images {g}/empty --output x.onnx": "--images",
    "serve --checkpoint {g}/good.pth --port 70000": "--port",
    "serve --checkpoint {g}/good.pth --host 999.1.1.1": "",
    "serve --checkpoint {g}/good.pth --ort-web {g}/empty": "--ort-web",
    "serve --checkpoint {g}/good.pth --input-size seven": "--input-size",
    "import": "",
    "import {g}/other.pth out.onnx": "OUT.pth",
    "import {g}/good.pth out.pth": "",
}


@pytest.mark.parametrize("words", TOGETHER)
def test_contradictory_values_are_a_one_line_error(words: str, place: Path, capsys: Any) -> None:
    command, *argv = fill(words)
    if command == "serve":
        pytest.importorskip("fastapi")
    tiny = TINY_WORDS if words.startswith("train --data {d}") else []
    refused(command, [*tiny, *argv], 2, TOGETHER[words], capsys=capsys)


def test_a_pretrained_file_of_another_backbone_is_an_error(place: Path, capsys: Any) -> None:
    argv = ["--data", str(ground() / "data"), "--run-dir", "run", *TINY, "--backbone", "mobilenet_v1"]
    argv += ["--neck-width", "1"]
    for option, words in (("--pretrained", "tensors of mobilenet_v1 match"), ("--weights", "tensors fit")):
        refused("train", [*argv, option, str(ground() / "good.pth")], 2, words, capsys=capsys)


def test_dataset_subcommands_are_rejected_in_the_same_form(place: Path, capsys: Any) -> None:
    COMMANDS["dataset"] = importlib.import_module("dataset").main
    for words in ("nonsense", "check", "check {g}/gone", "stats {g}/empty", "split {g}/gone", "anchors {g}/page.json"):
        refused("dataset", fill(words), 2, capsys=capsys)
