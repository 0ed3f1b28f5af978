"""Read a .pth from an untrusted source: only tensors and plain values, checked before they are loaded.

torch.load(weights_only=True) runs no code, but it trusts the sizes in the file: a 4 MB zip archive that unpacks to
gigabytes, a tensor larger than its storage, a `bytearray` of any length. It also does not detect a flipped bit.
Therefore, the archive's structure and its pickle are checked first, with placeholders for all objects that would take
memory. torch.load then reads a new archive, built from the checked entries, because in a file with two central
directories its reader and Python's may find different entries.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from nets.weights.model_file import check_not_page_or_pointer, open_model_file
from utils.errors import UserError, reason_of, wrap_errors

MAX_PICKLE_BYTES = 4 << 20  # names, shapes and plain values; a pickle can require 70 times its size in memory
MAX_DIRECTORY_BYTES = 16 << 20
MAX_CALLS = 200_000  # tensors and dictionaries in one file
MAX_VALUES = 1_000_000  # values in one file; a shared value counts once for each reference
MAX_DEPTH = 100  # nesting of dictionaries and lists
SHARING = 4  # limit of the tensors' total size as a multiple of the file size (weights may be shared)

# The comment of the zip archive, at the end of a file of this platform, is a digest of all bytes before it.
_SEAL = b"sha256:"
SEAL_LENGTH = len(_SEAL) + 64
_CHUNK = 1 << 20
_END = b"PK\x05\x06"
_END_LENGTH = 22
_END64_LENGTH, _LOCATOR64_LENGTH = 56, 20

_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
}
_DTYPES = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
# the opcodes that torch.save writes, in pickle protocol 2; all others are rejected
_OPERATIONS = (
    b"\x80.(Nc}])t\x85\x86\x87\x88\x89KMJG\x8aXUQRbqrhjaeus\x81"  # PROTO STOP MARK NONE GLOBAL ... SETITEM NEWOBJ
)


def read_torch_file(path: Path, our_format: str | None = None) -> Any:
    """Read a .pth written by torch 1.6 or later, to the CPU.

    Args:
        path: the file.
        our_format: files with this `format` must end in a digest of their bytes, as those of this platform do. Other
            files have only the checksums of the zip format.

    Raises:
        UserError: if the file is damaged or rejected, with the reason.
    """
    with open_model_file(path) as file:
        head = file.read(512)
        if head[:2] != b"PK":
            _refuse_other_content(path, head)
        is_sealed = _check_seal(path, file)
        with wrap_errors(path, "truncated or damaged", "use another copy"):
            archive = _checked_archive(path, file, is_sealed)
    content = _load(path, archive)
    if not is_sealed and our_format is not None and isinstance(content, dict) and content.get("format") == our_format:
        what = "was written by another program: the digest that this platform appends is missing"
        raise UserError(path, what, "if you trust it: python -m nets.weights.import_reference IN.pth OUT.pth")
    return content


def read_legacy_torch_file(path: Path) -> Any:
    """Read a .pth written by torch before 1.6: a plain pickle, as many published weights still are.

    Raises:
        UserError: if the file is damaged or rejected, with the reason.
    """
    with open_model_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))

        claims: dict[str, int] = {}
        total = 0

        def check_storage(key: str, claimed: int) -> None:
            nonlocal total
            total += claimed - claims.get(key, 0)
            claims[key] = claimed
            if total > size:
                raise pickle.UnpicklingError(f"its tensors need {total} bytes, but the file has {size}")

        _dry_run(path, pickles, 5, size, check_storage)  # magic number, protocol, system, content, keys
        file.seek(0)
        return _load(path, file)


def seal(data: bytes) -> bytes:
    """Add a comment to the zip archive `data`: the digest of all bytes before it."""
    if data[-_END_LENGTH:][:4] != _END:
        raise AssertionError("not a zip archive that ends without a comment")
    body = data[:-2] + SEAL_LENGTH.to_bytes(2, "little")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def _refuse_other_content(path: Path, head: bytes) -> None:
    check_not_page_or_pointer(path, head)
    if head[:1] == b"\x80":
        todo = "rejected: it could run code; load it with torch and save it again"
        raise UserError(path, "is a pickle of torch before 1.6", todo)
    if path.suffix.lower() not in (".pth", ".pt", ".safetensors"):
        todo = "give a .pth or .safetensors file; exported files cannot be trained or exported again"
        raise UserError(path, "is not a checkpoint", todo)
    raise UserError(path, "is not a model file", "give a .pth, .safetensors or exported file")


def _check_seal(path: Path, file: BinaryIO) -> bool:
    """Whether the file ends in a digest. Raises UserError if the digest does not match."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - SEAL_LENGTH, 0))
    found = file.read(SEAL_LENGTH)
    if not found.startswith(_SEAL):
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), size - SEAL_LENGTH
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest().encode() != found[len(_SEAL) :]:
        raise UserError(path, "damaged: its digest does not match", "use another copy")
    return True


def _checked_archive(path: Path, file: BinaryIO, is_sealed: bool) -> BinaryIO:
    """Check the archive and copy its entries into a new one in memory.

    It rejects everything that torch.save does not write: compression, entries that overlap or appear twice, a second
    central directory, and wrong checksums.
    """
    size = os.fstat(file.fileno()).st_size
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if archive.comment and not is_sealed:
            raise UserError(path, "has an unknown zip comment, which model files do not have", "use another copy")
        sizes = {entry.filename: entry.file_size for entry in entries}
        tops = {name.partition("/")[0] for name in sizes}
        top = next(iter(tops), "")
        if len(sizes) != len(entries) or len(tops) != 1 or f"{top}/data.pkl" not in sizes:
            what = "is a zip archive, but not a PyTorch file"
            raise UserError(path, what, "give a model file (.pth, .safetensors, .onnx...)")
        if f"{top}/constants.pkl" in sizes:
            todo = "give its checkpoint, or rename it to .torchscript if export.py wrote it"
            raise UserError(path, "is TorchScript, which is a program, not a checkpoint", todo)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise UserError(path, "is compressed, which model files are not", "rejected: it could fill the memory")
        if sizes[f"{top}/data.pkl"] > MAX_PICKLE_BYTES:
            raise UserError(path, "has a table of contents of many megabytes", "rejected: it could fill the memory")

        def check_storage(key: str, claimed: int) -> None:
            if sizes.get(f"{top}/data/{key}") != claimed:
                raise pickle.UnpicklingError(f"tensor {key} needs {claimed} bytes, which the file does not have")

        _dry_run(path, io.BytesIO(archive.read(f"{top}/data.pkl")), 1, size, check_storage)
        return _copied(path, archive)


def _copied(path: Path, archive: zipfile.ZipFile) -> BinaryIO:
    """Copy the entries of an archive into a new one in memory, and compare their checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as copy:
        for entry in archive.infolist():
            with wrap_errors(path, f"damaged: {entry.filename} fails its checksum", "use another copy"):
                copy.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
    buffer.seek(0)
    return buffer


def _check_directory(file: BinaryIO, size: int) -> None:
    """Check that the central directory is short and ends where its end record begins. Raises BadZipFile.

    Python's zipfile reads the directory before the record. PyTorch reads the one at the offset in the record.
    """
    start = max(size - _END_LENGTH - 0xFFFF, 0)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_LENGTH:
        raise zipfile.BadZipFile("the central directory is missing")
    length, offset, comment = struct.unpack_from("<LLH", tail, end + 12)
    if len(tail) - end != _END_LENGTH + comment:
        raise zipfile.BadZipFile("the end record is not at the end")
    record = end - _LOCATOR64_LENGTH - _END64_LENGTH
    place = start + end
    if end >= _LOCATOR64_LENGTH and tail[end - _LOCATOR64_LENGTH :][:4] == b"PK\x06\x07":
        if record < 0 or tail[record:][:4] != b"PK\x06\x06":
            raise zipfile.BadZipFile("the 64-bit end record is missing")
        if struct.unpack_from("<Q", tail, end - _LOCATOR64_LENGTH + 8)[0] != start + record:
            raise zipfile.BadZipFile("it has two 64-bit end records")
        length, offset = struct.unpack_from("<QQ", tail, record + 40)
        place = start + record
    if length > MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"the central directory would have {length} bytes")
    if offset + length != place:
        raise zipfile.BadZipFile("it has two central directories")


def _load(path: Path, file: BinaryIO) -> Any:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, error) from error
    if not is_small_tree(content):
        raise UserError(path, "contains lists nested too deeply", "rejected: it could fill the memory")
    return content


def is_small_tree(content: Any) -> bool:
    """Whether dictionaries and lists contain at most `MAX_VALUES` values, nested at most `MAX_DEPTH` deep.

    Shared values are counted once for each reference: a list that contains another list twice, which contains a third
    list twice and so on, takes little memory until it is printed.
    """
    left, count = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            return False
        if isinstance(value, dict):
            left += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list | tuple | set):
            left += [(each, depth + 1) for each in value]
        if len(left) > MAX_VALUES:
            return False
    return True


def _dry_run(path: Path, file: BinaryIO, pickles: int, size: int, check_storage: Callable[[str, int], None]) -> None:
    try:
        for _ in range(pickles):
            _DryRun(file, size, check_storage).load()
    except EOFError as error:
        what = "truncated or damaged (its table of contents ends too early)"
        raise UserError(path, what, "use another copy") from error
    except Exception as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> UserError:
    what = f"contains more than tensors and plain values ({reason_of(error, 120)})"
    return UserError(path, what, "rejected: it could run code or fill the memory")


class _Table(dict):
    """Placeholder for OrderedDict."""


class _StorageType(int):
    """Placeholder for a class such as torch.FloatStorage: the bytes of one element."""


class _Storage:
    """Placeholder for a tensor's storage."""

    def __init__(self, item_bytes: int, num_items: int) -> None:
        self.item_bytes, self.num_items = item_bytes, num_items


class _DryRun(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """An unpickler that creates no tensors.

    Args:
        file: positioned at the start of the pickle.
        size: of the whole file, bytes.
        check_storage: called with a storage's key and its size in bytes; raises if the file does not contain them.
    """

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _OPERATIONS}  # type: ignore[attr-defined]  # noqa: RUF012

    def __init__(self, file: BinaryIO, size: int, check_storage: Callable[[str, int], None]) -> None:
        super().__init__(file)
        self._left = SHARING * size
        self._calls = 0
        self._check_storage = check_storage
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._table,
            ("torch", "Size"): self._shape,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "UntypedStorage"): _StorageType(1),
        } | {("torch", name): _StorageType(item_bytes) for name, item_bytes in _ITEM_BYTES.items()}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, item_bytes, key, _, num_items, *_ = pid
        if kind != "storage" or not isinstance(item_bytes, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        _require_counts([num_items])
        self._check_storage(key, item_bytes * num_items)
        return _Storage(item_bytes, num_items)

    def _count(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise pickle.UnpicklingError(f"more than {MAX_CALLS} objects")

    def _table(self) -> _Table:
        self._count()
        return _Table()

    def _shape(self, values: Any) -> tuple[Any, ...]:
        self._count()
        return tuple(values)

    def _parameter(self, data: Any, *_: Any) -> Any:
        self._count()
        return data

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        """Reject a tensor larger than its storage: with stride 0 it repeats elements and would grow when copied."""
        self._count()
        if not isinstance(storage, _Storage) or len(shape) != len(stride):
            raise pickle.UnpicklingError("a tensor without a storage")
        _require_counts([offset, *shape, *stride])
        num_items = math.prod(shape)
        reach = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if num_items else 0
        self._left -= num_items * storage.item_bytes
        if max(reach, num_items) > storage.num_items or self._left < 0:
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(shape)} is larger than its storage")

    def load_build(self) -> None:
        """Ignore the state of a dictionary (torch.save stores versions there), and reject that of other objects."""
        self.stack.pop()
        if not isinstance(self.stack[-1], _Table):
            raise pickle.UnpicklingError("the state of an object")

    def load_newobj(self) -> None:
        args, make = self.stack.pop(), self.stack.pop()
        self.append(make(*args))

    def load_setitem(self) -> None:
        _require_plain_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _require_plain_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _require_counts(values: Sequence[Any]) -> None:
    if any(not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in values):
        raise pickle.UnpicklingError("a size that is not an integer")


def _require_plain_keys(keys: Sequence[Any]) -> None:
    """Accept only text and numbers as keys: hashing a very deeply nested tuple crashes the process."""
    if any(not isinstance(key, str | int | float) for key in keys):
        raise pickle.UnpicklingError("a dictionary with keys that are neither text nor numbers")
