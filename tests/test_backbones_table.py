"""The comparison of the MobileNets: selection of pretrained weights, and the table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.backbones import Row, draw, results_table, weights_file


def test_weights_are_found_by_backbone_and_alpha(tmp_path: Path) -> None:
    for name in ("mobilenet_v1_050.pth", "mobilenet_v1_075_coco.pth", "mobilenet_v3_small_100.pth"):
        (tmp_path / name).touch()
    assert weights_file(tmp_path, "mobilenet_v1:0.75") == tmp_path / "mobilenet_v1_075_coco.pth"
    assert weights_file(tmp_path, "mobilenet_v3_small:1.0") == tmp_path / "mobilenet_v3_small_100.pth"
    assert weights_file(tmp_path, "mobilenet_v2:1.0") is None and weights_file(None, "mobilenet_v1:0.5") is None


def test_the_table_has_a_line_a_backbone_and_a_dash_for_what_was_not_trained(tmp_path: Path) -> None:
    rows = [
        Row("mobilenet_v1:0.5", 123_400_000, 1_560_000, (0.5, 0.25), (0.3, 0.125), 3.14, 2.0, 0.125),
        Row("mobilenet_v3_large:1.0", 200_000_000, 4_000_000, None, (0.2, 0.1), 5.0, 4.0, 0.0),
    ]
    lines = results_table(rows).splitlines()
    assert lines[2] == "| mobilenet_v1 0.5 | 0.500 / 0.250 | 0.300 / 0.125 | 123 | 1.56 | 3.1 | 2.0 | 12.5% |"
    assert lines[3].startswith("| mobilenet_v3_large 1.0 | - | 0.200 / 0.100 |")
    draw(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").stat().st_size > 1000
