"""Checkpoints: saving and loading, atomic writing, and initialisation of another model."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import utils.files
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip_prefixes
from nets.weights.transfer import transfer_weights
from nets.yolov4 import YOLOv4
from utils.errors import RunError, UserError
from utils.files import write_atomically

SMALL = {"backbone": "mobilenet_v3_small", "alpha": 0.35, "neck_width": 0.1, "input_size": (64, 64)}


def small_config(*class_names: str, **changes: Any) -> ModelConfig:
    return ModelConfig(class_names or ("cat", "dog"), **(SMALL | changes))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A complete checkpoint, with random weights and a training state of every plain type."""
    torch.manual_seed(0)
    config = small_config(score_threshold=0.31, score_threshold_source="best F1")
    training = {"step": 7, "numbers": [1, 2.5, None, True], "moments": {0: {"mean": torch.rand(3)}}, "text": "grün"}
    return Checkpoint(config, YOLOv4(config).state_dict(), {"mAP": 0.5}, {"options": {"seed": 3}}, training)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_loading_returns_the_saved_checkpoint(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / name, checkpoint)
    loaded = load_checkpoint(tmp_path / name)
    assert loaded.config == checkpoint.config
    assert loaded.metrics == checkpoint.metrics and loaded.info == checkpoint.info
    assert loaded.weights.keys() == checkpoint.weights.keys()
    for key, tensor in checkpoint.weights.items():
        assert torch.equal(loaded.weights[key], tensor), key
    if name.endswith(".pth"):
        assert loaded.training is not None and checkpoint.training is not None
        assert torch.equal(loaded.training["moments"][0]["mean"], checkpoint.training["moments"][0]["mean"])
        assert loaded.training["numbers"] == checkpoint.training["numbers"] and loaded.training["text"] == "grün"
    else:
        assert loaded.training is None
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_half_precision_halves_the_file_and_loads_as_float32(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    useful = Checkpoint(checkpoint.config, checkpoint.weights)
    save_checkpoint(tmp_path / f"full_{name}", useful)
    save_checkpoint(tmp_path / name, useful, half=True)
    saving = (tmp_path / f"full_{name}").stat().st_size - (tmp_path / name).stat().st_size
    halved = sum(2 * t.numel() for t in useful.weights.values() if t.is_floating_point())
    assert saving == pytest.approx(halved, rel=0.1)
    loaded = load_checkpoint(tmp_path / name).weights
    key = next(key for key, tensor in useful.weights.items() if tensor.ndim == 4)
    assert loaded[key].dtype == torch.float32
    assert torch.allclose(loaded[key], useful.weights[key], atol=2e-3)


@pytest.mark.parametrize("name", ["module.a.b", "_orig_mod.a.b", "module._orig_mod.a.b", "_orig_mod.module.a.b"])
def test_prefixes_of_wrappers_are_understood(name: str) -> None:
    assert strip_prefixes(name) == "a.b"


def test_a_wrapped_models_weights_are_saved_without_its_prefix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in checkpoint.weights.items()}
    save_checkpoint(tmp_path / "a.pth", Checkpoint(checkpoint.config, wrapped))
    assert load_checkpoint(tmp_path / "a.pth").weights.keys() == checkpoint.weights.keys()


def test_a_tensor_view_is_saved_without_its_base(checkpoint: Checkpoint, tmp_path: Path) -> None:
    key = next(key for key, tensor in checkpoint.weights.items() if tensor.ndim == 1)
    large = torch.zeros(1_000_000)
    weights = {**checkpoint.weights, key: large[: checkpoint.weights[key].numel()]}
    save_checkpoint(tmp_path / "a.pth", Checkpoint(checkpoint.config, weights))
    save_checkpoint(tmp_path / "b.pth", Checkpoint(checkpoint.config, checkpoint.weights))
    assert abs((tmp_path / "a.pth").stat().st_size - (tmp_path / "b.pth").stat().st_size) < 1000


def test_weights_that_are_not_finite_are_never_saved(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    key = next(iter(checkpoint.weights))
    broken = {**checkpoint.weights, key: torch.full_like(checkpoint.weights[key], float("nan"))}
    with pytest.raises(RunError, match="not finite"):
        save_checkpoint(path, Checkpoint(checkpoint.config, broken))
    assert path.read_bytes() == before


# ---- the write itself


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("stage", ["in the bytes", "before fsync", "before rename"])
def test_a_process_killed_inside_a_write_leaves_the_previous_file(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "last.pth"
    path.write_bytes(b"old" * 1000)
    child = os.fork()
    if not child:
        _die_in_write(path, stage)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert path.read_bytes() == b"old" * 1000
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def _die_in_write(path: Path, stage: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if stage == "before fsync":
        os.fsync = die  # type: ignore[assignment]
    elif stage == "before rename":
        os.replace = die  # type: ignore[assignment]
    else:

        class Half:
            def __init__(self, *arguments: Any) -> None:
                self.file = open(*arguments)  # noqa: SIM115 -- it never comes to closing

            def __enter__(self) -> Half:
                return self

            def __exit__(self, *_: object) -> None: ...

            def write(self, data: bytes) -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                die()

        utils.files.open = Half  # type: ignore[attr-defined]
    write_atomically(path, b"new" * 5000)
    os._exit(0)


def test_a_write_that_reads_back_otherwise_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pth"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: b"something else")
        with pytest.raises(RunError, match="read back"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["last.pth"]


def test_a_write_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "last.pth").write_bytes(b"old")
    monkeypatch.setattr(utils.files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "last.pth", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["last.pth"]
    assert (tmp_path / "last.pth").read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A separate disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_previous_file_and_says_what_is_missing(small_disk: Path) -> None:
    path = small_disk / "last.pth"
    write_atomically(path, b"o" * 400_000)
    with pytest.raises(RunError, match=r"No space left on device; it needs 0.9 MB, 0\.\d MB are free, .* are missing"):
        write_atomically(path, b"n" * 900_000)
    assert path.read_bytes() == b"o" * 400_000
    assert [each.name for each in small_disk.iterdir()] == ["last.pth"]


def test_a_folder_that_does_not_exist_is_an_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        write_atomically(tmp_path / "gone" / "a.pth", b"")


# ---- starting another model


def test_the_same_classes_take_over_every_tensor(checkpoint: Checkpoint) -> None:
    model = YOLOv4(checkpoint.config)
    report = transfer_weights(model, checkpoint, "a.pth")
    assert report.kept == report.total and not report.mismatched
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, checkpoint.weights[key]), key


def test_other_classes_are_matched_by_name(checkpoint: Checkpoint) -> None:
    torch.manual_seed(1)
    model = YOLOv4(small_config("bird", "dog", "fish"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = transfer_weights(model, checkpoint, "a.pth")
    assert report.matched_classes == ("dog",) and set(report.new_classes) == {"bird", "fish"}
    outputs = [key for key in before if before[key].shape != checkpoint.weights[key].shape]
    assert outputs
    for key in outputs:
        old = checkpoint.weights[key].unflatten(0, (3, 7))  # 3 anchors: 4 of the box, objectness, cat, dog
        new, start = (tensor.unflatten(0, (3, 8)) for tensor in (model.state_dict()[key], before[key]))
        assert torch.equal(new[:, :5], old[:, :5])
        assert torch.equal(new[:, 6], old[:, 6])  # dog
        assert torch.equal(new[:, [5, 7]], start[:, [5, 7]])  # bird, fish
    for words in ("tensors copied", "by name: dog", "initialised randomly: bird, fish"):
        assert words in str(report)


def test_less_than_half_of_the_tensors_is_an_error(checkpoint: Checkpoint) -> None:
    few = dict(list(checkpoint.weights.items())[:40])
    with pytest.raises(UserError, match=r"a\.pth.*tensors"):
        transfer_weights(YOLOv4(checkpoint.config), Checkpoint(checkpoint.config, few), "a.pth")
    other = YOLOv4(small_config(alpha=0.5, neck_width=0.2))
    with pytest.raises(UserError, match="tensors"):
        transfer_weights(other, checkpoint, "a.pth")
