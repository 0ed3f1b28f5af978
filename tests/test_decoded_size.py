"""JPEG decoding at reduced size: the network input is the same, and boxes refer to the full image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from export_makers import small_model

from imaging.image_io import decoded_bytes, read_image_and_size, read_start, write_image
from imaging.letterbox import Letterbox
from imaging.scenes import draw_scene
from nets.detector import Detector
from service.decode_process import _answer
from utils.thresholds import Thresholds


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene enlarged to a size that is not divisible by the decoder's factors."""
    path = tmp_path_factory.mktemp("large") / "photo.jpg"
    write_image(path, cv2.resize(draw_scene(0, 0)[0], (1607, 1203), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize("input_size", [(96, 96), (64, 128), (320, 320)])
def test_the_input_is_that_of_the_whole_image(large: Path, mode: str, input_size: tuple[int, int]) -> None:
    letterbox = Letterbox(input_size, mode)
    whole, size = read_image_and_size(large)
    image, same_size = read_image_and_size(large, min_size=letterbox.decoded_size)
    assert size == same_size == (1203, 1607)
    assert image.nbytes <= whole.nbytes // 4 * 1.01 or (mode, input_size) == ("stretch", (320, 320))
    expected, found = letterbox.apply(whole).astype(int), letterbox.apply(image, size=size).astype(int)
    assert np.abs(found - expected).mean() < 1.5
    assert decoded_bytes(read_start(large), letterbox.decoded_size) == pytest.approx(image.nbytes, rel=0.02)


def test_bicubic_resampling_reads_every_pixel(large: Path) -> None:
    letterbox = Letterbox((96, 96), interpolation="bicubic")
    assert read_image_and_size(large, min_size=letterbox.decoded_size)[0].shape[:2] == (1203, 1607)


def test_boxes_are_in_pixels_of_the_whole_image(large: Path) -> None:
    detector, thresholds = Detector.from_model(small_model()), Thresholds(score_threshold=0.01, max_detections=10)
    whole, size = read_image_and_size(large)
    image, _ = read_image_and_size(large, min_size=detector.decoded_size)
    assert image.shape[0] < size[0] / 2
    expected = detector.detect_batch([whole], thresholds)[0]
    found = detector.detect_batch([image], thresholds, [size])[0]
    assert len(expected) and found.boxes.max() > max(image.shape)
    assert np.abs(np.sort(found.scores) - np.sort(expected.scores)).max() < 0.02


def test_the_service_judges_a_photograph_by_its_decoded_size(large: Path, tmp_path: Path) -> None:
    letterbox = {"input_size": (96, 96), "mode": "letterbox", "interpolation": "bilinear", "pad_value": 114}
    head = {"where": "body", "max_megapixels": 50, "letterbox": letterbox, "most_pixels": 1_000_000}
    write_image(tmp_path / "same.png", read_image_and_size(large)[0])
    assert "is_big" not in _answer(head, large.read_bytes())[0]  # decoded at a fraction
    assert "is_big" in _answer(head, (tmp_path / "same.png").read_bytes())[0]
