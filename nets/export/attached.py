"""Metadata for formats without a metadata field: a zip archive at the end of the file, or a separate .json."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, wrap_errors
from utils.files import read_file, write_atomically
from utils.json_file import read_json

ENTRY = "metadata.json"
DIGEST = "sha256"  # of the model's bytes and of the other entries: native runtimes may crash on a damaged file
MAX_MODEL_BYTES = 2 << 30
MAX_ENTRY_BYTES = 4 << 20


def attach(model: bytes, texts: dict[str, str]) -> bytes:
    """Append metadata to a model; readers of FlatBuffers files (.tflite, .pte) ignore appended bytes.

    TensorFlow Lite stores its own metadata in the same way; `unzip -p best.tflite` shows it.
    """
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(ENTRY), _sealed(texts, [model]))
    return buffer.getvalue()


def detach(path: Path) -> tuple[bytes, dict[str, str]]:
    """Split a file into the model's bytes and its metadata ({} if it has none). Raises UserError for a damaged file."""
    data = read_file(path, MAX_MODEL_BYTES)
    with wrap_errors(path, "its metadata is damaged", "export it again"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entry = archive.getinfo(ENTRY)
                if entry.file_size > MAX_ENTRY_BYTES:
                    raise UserError(path, "has metadata of many megabytes", "export it again")
                texts, start = json.loads(archive.read(entry)), min(each.header_offset for each in archive.infolist())
        except (zipfile.BadZipFile, KeyError):
            return data, {}
    return data[:start], _checked(path, texts, [data[:start]])


def write_beside(path: Path, texts: dict[str, str], parts: Sequence[bytes]) -> None:
    """Write metadata into a separate file, with a digest of the model's parts."""
    write_atomically(path, _sealed(texts, parts).encode())


def read_beside(path: Path, files: Sequence[Path]) -> tuple[list[bytes], dict[str, str]]:
    """Read a model's files, and its metadata from `path`. Raises UserError if a file is missing or damaged."""
    for file in (*files, path):
        if not file.is_file():
            raise UserError(file, "does not exist", f"keep {', '.join(each.name for each in (*files, path))} together")
    parts = [read_file(file, MAX_MODEL_BYTES) for file in files]
    return parts, _checked(files[0], read_json(path, "the file that export.py wrote"), parts)


def _sealed(texts: dict[str, str], parts: Sequence[bytes]) -> str:
    return json.dumps({**texts, DIGEST: _digest(texts, parts)}, indent=1)


def _checked(path: Path, texts: object, parts: Sequence[bytes]) -> dict[str, str]:
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise UserError(path, "its metadata is damaged", "export it again")
    expected = texts.pop(DIGEST, "")
    if expected != _digest(texts, parts):
        raise UserError(path, "damaged: its digest does not match", "use another copy")
    return texts


def _digest(texts: dict[str, str], parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
