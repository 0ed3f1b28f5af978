"""A short run of `tests/long/fuzz_models.py` and `tests/long/bombs.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs a system that forks", allow_module_level=True)

from tests.long import bombs, fuzz_models

# what costs seconds to make, or a second reader of the same kind: left to the long run
QUICK = [name for name in bombs.BOMBS if "megapixels" not in name and "compressed" not in name and "text" not in name]


@pytest.mark.parametrize("kind", fuzz_models.KINDS)
def test_a_mutant_is_read_or_rejected_without_harm(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))
    tally = fuzz_models.fuzz(kind, 150, 1, tmp_path)
    assert not tally.harm
    assert tally.read + tally.refused == 150 and tally.refused > 10


def test_a_reader_that_fails_hangs_or_ends_the_process_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes, _: Path) -> object:
        if data == b"1":
            raise KeyError("x")
        if data == b"2":
            os._exit(3)
        while data == b"3":
            pass
        return None

    monkeypatch.setattr(fuzz_models, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz_models, "mutant", lambda kind, examples, number, seed: b"%d" % number)
    monkeypatch.setitem(fuzz_models.KINDS, "bad", fuzz_models.Kind(lambda: [b""], read))
    tally = fuzz_models.fuzz("bad", 5, 0, tmp_path)
    assert tally.read == 2 and tally.refused == 0
    assert [("KeyError" in h, "ended the process (3)" in h, "TooSlow" in h) for h in tally.harm] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-0-1", "bad-0-2", "bad-0-3"]


@pytest.mark.parametrize("name", QUICK)
def test_a_bomb_needs_less_than_a_gigabyte(name: str, tmp_path: Path) -> None:
    make, file_name, read = bombs.BOMBS[name]
    make(tmp_path / file_name)
    memory, seconds, answer, is_ours = bombs.set_off(read, tmp_path / file_name)
    assert is_ours, answer
    assert memory < bombs.LIMIT and seconds < bombs.SECONDS
