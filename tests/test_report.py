"""The evaluation report as text and HTML: complete, escaped, and with recommendations that match the errors."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.index import DatasetIndex
from evaluation.evaluator import EvaluationResult, FoundDetections, score
from evaluation.metrics.calibration import calibrate
from evaluation.metrics.errors import ERROR_TYPES, analyse_errors
from evaluation.report.advice import Scored, advise
from evaluation.report.html import report_html
from evaluation.report.plots import calibration_figure, curve_figures, error_figures
from evaluation.report.text import class_table, summary_text, working_rows, working_threshold
from imaging.detections import Detections
from training.metrics_file import has_converged
from utils.errors import UserError

NAMES = ("cat", "<script>alert(1)</script>", "$x_1$ ünï")


def grey(path: Path) -> np.ndarray:
    return np.full((120, 160, 3), 120, np.uint8)


def make(boxes: list, labels: list, found: list[Detections], names: tuple[str, ...] = NAMES) -> EvaluationResult:
    count = len(found)
    paths = [f"/pictures/{i}.jpg" for i in range(count)]
    index = DatasetIndex.build("a & b", names, paths, list(range(count)), [(120, 160)] * count, boxes, labels)
    return score(index, names, np.arange(len(names)), FoundDetections.from_list(range(count), found))


@pytest.fixture(scope="module")
def mixed() -> EvaluationResult:
    """Correct, misplaced, misclassified, duplicate, background and missed detections in several images."""
    rng = np.random.default_rng(0)
    boxes, labels, found = [], [], []
    for _ in range(8):
        corner = rng.uniform(0, 60, (4, 2))
        boxes.append(np.concatenate([corner, corner + rng.uniform(12, 60, (4, 2))], axis=1))
        labels.append(rng.integers(0, 3, 4))
        moved = boxes[-1][:3] + rng.normal(0, 3, (3, 4))
        near = np.concatenate([moved, moved[:1], rng.uniform(0, 40, (1, 4)) + np.array([0, 0, 60, 60])])
        answers = np.concatenate([labels[-1][:2], rng.integers(0, 3, 3)])
        found.append(Detections(near, rng.uniform(0.1, 1, 5), answers))
    return make(boxes, labels, found)


@pytest.fixture(scope="module")
def mixed_page(mixed: EvaluationResult) -> str:
    """The report of that evaluation, built once because plotting is slow."""
    return report_html(mixed, Scored((416, 416)), "best.pth", grey)


class Page(HTMLParser):
    """Collects URLs and tags, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_holds_all_its_images_and_no_script(mixed_page: str) -> None:
    page = parse(mixed_page)
    assert len(page.sources) > 10
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    assert "script" not in page.tags


def test_the_page_has_every_section(mixed_page: str) -> None:
    for title in ("Recommendations", "mAP lost by errors", "Curves", "Confusion", "Worst images", "Most confident"):
        assert f"<h2>{title}" in mixed_page
    assert "&lt;script&gt;" in mixed_page


@pytest.mark.parametrize("letters", [3, 200])
def test_legends_cover_no_axes(letters: int, mixed: EvaluationResult) -> None:
    names = tuple(f"{i}" + "w" * letters for i in range(3))
    result = replace(mixed, record=replace(mixed.record, class_names=names))
    figures = [*curve_figures(result), *error_figures(analyse_errors(result.record, result.outcome))]
    figures.append(calibration_figure(calibrate(result.record.det_scores, result.outcome)))
    legends = 0
    for figure in figures:
        figure.draw_without_rendering()
        assert all(axis.get_legend() is None for axis in figure.axes)
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
            legends += 1
    assert legends == 5


def test_each_error_bar_ends_at_its_number() -> None:
    # small and large detections of background rank above the correct ones: removing one size leaves the other
    boxes = np.concatenate([grid(6, 20), grid(6, 200) + np.array([0, 300, 0, 300])])
    found = Detections(np.concatenate([boxes + 3000, boxes]), np.linspace(0.9, 0.3, 24), np.zeros(24))
    result = make([boxes], [np.zeros(12, int)], [found], ("cat",))
    errors = analyse_errors(result.record, result.outcome)
    assert not np.allclose(errors.gain, errors.gain_by_size.sum(axis=1), atol=0.001)
    total, by_size = error_figures(errors)
    for figure, expected in ((total, errors.gain[:, None]), (by_size, errors.gain_by_size)):
        (axis,) = figure.axes
        bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for group in axis.containers for bar in group]
        assert bars == [(0, pytest.approx(100 * value)) for value in expected.T.ravel()]
        assert [text.get_text() for text in axis.texts] == [f"{end:.1f}" for _, end in bars]
        names = dict(zip(axis.get_yticks(), [label.get_text() for label in axis.get_yticklabels()], strict=True))
        middle = [bar.get_y() + bar.get_height() / 2 for bar in axis.containers[len(axis.containers) // 2]]
        assert [names[round(place)] for place in middle] == list(ERROR_TYPES)


def test_the_page_has_dark_colours_on_screen(mixed_page: str) -> None:
    style = mixed_page.split("<style>")[1].split("</style>")[0]
    assert "@media screen and (prefers-color-scheme: dark)" in style
    dark = set(re.findall(r"(--[a-z]+): #", style.split("prefers-color-scheme: dark")[1].split("img.plot")[0]))
    assert dark == set(re.findall(r"var\((--[a-z]+)\)", style))


def test_images_that_do_not_exist_leave_the_rest_of_the_page() -> None:
    def missing(path: Path) -> np.ndarray:
        raise UserError(path, "does not exist")

    wild = Detections([[0, 0, 20, 20]], [0.9], [1])
    page = report_html(make([np.array([[0.0, 0, 50, 50]])], [[0]], [wild]), Scored(), "", missing)
    assert "image not found" in page
    assert parse(page).sources


@pytest.mark.parametrize("images", [0, 1])
def test_a_report_without_objects_is_valid(images: int) -> None:
    result = make([np.zeros((0, 4))] * images, [[]] * images, [Detections.empty()] * images)
    parse(report_html(result, Scored(), "", grey))
    assert "no objects to evaluate against" in summary_text(result)


def test_a_report_with_misses_only_is_valid() -> None:
    result = make([np.array([[0.0, 0, 50, 50]])], [[0]], [Detections.empty()])
    parse(report_html(result, Scored(), "", grey))
    assert "the model has learned almost nothing" in summary_text(result)


def test_the_text_ends_in_three_things_to_do(mixed: EvaluationResult) -> None:
    lines = summary_text(mixed, Scored((416, 416))).splitlines()
    assert lines[-4] == "Recommendations:"
    assert [line[:3] for line in lines[-3:]] == ["1. ", "2. ", "3. "]
    assert len(lines) <= 66  # a page


def grid(count: int, side: float) -> np.ndarray:
    left = np.arange(count) * (side + 10.0)
    return np.stack([left, np.zeros(count), left + side, np.full(count, side)], axis=1)


def first_advice(
    boxes: np.ndarray,
    found: Any,
    names: tuple[str, ...] = ("cat", "dog", "cow"),
    scored: Scored = Scored((416, 416)),  # noqa: B008
) -> str:
    result = make([boxes], [np.zeros(len(boxes), int)], [found], names)
    return advise(result, analyse_errors(result.record, result.outcome), scored)[0].text


def test_missed_small_objects_give_the_advice_to_use_a_larger_input() -> None:
    text = first_advice(grid(10, 20), Detections(grid(10, 20)[:6], np.full(6, 0.9), np.zeros(6)))
    assert re.match(r"100% of the lost mAP50 \(40.0 points\) is lost by missed small objects \(4 under", text)
    assert "--input-size 608" in text


def test_missed_large_objects_give_the_advice_to_train_longer() -> None:
    text = first_advice(grid(10, 200), Detections(grid(10, 200)[:6], np.full(6, 0.9), np.zeros(6)))
    assert "is lost by missed large objects (4 of 10, at any score): train longer" in text


def test_wrong_classes_name_the_pair() -> None:
    found = Detections(grid(10, 200), np.linspace(0.9, 0.5, 10), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert "most often cat detected as dog (100% of" in first_advice(grid(10, 200), found)


def test_duplicate_detections_give_the_advice_to_lower_the_nms_threshold() -> None:
    boxes = grid(10, 200)
    found = Detections(boxes.repeat(4, axis=0), np.repeat(np.linspace(0.9, 0.5, 10), 4), np.zeros(40))
    assert "lost by duplicate detections (30): lower --iou-threshold" in first_advice(boxes, found)


def test_advice_does_not_recommend_current_settings() -> None:
    boxes = grid(10, 200)
    doubles = Detections(boxes.repeat(4, axis=0), np.repeat(np.linspace(0.9, 0.5, 10), 4), np.zeros(40))
    missed = Detections(boxes[:6], np.full(6, 0.9), np.zeros(6))
    assert "from 0.5 to 0.4" in first_advice(boxes, doubles, scored=Scored(iou_threshold=0.5))
    assert "lower" not in first_advice(boxes, doubles, scored=Scored(iou_threshold=0.3))
    text = first_advice(boxes, missed, scored=Scored(has_converged=True))
    assert "train longer" not in text and "converged" in text
    result = make([boxes], [np.zeros(10, int)], [missed], ("cat",))
    text = summary_text(result, Scored(score_threshold=result.best_f1_threshold))
    assert "Predict with --score-threshold" not in text


def test_the_table_counts_what_is_found_at_the_working_threshold(mixed: EvaluationResult) -> None:
    threshold = working_threshold(mixed)
    for row, curve in zip(working_rows(mixed), mixed.curves.per_class, strict=True):
        precision, recall, _ = curve.at(threshold)
        assert (row.precision, row.recall) == (pytest.approx(precision), pytest.approx(recall))
    table = class_table(mixed).splitlines()
    assert "found" in table[0] and f"at score {threshold:.2f}" in table[0]
    total = sum(row.found for row in working_rows(mixed))
    assert total == int(((mixed.outcome == 1) & (mixed.record.det_scores >= threshold)).sum())


def test_few_images_are_reported_as_noise(mixed: EvaluationResult) -> None:
    assert re.search(
        r"8 images with 32 objects: differences below about \d+ points are not significant", summary_text(mixed)
    )


def test_a_run_has_converged_when_its_best_came_well_before_its_end(tmp_path: Path) -> None:
    assert not has_converged(tmp_path)
    for scores, expected in (([0.1, 0.5, 0.4, 0.4, 0.4, 0.4], True), ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], False)):
        rows = "".join(f"{i},{score}\n" for i, score in enumerate(scores))
        (tmp_path / "metrics.csv").write_text(f"epoch,voc10_mAP50\n{rows}")
        assert has_converged(tmp_path) == expected


def test_background_detections_give_the_advice_to_check_the_labels() -> None:
    boxes = grid(10, 50)
    wild = boxes + np.array([0, 500, 0, 500])
    found = Detections(np.concatenate([wild, boxes]), np.linspace(0.9, 0.3, 20), np.zeros(20))
    assert "detections of background (10 with a score" in first_advice(boxes, found)
