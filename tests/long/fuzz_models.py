"""Fuzz model files and configurations, also with valid digests, and check the readers' guarantees.

    python -m tests.long.fuzz_models                    10,000 inputs: each must be read, or rejected properly
    python -m tests.long.fuzz_models --count 1000 --kinds checkpoint

Annotations, lists, class files and images: `tests/long/fuzz_inputs.py`. A mutant that raises another exception,
exceeds the limits of time or memory, or ends the process is written to --keep. The readers run in a forked process.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nets.weights.pretrained import read_weights_file
from nets.weights.torch_file import SEAL_LENGTH, seal
from training.options import TrainOptions
from utils.config import check_options, option, parse_options, read_config
from utils.errors import UserError, run_command

SECONDS = 5.0  # maximum CPU time of one input
CHUNK = 500  # inputs of one forked process
MAX_MUTATIONS = 6
MEMORY_LIMIT = 1 << 30  # maximum memory of an input, bytes

# typical causes of parser errors: limits of ranges, other types, other alphabets, bytes with a meaning
NUMBERS = ("0", "-1", "1e999", "NaN", "nan", "inf", "2147483648", "1e-320", "0x10", "1.5", "1_0", "9" * 400, "")
TOKENS = (
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07", b"\x80\x02", b"cos\nsystem\n", b"R.", b"q\x00"),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"sha256:"),
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\u0000", b"\\ud800", b"null", b"NaN", b"[" * 2000),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, math.nan, math.inf, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, "", "1", "\0"),
    *("\ud800", "../x", "/etc/passwd", [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [math.nan] * 2, [1e308] * 4),
)


@dataclass(frozen=True)
class FuzzOptions:
    """Options of the model fuzzer."""

    count: int = option(10_000, "total number of inputs, divided evenly", low=1, high=10_000_000)
    kinds: tuple[str, ...] | None = option(None, "only these kinds (default: all)", nargs="+")
    seed: int = option(0, "seed of the mutations", low=0)
    keep: str | None = option(None, "folder for inputs that cause failures (default: a temporary one)")


@dataclass
class Tally:
    """Results of one kind of input."""

    read: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    harm: list[str] = field(default_factory=list)
    longest: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Kind:
    """One kind of input: valid examples, mutations other than of bytes, and the reader."""

    examples: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    mutate: Callable[[bytes, random.Random], bytes] | None = None


class TooSlow(BaseException):
    """Reading an input exceeded the time limit."""


def main(argv: list[str] | None = None) -> int:
    """Read all mutants. Returns 1 if a reader violated its guarantees."""
    options = parse_options(FuzzOptions, argv, description=__doc__ or "", prog="fuzz_models.py")
    kinds = options.kinds or tuple(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise UserError("--kinds", f"{kind!r} is not known", f"choose from {', '.join(KINDS)}")
    if not hasattr(os, "fork"):
        raise UserError("fuzz_models", "needs a system that forks", "run it on Linux or macOS")
    torch.set_num_threads(1)
    keep = Path(options.keep or tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, kind in enumerate(kinds):
        count = options.count // len(kinds) + (number < options.count % len(kinds))
        tally = fuzz(kind, count, options.seed, keep)
        common = ", ".join(f"{words} {n}" for words, n in tally.reasons.most_common(3))
        print(
            f"{kind}: {count} inputs, {tally.read} read, {tally.refused} rejected ({common}), {len(tally.harm)} "
            f"failed; at most {tally.longest:.2f} s and {tally.memory / 1e6:.0f} MB",
            flush=True,
        )
        failed += len(tally.harm)
        for harm in tally.harm[:10]:
            print(f"  {harm}")
    print(f"all: {options.count} inputs, {failed} failed (seed {options.seed})")
    return 1 if failed else 0


def fuzz(kind: str, count: int, seed: int, keep: Path) -> Tally:
    """Read `count` mutants of one kind in several processes, a few hundred in each."""
    tally = Tally()
    examples = KINDS[kind].examples()
    done = 0
    while done < count:
        done += _chunk(kind, examples, range(done, min(done + CHUNK, count)), seed, keep, tally)
    return tally


def _chunk(kind: str, examples: list[bytes], numbers: range, seed: int, keep: Path, tally: Tally) -> int:
    """Read some mutants in a separate process. Returns the number of mutants read."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with open(writer, "w", buffering=1) as pipe, tempfile.TemporaryDirectory() as folder:
            for number in numbers:
                pipe.write(json.dumps(_one(kind, examples, number, seed, Path(folder), keep)) + "\n")
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        lines = [json.loads(line) for line in pipe if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    for line in lines:
        tally.read += line["outcome"] == "read"
        tally.refused += line["outcome"] == "refused"
        tally.reasons.update([line["reason"]] if line["outcome"] == "refused" else [])
        tally.longest, tally.memory = max(tally.longest, line["seconds"]), max(tally.memory, line["memory"])
        if line["outcome"] == "harm":
            tally.harm.append(line["reason"])
    if len(lines) < len(numbers):
        number = numbers[len(lines)]
        name = keep / f"{kind}-{seed}-{number}"
        name.write_bytes(mutant(kind, examples, number, seed))
        tally.harm.append(f"{name}: ended the process ({os.waitstatus_to_exitcode(status)})")
        return len(lines) + 1
    return len(numbers)


def _one(kind: str, examples: list[bytes], number: int, seed: int, folder: Path, keep: Path) -> dict[str, Any]:
    data = mutant(kind, examples, number, seed)
    started, before = time.process_time(), _memory()
    outcome, reason = "read", ""
    try:
        with _limited(), contextlib.redirect_stderr(io.StringIO()):
            KINDS[kind].read(data, folder)
    except UserError as error:
        line = str(error)
        outcome, reason = "refused", getattr(error, "code", "") or type(error).__name__
        if "\n" in line or not error.todo or len(line) > 2000:
            outcome, reason = "harm", f"not one line of the one form: {line[:200]!r}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome, reason = (
            "harm",
            f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:120]}",
        )
    memory = _memory() - before
    if outcome != "harm" and memory > MEMORY_LIMIT:
        outcome, reason = "harm", f"took {memory / 1e6:.0f} MB"
    if outcome == "harm":
        name = keep / f"{kind}-{seed}-{number}"
        name.write_bytes(data)
        reason = f"{name}: {reason}"
    return {"outcome": outcome, "reason": reason, "seconds": time.process_time() - started, "memory": memory}


def _memory() -> int:
    """Peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow after SECONDS of CPU time of this process."""

    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS:g} s")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


# ---- mutations


def mutant(kind: str, examples: list[bytes], number: int, seed: int) -> bytes:
    """The input with this number: an example with one to six mutations; every fifteenth is random bytes."""
    rng = random.Random(f"{kind} {seed} {number}")
    if number % 15 == 14:
        return rng.randbytes(rng.choice((0, 1, 10, 1000)))
    data = rng.choice(examples)
    own = KINDS[kind].mutate
    if own is not None and rng.random() < 0.6:
        data = own(data, rng)
        if rng.random() < 0.7:
            return data
    for _ in range(rng.randint(1, MAX_MUTATIONS)):
        data = rng.choice(MUTATIONS)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.choice((1, 4, 40, 400)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    part = data[start : start + rng.choice((1, 10, 100, 1000))]
    return data[:start] + part * rng.choice((2, 3, 20)) + data[start:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    token = rng.choice((*TOKENS, rng.randbytes(4)))
    return data[:start] + token + data[start + rng.choice((0, len(token))) :]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Replace a number."""
    places = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if not places:
        return _flip(data, rng)
    start = end = rng.choice(places)
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    return data[:start] + rng.choice(NUMBERS).encode() + data[end:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[b:] + data[a:b] + data[:a]


MUTATIONS = (_flip, _flip, _cut, _drop, _repeat, _insert, _insert, _number, _number, _swap)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace some values."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        node, key = _pick(value, rng)
        if isinstance(node, dict) and rng.random() < 0.2:
            node[rng.choice(("id", "bbox", "\0", "image_id", "x" * 300))] = node.pop(key)
        elif rng.random() < 0.1:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # itself would be mutated next, into one without an end
        if not value:
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _pick(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A random container in `value` and one of its keys."""
    places = []
    stack = [value]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        stack += [node[key] for key in keys]
    return rng.choice(places)


def _mutate_model(data: bytes, rng: random.Random) -> bytes:
    """A mutation with a recomputed digest, as made by an author of a malicious file."""
    body = bytearray(data[:-SEAL_LENGTH])
    body[-2:] = b"\0\0"
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(body), 6000)) if rng.random() < 0.7 else len(body) - 1 - rng.randrange(3000)
        body[max(place, 0)] = rng.randrange(256)
    with contextlib.suppress(AssertionError):
        return seal(bytes(body))
    return bytes(body)


# ---- examples and readers


def _read_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def write_and_read(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return write_and_read


def _read_options(path: Path) -> object:
    return check_options(TrainOptions, read_config(path))


def _model_examples() -> list[bytes]:
    """Small files of this project, of current and old torch formats, and of safetensors."""
    config = ModelConfig(("a", "b"), "mobilenet_v2", input_size=(64, 64))
    weights = {f"layer{i}.weight": torch.randn(4, 3) for i in range(6)}
    checkpoint = Checkpoint(config, weights, {"map": 0.5}, {"epoch": 3}, {"step": 7, "model": weights})
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.pth")
        save_checkpoint(path, checkpoint)
        return [path.read_bytes()]


def _weights_examples() -> list[bytes]:
    weights = {f"features.{i}.weight": torch.randn(4, 3) for i in range(6)}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(weights, new)
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    return [new.getvalue(), old.getvalue()]


def _safetensors_examples() -> list[bytes]:
    config = ModelConfig(("a", "b"), "mobilenet_v2", input_size=(64, 64))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.safetensors")
        save_checkpoint(path, Checkpoint(config, {"layer.weight": torch.randn(4, 3)}))
        return [path.read_bytes()]


KINDS = {
    "checkpoint": Kind(_model_examples, _read_file("a.pth", load_checkpoint), _mutate_model),
    "weights": Kind(_weights_examples, _read_file("w.pth", read_weights_file)),
    "safetensors": Kind(_safetensors_examples, _read_file("a.safetensors", load_checkpoint)),
    "configuration": Kind(
        lambda: [b'{"_about": "x", "epochs": 3, "scale": [0.5, 1.5], "backbone": null, "ema": true}'],
        _read_file("config.json", _read_options),
        _mutate_json,
    ),
}


if __name__ == "__main__":
    run_command(main)
