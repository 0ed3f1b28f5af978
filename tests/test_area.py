"""Area averaging: the values of OpenCV's INTER_AREA, for any sizes."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from imaging import area
from imaging.letterbox import Letterbox

SIZES = [  # height, width, new height, new width
    (375, 500, 240, 320),
    (500, 333, 320, 213),
    (361, 481, 360, 480),
    (240, 320, 120, 160),
    (101, 97, 101, 13),
    (50, 64, 1, 1),
    (3, 3, 2, 2),
]


@pytest.fixture(autouse=True)
def after_the_first_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(area, "FIRST_CALLS", 0)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_the_values_are_those_of_opencv(size: tuple[int, int, int, int]) -> None:
    image, (height, width) = noise(*size[:2]), size[2:]
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(int)
    found = area.shrink(image, height, width)
    assert found.dtype == np.uint8 and found.shape == (height, width, 3)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and np.count_nonzero(difference) <= 1e-3 * difference.size + 1


def test_random_sizes_have_the_values_of_opencv() -> None:
    rng, wrong, total = np.random.default_rng(0), 0, 0
    for _ in range(100):
        rows, columns = rng.integers(2, 120, 2).tolist()
        height, width = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
        image = noise(rows, columns)
        expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(int)
        difference = np.abs(area.shrink(image, height, width).astype(int) - expected)
        assert difference.max() <= 1
        wrong, total = wrong + np.count_nonzero(difference), total + difference.size
    assert wrong <= 1e-3 * total


def test_part_of_an_image_and_one_that_grows_in_one_direction() -> None:
    part = noise(90, 120)[5:66, 7:108]  # not contiguous
    expected = cv2.resize(np.ascontiguousarray(part), (40, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(area.shrink(part, 30, 40).astype(int) - expected).max() <= 1
    stretched = Letterbox((96, 96), "stretch").apply(noise(61, 250))
    assert np.array_equal(stretched, cv2.resize(noise(61, 250), (96, 96), interpolation=cv2.INTER_AREA))


def test_the_first_images_need_no_scipy() -> None:
    code = "import sys, numpy; from imaging.area import shrink, FIRST_CALLS; image = numpy.zeros((30, 40, 3), 'u1')\n"
    code += "for i in range(FIRST_CALLS): shrink(image, 20, 30)\n"
    code += "before = 'scipy' in sys.modules; shrink(image, 20, 30); print(before, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
