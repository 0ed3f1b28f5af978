"""The input fuzzer: corrupt inputs are read or rejected in one line, and the fuzzer detects faulty readers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.long import fuzz_inputs
from tests.long.fuzz_inputs import KINDS, FuzzOptions, Place, fuzz, main

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the fault is put into a forked worker")


def test_a_few_hundred_corrupt_inputs_are_read_or_rejected(capsys: pytest.CaptureFixture) -> None:
    assert main(["--count", "400", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert "400 inputs, 0 failures" in out and all(kind in out for kind in KINDS)


def test_an_input_is_made_of_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    one, other = Place(tmp_path / "one"), Place(tmp_path / "other")
    made = [one.make(number, FuzzOptions()) for number in range(40)]
    assert made[::-1] == [other.make(number, FuzzOptions()) for number in reversed(range(40))]
    assert len({data for _, data in made}) > 35
    assert main(["--first", "11", "--count", "1", "--keep", str(tmp_path / "kept")]) == 0
    assert [path.read_bytes() for path in (tmp_path / "kept").iterdir()] == [made[11][1]]


def test_whole_inputs_of_every_kind_are_read(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert {kind: place.judge(kind, place.whole[kind]) for kind in KINDS} == dict.fromkeys(KINDS, ("read", ""))


@needs_fork
def test_an_error_that_nobody_caught_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(fuzz_inputs, "read_class_names", raises)
    counts, failures = fuzz(FuzzOptions(count=5, kinds=("class file",)))
    assert counts["class file"] == {"failed": 5} and failures[0] == (0, "class file", "KeyError: 'oops'")


@needs_fork
def test_a_crash_of_the_decoder_is_a_failure_and_the_next_inputs_are_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fuzz_inputs, "read_class_names", lambda _: os._exit(7))
    counts, failures = fuzz(FuzzOptions(count=3, kinds=("class file",)))
    assert counts["class file"] == {"crashed": 3} and [number for number, _, _ in failures] == [0, 1, 2]
