"""The benchmark times things in turns, tells when it cannot be trusted, and writes what it found."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from export_makers import checkpoint, exported, pictures

import benchmark
from nets.export.graph import Form
from nets.export.timing import Sample, interleave, machine, noise_reasons
from utils.errors import UserError
from utils.images import write_image

QUIET = Sample(np.full(20, 0.001))


def test_calls_take_turns_and_the_first_rounds_do_not_count() -> None:
    order: list[str] = []
    ticks = itertools.count()
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = interleave(calls, 3, warm_up=1, clock=lambda: next(ticks))
    assert "".join(order) == "baabbaab"
    assert all(np.array_equal(sample.seconds, [1, 1, 1]) for sample in samples.values())


def test_a_ratio_compares_neighbours_in_time() -> None:
    slow = np.array([1.0, 10.0, 1.0, 10.0])  # the machine was busy every other time, for both
    assert Sample(2 * slow).ratio(Sample(slow)) == 2


def test_median_and_quartiles_are_those_of_the_repetitions() -> None:
    sample = Sample(np.array([4.0, 1.0, 2.0, 3.0, 5.0]))
    assert (sample.median, sample.minimum, sample.quartiles) == (3.0, 1.0, (2.0, 4.0))
    assert sample.spread == pytest.approx(2 / 3)


def test_a_quiet_machine_gives_no_reason_for_doubt(monkeypatch) -> None:
    monkeypatch.setattr("nets.export.timing._load", lambda: 0.1)
    assert noise_reasons(QUIET, {"a": QUIET}) == []


def test_noise_is_named(monkeypatch) -> None:
    monkeypatch.setattr("nets.export.timing._load", lambda: 1000.0)
    busy = Sample(np.array([1.0, 2.0] * 10))
    reasons = " | ".join(noise_reasons(busy, {"ours": busy}))
    assert "something else is running" in reasons and "ours: half of" in reasons and "load is 1000.0" in reasons


def test_the_machine_is_described() -> None:
    facts = machine()
    assert facts["torch"] == torch.__version__ and facts["cores"] >= 1
    json.dumps(facts)


def test_the_command_measures_models_beside_each_other(tmp_path, capsys) -> None:
    write_image(tmp_path / "photo.jpg", pictures(1, 96, 128)[0])
    other = exported("onnx", Form())
    arguments = [str(checkpoint()), str(exported("torchscript", Form(dynamic=True))), "--runtimes", "torch"]
    arguments += ["--repetitions", "3", "--batch-size", "1", "2", "--threads", "1", "--compare", str(other)]
    arguments += ["--images", str(tmp_path / "photo.jpg"), "--json", str(tmp_path / "a.json")]
    benchmark.main([*arguments, "--plot", str(tmp_path / "a.png"), "--table", str(tmp_path / "a.md")])
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["batch_size"] for row in found["rows"]] == [1, 1, 1, 2, 2, 2]
    assert found["baseline"] == other.stem and found["rows"][0]["ratio"] == 1
    for row in found["rows"]:
        low, high = row["quartiles_ms"]
        assert 0 < row["minimum_ms"] <= low <= row["median_ms"] <= high
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch_size"] / row["median_ms"])
        assert row["file_mb"] > 0
    assert {"decode", "preprocess", "network", "postprocess", "draw"} <= set(found["stages"][0])
    assert [stage["threshold"] for stage in found["stages"]] == [0.3, 0.001]
    assert found["trusted"] == (not found["noise"])
    assert (tmp_path / "a.png").stat().st_size > 1000
    table = (tmp_path / "a.md").read_text()
    assert table in capsys.readouterr().out and table.startswith("| network | runtime")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--json", "nowhere/a.json"], "--json"),
        (["--precisions", "int8"], "--precisions"),
        (["--input-size", "100"], "--input-size"),
        (["--compare", "nowhere.onnx"], "--compare"),
        (["nowhere.pth"], "nowhere.pth"),
        (["--repetitions", "1"], "--repetitions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_the_work(arguments, where) -> None:
    with pytest.raises(UserError) as caught:
        benchmark.main(arguments)
    assert caught.value.where == where


def test_peers_have_their_published_size() -> None:
    from scripts.peers import YOLOXNano

    assert sum(p.numel() for p in YOLOXNano().parameters()) == pytest.approx(0.91e6, rel=0.01)
    with torch.no_grad():
        assert YOLOXNano(20).eval()(torch.rand(1, 3, 64, 96)).shape == (1, 126, 25)
