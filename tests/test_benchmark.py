"""benchmark.py: interleaved timing, warnings for unreliable times, and its output files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from export_makers import CONFIG, checkpoint, exported, pictures

import benchmark
from benchmarks.compare import entries, measure
from benchmarks.compare.formats_table import END, START, draw_formats, fill_markers, formats_table
from benchmarks.compare.options import BenchmarkOptions
from data.tools.demo import write_demo
from imaging.image_io import write_image
from imaging.scenes import SCENE_CLASSES
from nets.export.form import Form
from nets.timing import Sample, interleave, machine, noise_reasons
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from utils.errors import RunError, UserError

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


def test_an_idle_machine_gives_no_noise_warning(monkeypatch) -> None:
    monkeypatch.setattr("nets.timing._load", lambda: 0.1)
    assert noise_reasons(QUIET, {"a": QUIET}) == []


def test_noise_is_named(monkeypatch) -> None:
    monkeypatch.setattr("nets.timing._load", lambda: 1000.0)
    busy = Sample(np.array([1.0, 2.0] * 10))
    reasons = " | ".join(noise_reasons(busy, {"ours": busy}))
    assert "load" not in " ".join(noise_reasons(busy, {"ours": busy}, shares_matter=False))
    assert (
        "other programs are running" in reasons
        and "ours: the quartiles" in reasons
        and "load average is 1000.0" in reasons
    )


def test_the_machine_is_described() -> None:
    facts = machine()
    assert facts["torch"] == torch.__version__.split("+")[0] and facts["cores"] >= 1
    json.dumps(facts)


def test_the_command_measures_models_in_one_run(tmp_path, capsys) -> None:
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
    assert [stage["threshold"] for stage in found["stages"]] == [0.3, 0.001, 0.3, 0.001]
    assert ["random" in stage["image"] for stage in found["stages"]] == [False, False, True, True]
    assert found["trusted"] == (not found["noise"])
    assert (tmp_path / "a.png").stat().st_size > 1000
    table = (tmp_path / "a.md").read_text()
    assert table in capsys.readouterr().out and table.startswith("| network | runtime")


def test_a_failed_export_is_skipped_with_a_warning_and_the_others_are_measured(tmp_path, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise RunError("a.onnx", "does not answer as the network does")

    monkeypatch.setattr(entries, "export_entry_file", fail)
    arguments = [str(checkpoint()), "--no-stages", "--repetitions", "3", "--threads", "1", "--json"]
    assert benchmark.main([*arguments, str(tmp_path / "a.json"), "--runtimes", "torch", "onnxruntime"]) == 1
    assert [row["runtime"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]] == ["torch"]
    told = capsys.readouterr()
    assert "does not answer as the network does" in told.err
    assert told.out.splitlines()[-1].startswith("failed, and not measured: ")
    with pytest.raises(RunError, match="every export failed"):
        benchmark.main([*arguments, str(tmp_path / "b.json"), "--runtimes", "onnxruntime"])


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--json", "nowhere/a.json"], "--json"),
        (["--precisions", "int8"], "--precisions"),
        (["--input-size", "100"], "--input-size"),
        (["--compare", "nowhere.onnx"], "--compare"),
        (["nowhere.pth"], "nowhere.pth"),
        (["--repetitions", "1"], "--repetitions"),
        (["--clock", "cpu", "--threads", "2"], "--clock"),
        (["--formats-plot", "a.png"], "--formats-plot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_values_are_rejected_before_the_work(arguments, where) -> None:
    with pytest.raises(UserError) as caught:
        benchmark.main(arguments)
    assert caught.value.where == where


def row(runtime: str, precision: str, ratio: float, map50: float | None, model: str = "small 320") -> dict[str, Any]:
    values = {"name": "reference", "runtime": runtime, "precision": precision, "ratio": ratio, "map50": map50}
    parity = None if runtime.startswith("torch") else {"detections": 40, "changed": 1}
    return values | {
        "model": model,
        "file_mb": 3.84,
        "memory_mb": 99.6,
        "batch_size": 1,
        "threads": 1,
        "parity": parity,
    }


ROWS = [
    row("torch eager", "fp32", 1.0, None, model=""),
    row("torch", "fp32", 0.3, 40.0),
    row("openvino", "int8", 0.1, 39.25),
    row("onnxruntime", "half", 0.2, 40.01),
    row("torch", "fp32", 0.2, 30.0, model="nano 288"),
]


def test_the_table_of_formats_says_what_each_costs_and_keeps(tmp_path) -> None:
    lines = formats_table(ROWS, "reference").splitlines()
    assert lines[4] == "| small 320 | OpenVINO | int8 | 0.10 | 39.25 | -0.75 | 3.8 | 100 | 39/40 |"
    assert lines[5].split(" | ")[2:6] == ["16 bits", "0.20", "40.01", "+0.01"]
    assert lines[2].split(" | ")[3:5] == ["1.00", ""]
    draw_formats(ROWS, "reference", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_table_goes_between_its_markers_and_nothing_else_is_touched(tmp_path) -> None:
    page = tmp_path / "page.md"
    assert fill_markers(page, "new") == "new\n"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert fill_markers(page, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    page.write_text("something of somebody's")
    with pytest.raises(UserError):
        fill_markers(page, "new")


def test_a_file_of_other_weights_is_not_taken_for_these(tmp_path) -> None:
    (tmp_path / "a.pth").write_bytes(b"a")
    (tmp_path / "b.pth").write_bytes(b"b")
    assert entries.digest(tmp_path / "a.pth") != entries.digest(tmp_path / "b.pth")
    sizes = [CONFIG.replace(input_size=size).size_words for size in ((256, 256), (256, 288), (288, 256))]
    assert sizes == ["256", "256x288", "288x256"]


def test_scores_are_those_of_the_evaluator_and_are_computed_once(tmp_path, monkeypatch) -> None:
    write_demo(tmp_path / "data", 20, 0, (64, 96))
    options = BenchmarkOptions(data=str(tmp_path / "data"))
    config = CONFIG.replace(class_names=SCENE_CLASSES)
    save_checkpoint(tmp_path / "a.pth", Checkpoint(config, YOLOv4(config).state_dict()))
    entry = entries.torch_entry(tmp_path / "a.pth", config)
    (first,) = measure.score_entries([entry], options, tmp_path).values()
    monkeypatch.setattr(measure, "score", None)  # would fail if it were called again
    assert measure.score_entries([entry], options, tmp_path) == {entry.name: first}
    with pytest.raises(TypeError):  # other images are other scores
        measure.score_entries([entry], dataclasses.replace(options, limit=1), tmp_path)


def test_peers_have_their_published_size() -> None:
    from benchmarks.peers import YOLOXNano

    assert sum(p.numel() for p in YOLOXNano().parameters()) == pytest.approx(0.91e6, rel=0.01)
    with torch.no_grad():
        assert YOLOXNano(20).eval()(torch.rand(1, 3, 64, 96)).shape == (1, 126, 25)
