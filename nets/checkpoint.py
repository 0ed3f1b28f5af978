"""A model file that can rebuild its model, is written whole or not at all, and runs no code when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nets.model_config import ModelConfig
from utils.errors import RunError, UserError

FORMAT = "mobilenet-yolov4"
FORMAT_VERSION = 1
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
MAX_FILE_BYTES = 4 << 30
# the last bytes of a file of ours, held in the zip archive's comment: a digest of all bytes before them
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64


@dataclass
class Checkpoint:
    """What a model file holds.

    Args:
        config: rebuilds the network.
        weights: the network's state dict (of the EMA, where there is one).
        metrics: the last evaluation's figures, plain numbers by name.
        info: where it comes from: versions, dataset, epoch, options; plain types.
        training: what resuming needs (optimiser, schedule, random states...); None in a file for use only.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    metrics: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, half: bool = False) -> None:
    """Write a checkpoint beside `path`, read it back, and only then give it the name.

    Args:
        path: `.safetensors` writes weights and configuration in that format (no training state); any other name a .pth.
        checkpoint: what to write; it must hold plain types and tensors only.
        half: floating-point weights as float16, half the size.

    Raises:
        RunError: if it cannot be written (full disk: says the size that is missing); the old file is then untouched.
    """
    path = Path(path)
    weights = {strip_prefixes(name): _portable(tensor, half) for name, tensor in checkpoint.weights.items()}
    bad = [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise RunError(path, f"not saved: {bad[0]} is not finite", "resume from the last checkpoint at a lower rate")
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "weights": weights,
        "metrics": checkpoint.metrics,
        "info": checkpoint.info,
        "training": checkpoint.training,
    }
    if path.suffix == ".safetensors":
        data = _safetensors_bytes(content)
    else:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = seal(buffer.getvalue())
    write_atomically(path, data)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, on the CPU, weights as float32.

    Raises:
        UserError: naming the file and why it is no checkpoint of ours (empty, cut, damaged, HTML, another model...).
    """
    path = Path(path)
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path, sealed=True)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise UserError(
            path,
            "not a checkpoint of this platform",
            "weights of the reference are imported by: python -m nets.import_reference IN.pth OUT.pth",
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(path, f"has format version {version}, this is {FORMAT_VERSION}", "update this platform")
    try:
        config = ModelConfig.from_dict(content["config"])
        weights = _check_weights(path, content["weights"])
        metrics, info, training = content.get("metrics") or {}, content.get("info") or {}, content.get("training")
        if not isinstance(metrics, dict) or not isinstance(info, dict) or not isinstance(training, dict | None):
            raise ValueError("metrics, info or training is no table")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(path, f"damaged: {error}", "use another copy") from error
    return Checkpoint(config, weights, metrics, info, training)


def read_torch_file(path: Path, sealed: bool = False) -> Any:
    """Read any .pth safely: tensors and plain types only, its structure checked before a byte is unpacked.

    Args:
        path: the file.
        sealed: whether it must be one of ours, with a digest of all its bytes (foreign weights have only the zip's CRC).

    Raises:
        UserError: naming the file and the reason.
    """
    data = _read_model_bytes(path)
    digest = data[-_SEAL_LENGTH:]
    if digest.startswith(_SEAL):
        if hashlib.sha256(data[:-_SEAL_LENGTH]).hexdigest().encode() != digest[len(_SEAL) :]:
            raise UserError(path, "damaged: its bytes are not those that were written", "use another copy")
    if data[:2] != b"PK":
        _refuse_other_content(path, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            if not stored or unpacked > len(data):
                raise UserError(path, "is compressed, which no model file is", "refused: it could fill the memory")
            broken = archive.testzip()
            if broken:
                raise UserError(path, f"damaged: {broken} fails its checksum", "use another copy")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(path, f"cut or damaged ({error})", "use another copy") from error
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            path, f"holds more than tensors and plain values ({reason[:120]})", "refused: it could run code"
        ) from error
    if sealed and isinstance(content, Mapping) and content.get("format") == FORMAT and not digest.startswith(_SEAL):
        raise UserError(path, "damaged: the digest at its end is missing", "use another copy")
    return content


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a .safetensors file: `weights`, and our configuration where its metadata holds one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _read_model_bytes(path)
    try:
        weights = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        content = json.loads(metadata["checkpoint"]) if "checkpoint" in metadata else {}
        if content and metadata.get("sha256") != _digest_of(weights, metadata["checkpoint"]):
            raise UserError(path, "damaged: its tensors are not those that were written", "use another copy")
    except (SafetensorError, ValueError, KeyError, UnicodeDecodeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(path, f"cut or damaged ({error})", "use another copy") from error
    return {**content, "weights": weights}


def strip_prefixes(name: str) -> str:
    """A tensor's name without the prefixes of DataParallel and torch.compile."""
    for prefix in WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def seal(data: bytes) -> bytes:
    """`data`, a zip archive without a comment, with a comment that is the digest of all bytes before it."""
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) - end != 22:
        raise AssertionError("not a zip archive that ends without a comment")
    body = data[:-2] + _SEAL_LENGTH.to_bytes(2, "little")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, to the disk, read back, rename: a reader sees the old file or the new one, whole.

    Raises:
        RunError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != data:
            raise OSError("what was read back is not what was written")
        os.replace(temporary, path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        free = _free_bytes(path.parent)
        what = f"cannot be written: {error.strerror or error}"
        if free is not None and free < len(data):
            what += f"; it needs {len(data) / 1e6:.1f} MB and {free / 1e6:.1f} MB are free"
        raise RunError(path, what, "the previous file is untouched; make room or choose another folder") from error


def _free_bytes(folder: Path) -> int | None:
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _read_model_bytes(path: Path) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(path, "is not a file", "give a model file (.pth, .safetensors, .onnx...)")
        if status.st_size > MAX_FILE_BYTES:
            raise UserError(path, f"is {status.st_size / 1e9:.1f} GB, larger than any detector here", "give a model file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", "give a model file") from error
    if not data:
        raise UserError(path, "is empty", "use another copy")
    return data


def _refuse_other_content(path: Path, data: bytes) -> None:
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise UserError(path, "is a Git LFS pointer, not the weights themselves", "run: git lfs pull")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(path, "is a web page, not weights", "download it again and look at what comes")
    if data[:1] == b"\x80":
        raise UserError(path, "is a pickle of torch before 1.6", "refused: it could run code; save it again as a zip")
    raise UserError(path, "is not a model file", "give a .pth, .safetensors or exported file")


def _check_weights(path: Path, weights: Any) -> dict[str, Tensor]:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(path, "holds no weights", "use another copy")
    result = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(path, f"{name!r} is not a tensor", "use another copy")
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise UserError(path, f"weights {name} hold NaN or infinity", "use an earlier checkpoint")
        result[strip_prefixes(name)] = tensor
    return result


def _portable(tensor: Tensor, half: bool) -> Tensor:
    """Contiguous, on the CPU, with a storage of its own (a view would save the whole storage behind it)."""
    tensor = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return tensor.half() if half and tensor.is_floating_point() else tensor


def _safetensors_bytes(content: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    weights = content["weights"]
    plain = {k: v for k, v in content.items() if k not in ("weights", "training")}
    text = json.dumps(plain)
    return save(weights, metadata={"checkpoint": text, "sha256": _digest_of(weights, text)})


def _digest_of(weights: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
