"""benchmarks.pareto: the Pareto front, the source of the scores, and the table of measured points."""

from __future__ import annotations

import json

import pytest
from export_makers import CONFIG, checkpoint, exported

from benchmarks import pareto
from benchmarks.pareto import Point, pareto_front, preset_config, read_score
from nets.export.form import Form
from utils.errors import UserError


def test_points_worse_in_both_time_and_score_are_not_on_the_front() -> None:
    quick, good = Point("quick", score=30.0, milliseconds=5), Point("good", score=50.0, milliseconds=9)
    slow, untrained = Point("slow", score=45.0, milliseconds=10), Point("untrained", milliseconds=1)
    twin = Point("twin", score=29.0, milliseconds=5)
    assert pareto_front([slow, twin, good, untrained, quick]) == [quick, good]


def test_a_score_is_a_number_a_file_of_figures_or_none(tmp_path) -> None:
    file = tmp_path / "eval.json"
    file.write_text(json.dumps({"voc10_mAP50": 0.384}))
    assert read_score("-") is None and read_score("31.5") == 31.5
    assert read_score(str(file)) == pytest.approx(38.4)
    file.write_text("{}")
    for bad in (str(file), str(tmp_path / "nowhere.json")):
        with pytest.raises(UserError):
            read_score(bad)


def test_a_preset_is_the_network_that_training_with_it_would_build() -> None:
    config = preset_config("small", 20)
    assert (config.backbone, config.num_classes, config.mean) != ("", 0, None)
    assert preset_config("reference", 3).neck_width == 1.0
    with pytest.raises(UserError):
        preset_config("nowhere", 20)


def test_points_are_measured_beside_a_peer(tmp_path, capsys) -> None:
    peer = exported("onnx", Form())
    arguments = ["--point", "ours", str(checkpoint()), "12.5", "--repetitions", "3", "--peers", "--compare", str(peer)]
    arguments += ["--json", str(tmp_path / "a.json")]
    pareto.main([*arguments, "--table", str(tmp_path / "a.md"), "--plot", str(tmp_path / "a.png")])
    found = json.loads((tmp_path / "a.json").read_text())
    (ours,) = found["points"]
    assert found["peers"][0]["ratios"] == {peer.stem: 1}
    assert ours["ratios"][peer.stem] > 0 and ours["score"] == 12.5 and found["front"] == ["ours"]
    assert ours["multiply_adds"] > 0 and tuple(ours["config"]["class_names"]) == CONFIG.class_names
    assert "**ours** | 64x96" in capsys.readouterr().out and "**ours**" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_peers_are_drawn_with_their_scores(tmp_path, capsys) -> None:
    peer = exported("onnx", Form())
    arguments = ["--point", "ours", str(checkpoint()), "12.5", "--repetitions", "2", "--peers", "--compare", str(peer)]
    arguments += ["--peer-score", peer.stem, "31", "--elsewhere", "Other", "1.3", "44.5"]
    pareto.main([*arguments, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")])
    timed, other = json.loads((tmp_path / "a.json").read_text())["peers"]
    assert (timed["score"], timed["is_timed"]) == (31, True)
    assert (other["score"], other["is_timed"], other["ratios"]) == (44.5, False, {peer.stem: 1.3})
    assert "| Other |  | 1.30 | not timed here |" in capsys.readouterr().out
    assert "<!-- Other -->" in (tmp_path / "a.svg").read_text()
    for wrong in (["--peer-score", "nobody", "31"], ["--elsewhere", "Other", "fast", "44"]):
        with pytest.raises(UserError):
            pareto.main([*arguments[:9], *wrong])


def test_networks_are_measured_without_training(tmp_path) -> None:
    arguments = ["--network", "mobilenet_v2", "0.25", "separable", "0.05", "32", "--repetitions", "2"]
    arguments += ["--peers", "--compare", str(exported("onnx", Form()))]
    pareto.main([*arguments, "--json", str(tmp_path / "a.json")])
    (point,) = json.loads((tmp_path / "a.json").read_text())["points"]
    assert point["name"] == "v2 0.25, separable 0.05, 32" and point["milliseconds"] > 0 and point["score"] is None
    with pytest.raises(SystemExit):
        pareto.main([*arguments, "--plot", str(tmp_path / "a.png")])  # it has no score


def test_invalid_values_are_rejected(tmp_path) -> None:
    with pytest.raises(SystemExit):
        pareto.main([])
    with pytest.raises(UserError):
        pareto.main(["--point", "a", "nowhere", "-"])
    for alpha, size in (("1", "100"), ("wide", "320")):
        with pytest.raises(UserError):
            pareto.main(["--network", "mobilenet_v2", alpha, "separable", "1", size])
