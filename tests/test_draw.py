"""Drawing: readable at every image size, and the input image is unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from imaging import draw
from imaging.detections import Detections

NAMES = ("person", "dog", "猫", "a very long class name that does not fit a narrow picture")


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def some(height: int, width: int) -> Detections:
    boxes = np.array([[0.1, 0.2, 0.5, 0.8], [0.6, 0.0, 1.2, 0.4], [0.9, 0.9, 1.0, 1.0], [-0.2, -0.2, 0.1, 0.1]])
    return Detections(boxes * [width, height, width, height], np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 2, 3]))


@pytest.mark.parametrize("size", [(150, 200), (480, 640), (40, 3000), (3000, 40), (5, 5), (1, 1)])
def test_every_size_can_be_drawn_on_and_the_input_stays_as_it_is(size: tuple[int, int]) -> None:
    image = grey(*size)
    drawn = draw.draw_detections(image, some(*size), NAMES)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == 90).all()
    assert (drawn != image).any()


def test_no_detections_leave_an_equal_copy() -> None:
    image = grey(60, 80)
    drawn = draw.draw_detections(image, Detections.empty(), NAMES)
    assert drawn is not image and (drawn == image).all()


def test_a_box_is_drawn_in_the_colour_of_its_class_at_its_place() -> None:
    drawn = draw.draw_boxes(
        grey(480, 640), np.array([[100, 100, 300, 400]]), np.array([5]), [f"c{i}" for i in range(9)]
    )
    assert tuple(drawn[400, 200]) == draw.class_colour(5)
    assert (drawn[250, 200] == 90).all()


def test_lines_and_text_grow_with_the_image_and_stay_readable() -> None:
    widths = [draw.line_width(np.empty((s, s, 1), np.uint8)) for s in (200, 640, 8000)]
    heights = [draw.text_height(np.empty((s, s, 1), np.uint8)) for s in (200, 640, 8000)]
    assert widths == sorted(widths) and widths[0] == 1 and widths[-1] >= 16
    assert heights[0] >= 8 and heights[-1] >= 100


def test_text_as_measured_is_as_high_as_was_asked() -> None:
    for cap_height in (8, 20, 100):
        canvas = np.zeros((cap_height * 3, cap_height * 30, 3), np.uint8)
        draw.put_text(canvas, "HE", 5, cap_height * 2, cap_height, (255, 255, 255))
        rows = np.flatnonzero(canvas.max(axis=(1, 2)) > 128)
        assert abs(len(rows) - cap_height) <= max(2, cap_height * 0.15)
        columns = np.flatnonzero(canvas.max(axis=(0, 2)) > 128)
        assert columns[-1] < 5 + draw.text_size("HE", cap_height)[0] + 3


def test_labels_lie_inside_the_image_even_at_its_corners() -> None:
    for box in ([0, 0, 10, 10], [190, 0, 200, 10], [0, 140, 10, 150], [190, 140, 200, 150], [0, 0, 200, 150]):
        place = draw._place_label(grey(150, 200), "person 0.98", tuple(box), (255, 0, 0), []).place
        assert 0 <= place[0] < place[2] <= 200 and 0 <= place[1] < place[3] <= 150


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    canvas, taken = grey(480, 640), []
    for _ in range(3):
        taken.append(draw._place_label(canvas, "person 0.98", (200, 200, 400, 300), (255, 0, 0), taken).place)
    assert not any(draw._overlap(a, b) for i, a in enumerate(taken) for b in taken[:i])


def test_colours_of_classes_are_stable_and_different() -> None:
    colours = [draw.class_colour(label) for label in range(36)]
    assert colours == [draw.class_colour(label) for label in range(36)]
    distances = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 15


def test_chinese_names_are_drawn_as_such_or_as_escapes_never_as_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    def ink(text: str) -> np.ndarray:
        canvas = np.zeros((60, 300, 3), np.uint8)
        draw.put_text(canvas, text, 5, 45, 30, (255, 255, 255))
        return canvas

    assert (ink("猫") != ink("犬")).any()
    monkeypatch.setattr(draw, "_unicode_font", lambda: ("hershey", None))
    monkeypatch.setattr(draw, "_ascii_font", lambda: ("hershey", None))
    assert (ink("猫") == ink("\\u732b")).all()
    assert draw.text_size("猫", 20)[0] > 60


def test_pillow_draws_where_opencv_has_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    monkeypatch.setattr(draw, "_unicode_font", lambda: ("pillow", font))
    drawn = draw.draw_boxes(grey(200, 300), np.array([[250, 0, 299, 20], [10, 50, 90, 90]]), np.array([0, 0]), ["кот"])
    assert (drawn[50 - 14 : 50, 10:60] == np.array(draw.contrast_colour(draw.class_colour(0)))).all(axis=-1).any()


def test_names_with_control_characters_are_drawn_escaped() -> None:
    draw.draw_boxes(grey(100, 100), np.array([[10, 10, 50, 50]]), np.array([0]), ["a\nb\x00\udcff"])


def test_boxes_that_are_nan_infinite_or_reversed_do_no_harm() -> None:
    boxes = np.array([[np.nan] * 4, [-np.inf, 0, np.inf, 20], [50, 50, 10, 10], [1e30, 1e30, 1e31, 1e31]])
    draw.draw_boxes(grey(100, 100), boxes, np.array([0, 0, 1, 7]), NAMES)


def test_targets_say_which_objects_are_difficult() -> None:
    target = {"boxes": np.array([[20.0, 40, 90, 90]]), "labels": np.array([0]), "difficult": np.array([True])}
    plain = {**target, "difficult": np.array([False])}
    assert (draw.draw_targets(grey(200, 200), target, NAMES) != draw.draw_targets(grey(200, 200), plain, NAMES)).any()


def test_a_contact_sheet_holds_every_image_in_rows() -> None:
    images = [np.full((30 + 10 * i, 60, 3), 40 * i, np.uint8) for i in range(5)]
    sheet = draw.contact_sheet(images, columns=2, tile_size=(50, 60), captions=["one", "", "", "", ""])
    assert sheet.shape == (3 * 54 + 4, 2 * 64 + 4, 3)
    assert draw.contact_sheet([], 3).ndim == 3
    assert tuple(sheet[4 + 25, 4 + 64 + 30]) == (40, 40, 40)


def test_a_heat_map_colours_the_hot_part_and_leaves_the_cold_one() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    drawn = draw.draw_heatmap(grey(80, 80), heat)
    assert (drawn[70, 70] == 90).all() and (drawn[2, 2] != 90).any()
