"""Invalid model files are rejected in one line with the reason, with little memory and without running code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nets.export.exported import ExportedRuntime
from nets.export.form import Form, write_metadata
from nets.export.load import load_runtime
from nets.model_config import ModelConfig
from nets.weights import import_reference
from nets.weights.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from nets.weights.model_file import check_exported_file
from nets.weights.pretrained import read_weights_file
from nets.weights.torch_file import MAX_PICKLE_BYTES, read_torch_file, seal
from nets.yolov4 import YOLOv4
from tests.long import bombs
from utils.errors import RunError, UserError, brief

CONFIG = ModelConfig(("cat", "dog"), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))
EXTRA_BYTES = 1 << 30


@pytest.fixture(scope="module")
def good() -> bytes:
    """The bytes of a valid checkpoint."""
    return checkpoint_bytes()


@pytest.fixture(autouse=True)
def little_memory() -> Any:
    """Fails if a test used a gigabyte of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert extra < EXTRA_BYTES, f"{extra / 1e9:.2f} GB more than before"


@functools.cache
def network_weights() -> dict[str, torch.Tensor]:
    return YOLOv4(CONFIG).state_dict()


def checkpoint_bytes(**changes: Any) -> bytes:
    """A file with a valid digest and some changed parts; None removes a part."""
    content: dict[str, Any] = {
        "format": "mobilenet-yolov4",
        "format_version": 1,
        "config": CONFIG.to_dict(),
        "weights": network_weights(),
        "metrics": {},
        "info": {},
        "training": None,
    }
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    return seal(torch_bytes(content))


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(data_pkl: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A zip archive as torch writes it, with any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", data_pkl)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for name, data in entries.items():
            file.writestr(f"archive/data/{name}", data)
    return buffer.getvalue()


def refuse(path: Path, data: bytes, words: str) -> None:
    """Check that `data` is rejected in one line that begins with the file and contains `words`."""
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert words in message and "\n" not in message, message


# ---- what is no model file at all


NO_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "a page without a doctype": (b"<HTML>gone</HTML>", "is a web page"),
    "text": (b"hello", "is not a model file"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(100), "is not a model file"),
    "only the beginning of a zip": (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
    "a zip of something else": (archive(b"").replace(b"data.pkl", b"data.txt"), "not a PyTorch file"),
    "an old pickle": (pickle.dumps({"weights": 1}, 2), "torch before 1.6"),
    "an old torch file": (torch_bytes({"a": torch.ones(1)}, _use_new_zipfile_serialization=False), "before 1.6"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_a_file_that_is_not_a_model_is_rejected(tmp_path: Path, kind: str) -> None:
    refuse(tmp_path / "a.pth", *NO_MODELS[kind])


@pytest.mark.parametrize("kind", ["empty", "a web page", "a picture", "a Git LFS pointer"])
def test_a_file_that_is_not_safetensors_is_rejected(tmp_path: Path, kind: str) -> None:
    refuse(tmp_path / "a.safetensors", NO_MODELS[kind][0], "a.safetensors: ")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_folder_a_pipe_and_nothing_are_rejected_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match="does not exist; give a model file"):
        load_checkpoint(path)
    path.mkdir()
    with pytest.raises(UserError, match="is a folder, not a file; give a model file"):
        load_checkpoint(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a named pipe, not a file; give a model file"):
        load_checkpoint(path)


def test_a_broken_link_and_an_invalid_name_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone")
    for path, what in ((tmp_path / "link.pth", "is a broken link"), (Path("a\0b.pth"), "is not a valid file name")):
        with pytest.raises(UserError, match=what):
            load_checkpoint(path)


def test_a_file_larger_than_any_detector_is_not_read(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(5 << 30)  # no block of it is on the disk
        with pytest.raises(UserError, match=r"is 5\.4 GB"):
            load_checkpoint(tmp_path / name)


def test_a_large_file_of_zeros_is_rejected_by_its_beginning(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(3 << 30)
        with pytest.raises(UserError, match="is not a"):
            load_checkpoint(tmp_path / name)


# ---- what torch can read, and is no checkpoint of ours


OTHER_CONTENT: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1, 2], "not a checkpoint of this platform"),
    "a tensor": (lambda: torch.ones(3), "not a checkpoint of this platform"),
    "bare weights": (lambda: torch.nn.Linear(2, 2).state_dict(), "not a checkpoint of this platform"),
    "another format": (lambda: {"format": "yolo", "model": {}}, "import_reference"),
}


@pytest.mark.parametrize("kind", OTHER_CONTENT)
def test_other_content_is_rejected(tmp_path: Path, kind: str) -> None:
    make, words = OTHER_CONTENT[kind]
    refuse(tmp_path / "a.pth", torch_bytes(make()), words)


def test_foreign_weights_in_safetensors_are_rejected_as_a_checkpoint_and_read_as_weights(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of this platform"):
        load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(read_weights_file(tmp_path / "a.safetensors")["weights"]["a"], torch.ones(2))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "of a later version": ({"format_version": 2}, "has format version 2; this platform reads version 1"),
    "without configuration": ({"config": None}, "damaged"),
    "with a list for a configuration": ({"config": [1]}, "damaged"),
    "of unknown fields": ({"config": {"class_names": ["a"], "flux": 1}}, "unknown field 'flux'"),
    "of impossible size": ({"config": CONFIG.to_dict() | {"input_size": [100, 100]}}, "input size 100 100"),
    "of no classes": ({"config": CONFIG.to_dict() | {"class_names": []}}, "class_names"),
    "without weights": ({"weights": None}, "damaged"),
    "with empty weights": ({"weights": {}}, "contains no weights"),
    "with text for weights": ({"weights": {"a": "b"}}, "is not a tensor"),
    "with NaN": ({"weights": {"a": torch.tensor([1.0, float("nan")])}}, "contain NaN or infinity"),
    "with infinity": ({"weights": {"a": torch.tensor([float("inf")])}}, "contain NaN or infinity"),
    "with a list for metrics": ({"metrics": [1]}, "not a dictionary"),
    "with text for a training state": ({"training": "yes"}, "not a dictionary"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_checkpoint_is_rejected(tmp_path: Path, kind: str) -> None:
    changes, words = CHANGES[kind]
    refuse(tmp_path / "a.pth", checkpoint_bytes(**changes), words)


def test_weights_of_another_network_are_rejected(tmp_path: Path, good: bytes) -> None:
    other = CONFIG.replace(alpha=0.5).to_dict()
    (tmp_path / "a.pth").write_bytes(checkpoint_bytes(config=other))
    with pytest.raises(UserError, match="do not fit the network it describes"):
        load_model(tmp_path / "a.pth")


def test_a_network_that_does_not_match_the_weights_is_not_built(tmp_path: Path) -> None:
    for change in ({"alpha": 4.0, "neck_width": 4.0, "neck_conv": "standard"}, {"neck_width": 3.5}):
        refuse(tmp_path / "a.pth", checkpoint_bytes(config=CONFIG.to_dict() | change), "do not fit the network")
    many = [f"class {i}" for i in range(60_000)]
    refuse(
        tmp_path / "a.pth", checkpoint_bytes(config=CONFIG.to_dict() | {"class_names": many}), "do not fit the network"
    )


# ---- damage


def test_a_file_cut_anywhere_is_rejected(tmp_path: Path, good: bytes) -> None:
    rng = random.Random(0)
    for length in (1, 2, 21, 600, len(good) - 1, len(good) - 71, *(rng.randrange(len(good)) for _ in range(10))):
        refuse(tmp_path / "a.pth", good[:length], "a.pth: ")


def test_a_hundred_random_bit_flips_are_all_rejected(tmp_path: Path, good: bytes) -> None:
    rng, path = random.Random(1), tmp_path / "a.pth"
    places = [*(rng.randrange(8 * len(good)) for _ in range(90)), *(8 * (len(good) - n) - 3 for n in range(1, 100, 10))]
    for place in places:
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        refuse(path, bytes(data), "a.pth: ")


def test_a_hundred_random_bit_flips_of_safetensors_are_all_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint(CONFIG, YOLOv4(CONFIG).state_dict()))
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(2)
    places = [rng.randrange(8 * (header if i < 60 else len(data))) for i in range(100)]
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        refuse(path, bytes(flipped), "a.safetensors: ")


def test_a_flipped_bit_of_a_foreign_file_is_rejected_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(torch_bytes({"a": torch.zeros(1000)}))
    at = data.find(bytes(200)) + 100
    data[at] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match="fails its checksum"):
        read_torch_file(tmp_path / "a.pth")


def test_a_checkpoint_without_its_digest_is_rejected(tmp_path: Path) -> None:
    content = {"format": "mobilenet-yolov4", "format_version": 1, "config": {}, "weights": {}}
    refuse(tmp_path / "a.pth", torch_bytes(content), "written by another program")


# ---- bombs


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    zeros = bytes(100 << 20)
    bomb = archive(b"\x80\x02}.", zipfile.ZIP_DEFLATED, zeros=zeros)
    assert len(bomb) < len(zeros) / 500
    refuse(tmp_path / "a.pth", bomb, "is compressed")


def test_a_zip_whose_entries_share_their_bytes_is_rejected(tmp_path: Path) -> None:
    data = archive(b"\x80\x02}.", zeros=bytes(100_000))
    directory = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    entry = data[directory:end]
    copies = b"".join(entry.replace(b"zeros", b"%05d" % i) for i in range(2000))
    first = data.find(b"PK\x01\x02")
    size = directory - first + len(copies)
    tail = data[end : end + 8] + struct.pack("<HHLL", 2003, 2003, size, first) + b"\0\0"
    refuse(tmp_path / "a.pth", data[:directory] + copies + tail, "it could fill the memory")


def test_a_list_of_entries_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    data = bytearray(archive(b"\x80\x02}."))
    struct.pack_into("<L", data, len(data) - 22 + 12, 0xF0000000)
    refuse(tmp_path / "a.pth", bytes(data), "central directory would have")


def test_a_tensor_that_repeats_its_bytes_is_not_expanded(tmp_path: Path) -> None:
    wide = torch.zeros(1, dtype=torch.float16).expand(10**11)
    refuse(
        tmp_path / "a.pth",
        seal(torch_bytes({"format": "mobilenet-yolov4", "weights": {"a": wide}})),
        "than its storage",
    )


def test_many_tensors_of_the_same_bytes_are_rejected(tmp_path: Path) -> None:
    whole = torch.zeros(100_000, dtype=torch.float16)
    many = {f"a{i}": whole.view(-1) for i in range(2000)}
    refuse(tmp_path / "a.pth", seal(torch_bytes({"format": "mobilenet-yolov4", "weights": many})), "than its storage")


def test_a_storage_that_claims_more_than_the_archive_holds_is_rejected(tmp_path: Path) -> None:
    data = archive(pickled_tensor(10**9), **{"0": bytes(16)})
    refuse(tmp_path / "a.pth", data, "needs 4000000000 bytes, which the file does not have")


def pickled_tensor(num_items: int) -> bytes:
    """torch's pickle of a float32 tensor of `num_items`, written by hand."""
    number = pickle.BININT + struct.pack("<i", num_items)
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number + b"tQ"
    shape = number + b"\x85" + b"K\x01\x85"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + shape
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


def test_the_tensor_written_by_hand_is_one_when_its_bytes_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(archive(pickled_tensor(4), **{"0": bytes(16)}))
    assert torch.equal(read_torch_file(tmp_path / "a.pth"), torch.zeros(4))


PICKLE_BOMBS: dict[str, bytes] = {
    "ten gigabytes of bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R.",
    "a memo of four billion": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a hundred million lists": b"\x80\x02(" + b"]" * (MAX_PICKLE_BYTES + 1) + b"l.",
    "a million tables": b"\x80\x02ccollections\nOrderedDict\nq\x000" + b"h\x00)R0" * 300_000 + b"N.",
    "a key nested deep enough to end the process": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "bytes, which the file does not have": b"\x80\x04\x8e\xff\xff\xff\xff\x0f\0\0\0.",
    "an empty pickle": b"",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("kind", PICKLE_BOMBS)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_bomb_is_rejected(tmp_path: Path, kind: str, sealed: bool) -> None:
    data = archive(PICKLE_BOMBS[kind])
    refuse(tmp_path / "a.pth", seal(data) if sealed else data, "a.pth: ")


def test_a_safetensors_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    for length in (1 << 40, 1 << 62, 0):
        refuse(tmp_path / "a.safetensors", struct.pack("<Q", length) + b"{}" + bytes(100), "is not a .safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": [1]},
        {"__metadata__": {"checkpoint": "[" * 100_000}},
        [1],
    ],
)
def test_an_inconsistent_safetensors_header_is_rejected(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    refuse(tmp_path / "a.safetensors", struct.pack("<Q", len(text)) + text + bytes(4), "a.safetensors: ")


def plain_zip(data: bytes) -> bytes:
    """An archive of the same entries, without torch's 64-bit records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name))
    return buffer.getvalue()


def test_an_archive_with_two_lists_of_entries_is_rejected(tmp_path: Path) -> None:
    good, evil = plain_zip(torch_bytes({"a": torch.ones(1)})), plain_zip(torch_bytes({"a": torch.zeros(1), "evil": 1}))
    path = tmp_path / "a.pth"
    path.write_bytes(bombs.two_directories(good, evil))
    assert torch.load(path, weights_only=True).get("evil") == 1, "PyTorch reads the other one"
    with pytest.raises(UserError, match="two central directories"):
        read_torch_file(path)


def test_torch_loads_only_checked_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    real = torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **options: loaded.append(file.read()) or real(io.BytesIO(loaded[-1]), **options)
    )
    data = torch_bytes({"a": torch.ones(3)})
    (tmp_path / "a.pth").write_bytes(data)
    assert torch.equal(read_torch_file(tmp_path / "a.pth")["a"], torch.ones(3))
    assert loaded[0] != data
    with zipfile.ZipFile(io.BytesIO(loaded[0])) as copy, zipfile.ZipFile(io.BytesIO(data)) as original:
        assert {n: copy.read(n) for n in copy.namelist()} == {n: original.read(n) for n in original.namelist()}


# ---- values that grow when they are printed


def deep_list(levels: int = 300) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


WHOLE_FIELDS = ["format", "format_version", "config", "weights", "metrics", "info", "training"]
CONFIG_FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
GROWING = {
    "shared lists": lambda: bombs.shared_lists(40),
    "few shared lists": lambda: bombs.shared_lists(12),
    "deep list": deep_list,
}


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("field", [*WHOLE_FIELDS, *(f"config.{name}" for name in CONFIG_FIELDS), "metrics.a", "info.a"])
def test_lists_inside_lists_in_any_field_are_rejected_in_a_short_line(tmp_path: Path, field: str, kind: str) -> None:
    value, (whole, _, part) = GROWING[kind](), field.partition(".")
    inner = CONFIG.to_dict() if whole == "config" else {}
    content = {"weights": {"a": torch.ones(1)}, whole: {**inner, part: value} if part else value}
    path = tmp_path / "a.pth"
    path.write_bytes(checkpoint_bytes(**content))
    started = time.process_time()
    try:
        load_checkpoint(path)
    except UserError as error:
        assert len(str(error)) < 600 and "internal" not in str(error)
    else:
        assert kind == "few shared lists" and whole in ("metrics", "info", "training"), "it was taken"
    assert time.process_time() - started < 3


@pytest.mark.parametrize("field", CONFIG_FIELDS)
@pytest.mark.parametrize(
    "value", [[[1], [2]], {"a": [1]}, "x" * 100_000, -1, 10**400, float("nan"), True, None], ids=brief
)
def test_a_value_of_the_wrong_kind_in_any_field_is_one_short_line(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(checkpoint_bytes(config=CONFIG.to_dict() | {field: value}, weights={"a": torch.ones(1)}))
    with contextlib.suppress(UserError):
        load_model(path)  # never another error
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert len(str(caught.value)) < 600, str(caught.value)[:300]


# ---- nothing is run


class Planted:
    """Runs a command when it is unpickled by plain pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["the content", "weights", "config", "info", "training"])
def test_a_command_in_a_file_never_runs(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "ran"
    planted = Planted(marker)
    data = seal(torch_bytes(planted)) if place == "the content" else checkpoint_bytes(**{place: {"a": planted}})
    refuse(tmp_path / "a.pth", data, "contains more than tensors and plain values (posix.system)")
    assert not marker.exists()


def test_a_command_in_a_weight_file_never_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    planted = {"a": torch.ones(1), "b": Planted(marker)}
    for data in (
        torch_bytes(planted),
        torch_bytes(planted, _use_new_zipfile_serialization=False),
        pickle.dumps(planted, 0),
        pickle.dumps(planted, 4),
        torch_bytes(planted, pickle_protocol=4),
    ):
        path.write_bytes(data)
        for read in (load_checkpoint, read_weights_file):
            with pytest.raises(UserError):
                read(path)
    assert not marker.exists()


def test_state_cannot_be_set_on_an_object(tmp_path: Path) -> None:
    data = archive(b"\x80\x02ctorch\nFloatStorage\n}X\x01\0\0\0aK\x01sb.")
    refuse(tmp_path / "a.pth", data, "the state of an object")


def test_a_pt_file_that_contains_code_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.jit.script(torch.nn.Linear(2, 2))
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("a program was loaded"))
        for name in ("best.pt", "best.torchscript", "best.pth"):
            for extra in (
                {},
                {"metadata.json": "{}"},
                {"metadata.json": "[" * 100_000},
                {"metadata.json": '{"format": 1}'},
            ):
                torch.jit.save(module, str(tmp_path / "a"), _extra_files=extra)
                os.replace(tmp_path / "a", tmp_path / name)
                with pytest.raises(UserError, match=r"TorchScript|was not exported by this platform"):
                    load_runtime(tmp_path / name, "cpu")


# ---- what is honest still loads


def test_a_checkpoint_that_was_saved_again_says_so_and_can_be_imported(
    tmp_path: Path, good: bytes, capsys: Any
) -> None:
    (tmp_path / "good.pth").write_bytes(good)
    content = torch.load(io.BytesIO(good), weights_only=True)
    torch.save(content, tmp_path / "again.pth")
    with pytest.raises(UserError, match=r"written by another program.*python -m nets\.weights\.import_reference"):
        load_checkpoint(tmp_path / "again.pth")
    import_reference.main([str(tmp_path / "again.pth"), str(tmp_path / "new.pth")])
    assert load_checkpoint(tmp_path / "new.pth").config == CONFIG
    with pytest.raises(UserError, match="already"):
        import_reference.main([str(tmp_path / "good.pth"), str(tmp_path / "other.pth")])


def test_the_folder_of_a_run_means_its_best_checkpoint(tmp_path: Path, good: bytes) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"without best\.pth"):
        load_runtime(run, "cpu")
    (run / "best.pth").write_bytes(good)
    assert load_runtime(run, "cpu", "torch").config == CONFIG
    assert "weights" in read_weights_file(run)


@pytest.mark.parametrize(("ir", "opset"), [(99, 18), (10, 99)])
def test_an_onnx_file_of_a_newer_opset_says_so(tmp_path: Path, ir: int, opset: int) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"newer ONNX opset.*update onnxruntime"):
        load_runtime(tmp_path / "a.onnx", "cpu")


def test_files_of_other_programs_still_load(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    content = OrderedDict(
        model={f"module.{key}": value for key, value in model.state_dict().items()},
        parameters=[torch.nn.Parameter(torch.ones(2))],
        dtypes=[torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.float64, torch.bool, torch.int16, torch.uint8)],
        transposed=torch.arange(6.0).view(2, 3).t(),
        shape=torch.Size([1, 2]),
        dtype=torch.float32,
        epoch=3,
        large=2**70,
        nothing=None,
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        tied=[torch.arange(4.0)] * 2,
    )
    path = tmp_path / "a.pth"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, path, **options)
        loaded = read_weights_file(path)
        assert torch.equal(loaded["transposed"], content["transposed"])
        assert loaded["large"] == 2**70 and loaded["shape"] == torch.Size([1, 2]) and loaded["dtype"] == torch.float32
        assert torch.equal(loaded["model"]["module.0.weight"], model[0].weight)
        assert [t.dtype for t in loaded["dtypes"]] == [t.dtype for t in content["dtypes"]]


def test_an_old_pickle_that_claims_more_than_the_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    claim = b"M\xe8\x03"  # 1000
    assert data.count(claim) >= 2
    path.write_bytes(data.replace(claim, pickle.BININT + struct.pack("<i", 2**30)))
    with pytest.raises(UserError, match="claim"):
        read_weights_file(path)


# ---- exported files that are not what they say


class Exported(ExportedRuntime):
    """An exported file of two classes with any outputs."""

    name = "test"

    def __init__(self, outputs: list[Any], form: Form) -> None:
        super().__init__(Path("a.onnx"), write_metadata(CONFIG.replace(class_names=("a", "b")), form))
        self.outputs = outputs

    def call(self, images: Any) -> list[Any]:
        return self.outputs


RAW = [torch.zeros(1, 21, n, n) for n in (8, 4, 2)]
DECODED = [torch.zeros(1, 252, 4), torch.zeros(1, 252, 2)]
LIES: dict[str, tuple[list[torch.Tensor], Form, str]] = {
    "scores of other classes": ([DECODED[0], torch.zeros(1, 252, 20)], Form(), "which do not fit 2 classes"),
    "one output": (DECODED[:1], Form(), "which do not fit 2 classes"),
    "maps of other classes": ([m[:, :9] for m in RAW], Form(decodes=False), "which do not fit 2 classes"),
    "two maps": (RAW[:2], Form(decodes=False), "which do not fit 2 classes"),
    "NaN": ([DECODED[0], DECODED[1] * float("nan")], Form(), "returns NaN"),
    "NaN in a map": ([*RAW[:2], RAW[2] * float("nan")], Form(decodes=False), "returns NaN"),
}


@pytest.mark.parametrize("kind", LIES)
def test_an_exported_file_with_false_metadata_is_an_error_at_its_first_image(kind: str) -> None:
    outputs, form, words = LIES[kind]
    with pytest.raises(RunError, match=words):
        Exported(outputs, form).run(np.zeros((1, 64, 64, 3), np.uint8))


def test_an_exported_file_with_true_metadata_is_run() -> None:
    images = np.zeros((1, 64, 64, 3), np.uint8)
    assert len(Exported(DECODED, Form()).run(images)) == 2
    assert [tuple(m.shape) for m in Exported(RAW, Form(decodes=False)).run(images)] == [
        (1, 3, n, n, 7) for n in (8, 4, 2)
    ]


def test_a_rejected_file_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "page.onnx").write_bytes(b"<html>")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for name in (".", "page.onnx", "gone.pth"):
        for _ in range(20):
            with pytest.raises(UserError):
                check_exported_file(tmp_path / name)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_a_pipe_instead_of_a_model_file_is_rejected_at_once(tmp_path: Path) -> None:
    for suffix in (".pt", ".onnx", ".xml", ".torchscript", ".pth", ".safetensors"):
        os.mkfifo(tmp_path / f"a{suffix}")
        with pytest.raises(UserError, match="not a file"):
            load_runtime(tmp_path / f"a{suffix}", "cpu")
