"""The Python API: accepted image types, errors for others, and the detections."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from imaging.image_io import read_image, write_image
from nets import Detections, Thresholds, load_detector
from nets.model_config import ModelConfig
from nets.weights import bundled
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from prediction.detector import Detector
from prediction.video import VideoWriter
from utils.errors import MissingFileError, RunError, UserError

NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A small untrained network with detections everywhere."""
    torch.manual_seed(0)
    config = ModelConfig(
        NAMES, "mobilenet_v3_small", 0.25, neck_width=0.25, input_size=(64, 64), score_threshold=0.0, max_detections=9
    )
    return Detector.from_model(YOLOv4(config).eval())


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (5, 5), 0)


def same(a: Detections, b: Detections) -> bool:
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)


def test_the_same_image_in_every_form_gives_the_same_detections(detector: Detector, tmp_path: Path) -> None:
    image = photo()
    write_image(tmp_path / "a.png", image)
    chw = torch.from_numpy(image).permute(2, 0, 1)
    rgba = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    expected = detector(image)
    assert len(expected) == 9 and expected.names == NAMES
    forms: list[Any] = [
        *(tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), Image.fromarray(rgba, "RGBA"), rgba),
        *(image.astype(np.int64), image / np.float32(255), np.asfortranarray(image), chw, chw.float() / 255),
        *((tmp_path / "a.png").read_bytes(), memoryview((tmp_path / "a.png").read_bytes())),
        io.BytesIO((tmp_path / "a.png").read_bytes()),
        chw.clone().double().div(255).requires_grad_(),
    ]
    for form in forms:
        assert same(detector(form), expected)
    assert same(detector(image[..., ::-1], color="bgr"), expected)
    assert same(detector(cv2.imread(str(tmp_path / "a.png")), color="bgr"), expected)
    assert same(detector(chw.flip(0), color="BGR"), expected)
    assert not same(detector(image[..., ::-1]), expected)
    for several in (
        image[None],
        chw[None],
        [image],
        iter([image]),
        (tmp_path / "a.png",),
        np.array([str(tmp_path / "a.png")]),
    ):
        (found,) = detector(several)
        assert same(found, expected)


def test_grey_images_of_every_form_are_one(detector: Detector) -> None:
    grey = photo()[..., 0]
    expected = detector(np.dstack([grey] * 3))
    for form in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None], (grey / 255)):
        assert same(detector(form), expected)


def test_exif_orientation_is_applied_to_paths_and_pil_images(detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(tmp_path / "turned.png", exif=exif)
    by_path, by_pillow = detector(tmp_path / "turned.png"), detector(Image.open(tmp_path / "turned.png"))
    assert by_path.image.shape == by_pillow.image.shape == (90, 60, 3) and same(by_path, by_pillow)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 60, 90), np.uint8), r"shape \(3, 60, 90\).*transpose\(1, 2, 0\)"),
        (np.zeros((60, 90, 2), np.uint8), r"shape \(60, 90, 2\)"),
        (np.zeros((5, 60, 90, 7), np.uint8), r"images\[0\].*shape \(60, 90, 7\)"),
        (np.zeros((1, 2, 3, 4, 3), np.uint8), r"shape \(1, 2, 3, 4, 3\)"),
        (np.zeros(7, np.uint8), r"shape \(7,\)"),
        (np.zeros((0, 90, 3), np.uint8), r"shape \(0, 90, 3\) has no pixels"),
        (np.full((6, 9, 3), 256.0), "float64.*from 256 to 256.*0 to 1"),
        (np.full((6, 9, 3), -1), "int64.*from -1"),
        (np.full((6, 9, 3), np.nan), "nan"),
        (np.full((6, 9), 4000, np.uint16), "uint16"),
        (np.zeros((6, 9), object), "not an image"),
        (torch.zeros(60, 90, 3), r"tensor of shape \(60, 90, 3\).*permute\(2, 0, 1\)"),
        (torch.zeros(60, 90), r"tensor of shape \(60, 90\)"),
        (torch.zeros(2, 60, 90), r"tensor of shape \(2, 60, 90\)"),
        (torch.full((3, 6, 9), 255.0), "from 255 to 255"),
        (None, r"None \(cv2.imread returns None"),
        (0, r"use detector\.stream\(0\)"),
        (b"\xff\xd8", "images: is not an image"),
        (io.StringIO("text"), "a str is not an image"),
        (io.TextIOWrapper(io.BytesIO(b"\x89PNG"), "utf-8"), "open as text; open it with mode"),
        ({"image": 1}, "not an image"),
        ("rtsp://host/stream", r"use detector\.stream\('rtsp://host/stream'\)"),
        ("pictures/*.jpg", r"use detector\.stream"),
        ([[0, 1], [2, 3]], "not an image|shape"),
    ],
)
def test_invalid_images_are_rejected_with_their_shape_and_the_accepted_types(
    detector: Detector, image: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        detector(image)
    assert "--" not in str(caught.value), "Python has arguments, not options"


def test_videos_and_folders_point_to_stream_and_what_is_not_there_is_a_file_not_found(
    detector: Detector, tmp_path: Path
) -> None:
    with VideoWriter(tmp_path / "v.mp4", 10.0, (60, 90)) as writer:
        writer.write(photo())
        writer.write(photo())
    for path in (tmp_path / "v.mp4", tmp_path):
        with pytest.raises(ValueError, match=r"use detector\.stream"):
            detector(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        detector(tmp_path / "none.jpg")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(detector.stream(tmp_path / "none.mp4"))
    frames = list(detector.stream(tmp_path / "v.mp4", max_detections=3, classes="dog"))
    assert [frame.index for frame, _ in frames] == [0, 1]
    assert all(len(found) <= 3 and set(found.labels) <= {1} and found.image.shape == (60, 90, 3) for _, found in frames)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"conf": 0.3}, "did you mean score_threshold"),
        ({"iou": 0.3}, "did you mean iou_threshold"),
        ({"imgsz": 320}, "input_size is an argument of load_detector"),
        ({"max_det": 3}, "did you mean max_detections"),
        ({"score_treshold": 0.3}, "did you mean score_threshold"),
        ({"klasses": [0]}, "did you mean classes"),
        ({"score_threshold": 30}, "score_threshold: 30 is out of range"),
        ({"score_threshold": "high"}, "score_threshold: 'high'"),
        ({"iou_threshold": -1}, "iou_threshold: -1"),
        ({"max_detections": 0}, "max_detections: 0"),
        ({"classes": ["dogg"]}, "classes: .*did you mean 'dog'"),
        ({"classes": 3}, "classes: the model has no class 3"),
        ({"color": "brg"}, "color: 'brg'"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_arguments_are_checked_and_the_similar_name_is_suggested(
    detector: Detector, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        detector(photo(), **arguments)
    if "color" not in arguments and arguments.get("batch_size") != 0:
        with pytest.raises(ValueError, match=words):
            detector.stream("v.mp4", **arguments)
    if {"conf", "imgsz"} & set(arguments):
        with pytest.raises(TypeError):
            detector(photo(), **arguments)


def test_classes_are_kept_by_name_and_index_and_do_not_use_up_the_limit(detector: Detector) -> None:
    everything = detector(photo(), max_detections=1000)
    for classes, labels in ((["dog"], {1}), (1, {1}), ("dog", {1}), (["cat", 2], {0, 2})):
        found = detector(photo(), classes=classes)
        kept = everything[np.isin(everything.labels, list(labels))][:9]
        assert same(found, kept) and set(found.labels.tolist()) <= labels
    assert len(detector(photo(), classes=[])) == 0


def test_models_are_found_by_name_and_by_run_and_arguments_are_named(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("model_data", "logs/run1"):
        (tmp_path / folder).mkdir(parents=True)
    weights = Checkpoint(detector.config, YOLOv4(detector.config).state_dict())
    save_checkpoint(tmp_path / "model_data" / "nano.pth", weights)
    save_checkpoint(tmp_path / "logs" / "run1" / "best.pth", weights)
    monkeypatch.setattr(bundled, "MODEL_DATA", tmp_path / "model_data")
    for model in (None, "nano", "nano.pth", tmp_path / "logs" / "run1", tmp_path / "logs" / "run1" / "best.pth"):
        assert load_detector(model, "cpu").names == NAMES
    assert load_detector("nano", "cpu", input_size=96).config.input_size == (96, 96)
    for wrong in ("conf", "score_threshold"):
        with pytest.raises(ValueError, match=r"score_threshold is an argument of detector\(\.\.\.\)"):
            load_detector("nano", **{wrong: 0.3})
    for wrong in ("nanoo", "NANO"):
        with pytest.raises(FileNotFoundError, match="did you mean 'nano'"):
            load_detector(wrong)
    with pytest.raises(ValueError, match=r"^https://x/best\.pth: is an address; download the file"):
        load_detector("https://x/best.pth")
    with pytest.raises(ValueError, match=r"give a run: .*run1"):
        load_detector(tmp_path / "logs")
    with pytest.raises(ValueError, match=r"^input_size: "):
        load_detector("nano", "cpu", input_size=100)
    with pytest.raises(ValueError, match=r"^device: "):
        load_detector("nano", "tpu")
    with pytest.raises(ValueError, match="did you mean input_size"):
        load_detector("nano", imgsz=320)


def some(image: Any = None) -> Detections:
    boxes = np.array([[10.4, 20.2, 50.6, 40.8], [-5, 0, 100, 80], [95, 70, 99, 75]])
    return Detections(boxes, np.array([0.9, 0.8, 0.3]), np.array([1, 0, 7]), names=NAMES, source=image)


def test_a_detector_is_pickled_as_its_file_and_configuration(detector: Detector, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", Checkpoint(detector.config, YOLOv4(detector.config).state_dict()))
    loaded = load_detector(tmp_path / "a.pth", runtime="torch", input_size=96)
    again = pickle.loads(pickle.dumps(loaded))
    assert again.config == loaded.config and same(again(photo()), loaded(photo()))
    with pytest.raises(UserError, match="no model file; save a checkpoint"):
        pickle.dumps(detector)


def test_detections_can_be_counted_walked_through_and_read() -> None:
    found = some()
    assert len(found) == 3 and repr(found) == "Detections(3: dog 0.90, cat 0.80, class 7 0.30)"
    assert repr(Detections.empty()) == "Detections(0)"
    first = next(iter(found))
    assert (first.name, first.label, round(first.score, 2)) == ("dog", 1, 0.9) and first.box.shape == (4,)
    assert "dog 0.90" in repr(first)
    part = found[found.scores > 0.5]
    assert len(part) == 2 and part.names == NAMES and len(found[[]]) == 0 and len(found[1]) == 1
    assert found.to_dicts()[0]["class_name"] == "dog"
    (row, *_) = found.to_coco(42, category_ids=[5, 6, 7, 0, 0, 0, 0, 90])
    assert row["image_id"] == 42 and row["category_id"] == 6 and row["bbox"] == pytest.approx([10.4, 20.2, 40.2, 20.6])


def test_detections_draw_save_and_crop_their_image(tmp_path: Path) -> None:
    image = photo()
    write_image(tmp_path / "in.png", image)
    for source in (image, tmp_path / "in.png", str(tmp_path / "in.png")):
        found = some(source)
        assert found.draw().shape == image.shape and not np.array_equal(found.draw(), image)
        assert [crop.shape for crop in found.crops()] == [(21, 41, 3), (60, 90, 3), (0, 0, 3)]
        assert np.array_equal(read_image(found.save(tmp_path / "out" / "drawn.png")), found.draw())
    with pytest.raises(ValueError, match="is the image itself"):
        some(tmp_path / "in.png").save(tmp_path / "in.png")
    assert np.array_equal(read_image(tmp_path / "in.png"), image)
    with pytest.raises(ValueError, match="have no image"):
        some().draw()
    assert some().draw(image).shape == image.shape


def test_a_notebook_shows_an_image_of_bounded_size_and_a_table() -> None:
    html = some(np.zeros((4000, 6000, 3), np.uint8))._repr_html_()
    assert "data:image/jpeg;base64," in html and "1 dog" in html and len(html) < 300_000
    assert "<img" not in some()._repr_html_() and "no objects" in Detections.empty()._repr_html_()
    named = Detections([[0, 0, 1, 1]], [0.5], [0], names=("<b>&",))
    assert "<b>" not in named._repr_html_()


def test_show_without_a_viewer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageShow.show", lambda *_, **__: False)
    with pytest.raises(RunError, match="save"):
        some(photo()).show()


def test_errors_are_subclasses_of_standard_exceptions() -> None:
    assert issubclass(MissingFileError, (ValueError, FileNotFoundError)) and issubclass(MissingFileError, UserError)
    assert Thresholds() == Thresholds(None) and Thresholds(0.5).score_threshold == 0.5


@pytest.mark.parametrize(
    ("name", "hint"),
    [("xyxy", "boxes"), ("conf", "scores"), ("cls", "labels"), ("plot", "draw"), ("to_json", "to_dicts")],
)
def test_other_libraries_names_of_results_get_a_hint(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; did you mean {hint}"):
        getattr(Detections.empty(), name)
    assert not hasattr(Detections.empty(), "something")
    assert len(copy.copy(pickle.loads(pickle.dumps(Detections.empty())))) == 0


def test_other_libraries_methods_get_a_hint(detector: Detector) -> None:
    with pytest.raises(AttributeError, match=r"'Detector' object has no attribute 'predict'; call the detector itself"):
        detector.predict("photo.jpg")
    with pytest.raises(AttributeError, match=r"device=.cuda"):
        detector.to("cuda")
