"""predict.py: options, error messages, and complete output files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import predict
from imaging.detections import Detections
from imaging.image_io import read_image, write_image
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from prediction import command as prediction_command
from prediction import run as prediction_run
from prediction import video
from prediction.detector import load_detector
from prediction.live_view import Page
from prediction.streaming import stream
from prediction.video import VideoReader, VideoWriter
from utils.errors import UserError
from utils.thresholds import Thresholds

REPOSITORY = Path(__file__).resolve().parent.parent
RED, BLUE = (230, 20, 20), (20, 20, 230)


class Painted:
    """Finds one red and one blue rectangle: a fake detector for tests of drawing and writing."""

    def __init__(self) -> None:
        self.config = ModelConfig(
            class_names=("red", "blue"),
            input_size=(96, 96),
            score_threshold=0.4,
            score_threshold_source="best F1 on val",
        )
        self.asked: list[dict[str, Any]] = []

    def set_input_size(self, size: Sequence[int]) -> None:
        self.config = self.config.replace(input_size=tuple(size) * (2 // len(size)))

    def detect_batch(
        self, images: Sequence[np.ndarray], thresholds: Thresholds, trim: bool = False
    ) -> list[Detections]:
        self.asked.append({"images": len(images), **asdict(thresholds)})
        return [self._detect(image, thresholds.score_threshold)[: thresholds.max_detections] for image in images]

    def _detect(self, image: np.ndarray, threshold: float) -> Detections:
        rows = []
        for label, (colour, score) in enumerate(((RED, 0.9), (BLUE, 0.6))):
            ys, xs = np.nonzero(np.abs(image.astype(int) - colour).sum(axis=-1) < 90)
            if len(xs) and score >= threshold:
                rows.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, score, label))
        table = np.array(rows, dtype=float).reshape(-1, 6)
        return Detections(table[:, :4], table[:, 4], table[:, 5])


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Painted:
    detector = Painted()
    monkeypatch.setattr(prediction_command.Detector, "open", lambda *_: detector)
    return detector


def scene(x: int = 20, blue: bool = True) -> np.ndarray:
    image = np.full((120, 160, 3), 110, np.uint8)
    image[40:80, x : x + 30] = RED
    if blue:
        image[90:110, 100:150] = BLUE
    return image


def picture(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, scene(**options))
    return path


def clip(path: Path, frames: int = 24, codec: str = "mp4v", fps: float = 12.0) -> Path:
    with VideoWriter(path, fps, (120, 160), codec) as writer:
        for number in range(frames):
            writer.write(scene(4 * number))
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "detections.json").read_text(encoding="utf-8"))


def run(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


def test_an_image_is_drawn_and_its_detections_are_written_in_its_pixels(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / "a.png")
    assert run(source, "--output", tmp_path / "out", "--json") == 0
    (row,) = rows(tmp_path / "out")
    assert row["image"] == str(source) and (row["width"], row["height"]) == (160, 120)
    assert [found["class_name"] for found in row["detections"]] == ["red", "blue"]
    assert row["detections"][0]["box_xyxy"] == [20, 40, 50, 80] and row["detections"][0]["class_id"] == 0
    drawn = read_image(tmp_path / "out" / "a.png")
    assert drawn.shape == (120, 160, 3) and (drawn != scene()).any()
    out = capsys.readouterr().out
    assert "score threshold 0.4 (the checkpoint's: best F1 on val)" in out
    assert "1 red, 1 blue" in out
    assert out.splitlines()[-1] == "predict: 1 of 1 sources done"


def test_a_folder_with_bad_images_and_videos_finishes_the_good_ones(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg", "sub/a.jpg"):
        picture(tmp_path / "in" / name)
    clip(tmp_path / "in" / "v.mp4", frames=5)
    (tmp_path / "in" / "bad.jpg").write_bytes((tmp_path / "in" / "a.jpg").read_bytes()[:500])
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video")
    assert run(tmp_path / "in", tmp_path / "none.jpg", "--recursive", "--output", tmp_path / "out", "--json") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "predict: 4 of 7 sources done, 3 failed"
    assert all(name in captured.err for name in ("bad.jpg", "bad.mp4", "none.jpg"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-2.jpg",
        "a.jpg",
        "b.jpg",
        "detections.json",
        "v.mp4",
    ]
    assert len(rows(tmp_path / "out")) == 3 + 5


def test_two_batches_of_a_video_are_on_their_way_at_once(detector: Painted, tmp_path: Path, monkeypatch: Any) -> None:
    meet = threading.Barrier(2, timeout=1500)  # broken, and an error, if the second batch waits for the first
    found = detector.detect_batch

    def detect_batch(images: Sequence[np.ndarray], thresholds: Thresholds, trim: bool) -> list[Detections]:
        meet.wait()
        return found(images, thresholds)

    monkeypatch.setattr(detector, "detect_batch", detect_batch)
    assert run(clip(tmp_path / "a.mp4", 16), "--output", tmp_path / "out", "--batch-size", "4", "--json") == 0
    lefts = [row["detections"][0]["box_xyxy"][0] for row in rows(tmp_path / "out")]
    assert len(lefts) == 16 and lefts == sorted(lefts)  # and still in order


def test_a_video_keeps_its_rate_size_length_and_order(detector: Painted, tmp_path: Path) -> None:
    assert run(clip(tmp_path / "v.mp4"), "--output", tmp_path / "out", "--json", "--batch-size", 5) == 0
    with VideoReader(tmp_path / "out" / "v.mp4") as reader:
        frames = list(reader)
    assert len(frames) == 24 and reader.fps == pytest.approx(12) and reader.size == (120, 160)
    found = rows(tmp_path / "out")
    assert [row["frame"] for row in found] == list(range(24))
    lefts = [row["detections"][0]["box_xyxy"][0] for row in found]
    assert all(abs(left - 4 * number) <= 3 for number, left in enumerate(lefts))
    assert detector.asked[0]["images"] == 5


def test_a_truncated_video_keeps_its_frames_and_reports_their_number(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = clip(tmp_path / "v.avi", frames=12, codec="mjpg")
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * 0.6)])
    assert run(source, "--output", tmp_path / "out") == 1
    assert "of 12 frames" in capsys.readouterr().err
    with VideoReader(tmp_path / "out" / "v.mp4") as reader:
        assert 1 <= len(list(reader)) < 12


def test_existing_files_are_not_overwritten_without_the_option(detector: Painted, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.jpg")
    assert run(source, "--output", tmp_path / "out", "--json") == 0
    before = (tmp_path / "out" / "a.jpg").read_bytes()
    for extra in (["--json", "--no-images"], []):
        with pytest.raises(UserError, match="exists and would be overwritten"):
            run(source, "--output", tmp_path / "out", *extra)
    assert (tmp_path / "out" / "a.jpg").read_bytes() == before
    assert run(source, "--output", tmp_path / "out", "--json", "--overwrite") == 0
    with pytest.raises(UserError, match="one of the input images"):
        run(source, "--output", tmp_path, "--overwrite")


def test_labels_that_cannot_have_the_name_of_their_image_are_reported(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.jpg", "x.png"):
        picture(tmp_path / "in" / name)
    run(tmp_path / "in", "--save", "yolo", "--output", tmp_path / "a")
    assert "such as x: the labels are in x.png.*" in capsys.readouterr().err
    run(tmp_path / "in", "--save", "yolo", "frames", "--output", tmp_path / "b")
    assert (tmp_path / "b/frames/x.png.jpg").exists() and (tmp_path / "b/yolo/x.png.txt").exists()
    assert not capsys.readouterr().err


def test_without_a_folder_each_run_gets_a_fresh_one(
    detector: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = picture(tmp_path / "a.jpg")
    assert run(source) == 0 and run(source) == 0
    assert (tmp_path / "output" / "predict-1" / "a.jpg").is_file()
    assert (tmp_path / "output" / "predict-2" / "a.jpg").is_file()


def test_thresholds_of_classes_and_the_classes_asked_for_select(detector: Painted, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")

    def found(*arguments: object) -> list[str]:
        assert run(source, "--output", tmp_path / "out", "--json", "--overwrite", *arguments) == 0
        return [each["class_name"] for each in rows(tmp_path / "out")[0]["detections"]]

    assert found("--score-threshold", "0.7") == ["red"]
    assert found("--score-threshold", "0.7", "blue=0.5") == ["red", "blue"]
    assert found("--score-threshold", "red=0.95") == ["blue"]
    assert found("--classes", "blue") == ["blue"]
    assert found("--classes", "0") == ["red"]
    assert detector.asked[-1]["max_detections"] >= 1000  # those of other classes must not use up the limit
    assert found("--classes", "red,blue") == ["red", "blue"]
    assert found("--max-detections", "1") == ["red"]


def test_an_option_that_consumed_a_source_is_corrected(detector: Painted, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    for number, option in enumerate((["--score-threshold", "0.3"], ["--classes", "red"], ["--save", "csv"])):
        assert run("--output", tmp_path / str(number), *option, source) == 0
        assert (tmp_path / str(number) / "a.png").is_file()
    assert run("--output", tmp_path / "9", "--input-size", "64", "96", source) == 0
    assert detector.config.input_size == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--score-threshold", "2"], "--score-threshold: 2 is out of range"),
        (["--score-threshold", "high"], "--score-threshold: 'high'"),
        (["--score-threshold", "nothing=0.5"], "no class 'nothing'"),
        (["--classes", "Red"], "did you mean 'red'"),
        (["--iou-threshold", "-1"], "--iou-threshold: -1.0 is out of range"),
        (["--batch-size", "0"], "--batch-size: 0 is out of range"),
        (["--save", "exe"], "--save: 'exe'"),
        (["--nms", "hard"], "--nms: "),
        (["--line", "1,2,3"], "--line: '1,2,3'"),
        (["--zone", "1,2,3,4"], "--zone: '1,2,3,4'"),
        (["--codec", "x"], "--codec: "),
    ],
)
def test_contradictory_options_are_a_one_line_error(
    detector: Painted, tmp_path: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(picture(tmp_path / "a.png"), "--output", tmp_path / "out", *arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_exist_is_a_user_error(detector: Painted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg: does not exist"):
        run(tmp_path / "none.jpg")
    with pytest.raises(UserError, match="none of the 2"):
        run(tmp_path / "none.jpg", tmp_path / "also.jpg")
    with pytest.raises(UserError, match="SOURCE: is required"):
        run()


def test_every_output_of_every_source_together(detector: Painted, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg")
    clip(tmp_path / "in" / "v.mp4", frames=3)
    kinds = ["json", "jsonl", "csv", "coco", "voc", "yolo", "crops", "counts", "frames"]
    assert run(tmp_path / "in", "--output", tmp_path / "out", "--save", *kinds) == 0
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"voc/a.xml", "voc/v_000002.xml", "yolo/a.txt", "crops/red/a_000.jpg", "frames/v_000000.jpg"} <= written
    assert {"detections.jsonl", "detections.csv", "coco_results.json", "counts.csv"} <= written


@pytest.mark.parametrize("nms", ["agnostic", "soft", "diou", "wbf"])
def test_other_suppressions_reach_the_detector(detector: Painted, tmp_path: Path, nms: str) -> None:
    assert run(picture(tmp_path / "a.png"), "--output", tmp_path / "out", "--nms", nms) == 0
    boxes, scores, labels = np.array([[0, 0, 9, 9]], np.float32), np.array([0.7], np.float32), np.array([1])
    kept = detector.asked[0]["suppress"](boxes, scores, labels, 0.5)
    assert kept[0].tolist() == boxes.tolist()


def test_tiles_and_augmentation_find_the_same_objects(detector: Painted, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    assert run(source, "--output", tmp_path / "out", "--json", "--tile", "0", "--tta") == 0
    boxes = {tuple(each["box_xyxy"]) for each in rows(tmp_path / "out")[0]["detections"]}
    assert boxes == {(20, 40, 50, 80), (100, 90, 150, 110)}
    assert len(detector.asked) > 4


def test_tracks_lines_and_zones_count(detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = clip(tmp_path / "v.mp4")
    arguments = ["--line", "60,0,60,120", "--zone", "90,80,160,80,160,120,90,120", "--classes", "red", "blue"]
    assert run(source, "--output", tmp_path / "out", "--json", *arguments) == 0
    content = json.loads((tmp_path / "out" / "v_tracks.json").read_text())
    assert [track["class_name"] for track in content["tracks"]] == ["red", "blue"]
    assert len(content["tracks"][0]["boxes"]) == 23  # an object seen once is none yet
    assert content["lines"][0]["in"] + content["lines"][0]["out"] == 1
    assert content["zones"][0]["most_at_once"] == 1 and content["zones"][0]["objects"] == 1
    ids = {each["track_id"] for row in rows(tmp_path / "out") for each in row["detections"]}
    assert len(ids) == 2
    assert "24 frames, tracks: 1 red, 1 blue" in capsys.readouterr().out


def test_a_live_page_is_offered_where_there_is_no_window(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_run, "open_view", prediction_run.Page)
    assert run(picture(tmp_path / "a.png"), "--output", tmp_path / "out", "--show") == 0
    assert "live view: http://127.0.0.1:" in capsys.readouterr().out


def test_frames_of_a_video_are_detected_without_the_rows_of_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load_detector("nano", device="cpu", runtime="torch")
    run_network, shapes = detector.runtime.run, []
    monkeypatch.setattr(detector.runtime, "run", lambda images: shapes.append(images.shape[1:3]) or run_network(images))
    frame = read_image(Path(__file__).parent.parent / "docs" / "images" / "readme.jpg")  # 308 x 1096
    whole, trimmed = (detector.detect_batch([frame], Thresholds(0.3), trim=trim)[0] for trim in (False, True))
    assert shapes == [(224, 288), (96, 288)]
    order, same = np.argsort(whole.boxes[:, 0]), np.argsort(trimmed.boxes[:, 0])
    assert len(whole) == 3 and (whole.labels[order] == trimmed.labels[same]).all()
    assert whole.scores[order] == pytest.approx(trimmed.scores[same], abs=0.1)
    assert whole.boxes[order] == pytest.approx(trimmed.boxes[same], abs=20)  # pixels
    shapes.clear()
    with VideoWriter(tmp_path / "v.mp4", 10, frame.shape[:2]) as writer:
        writer.write(frame)
    assert len(list(detector.stream(tmp_path / "v.mp4"))) == 1
    assert shapes == [(96, 288)]
    detector.set_input_size((256, 256))  # a size that was asked for is used as it is
    detector.detect_batch([frame], trim=True)
    assert shapes[1:] == [(256, 256)]


def test_frames_of_a_source_can_be_streamed_from_python(detector: Painted, tmp_path: Path) -> None:
    seen = list(stream(partial(detector.detect_batch, thresholds=Thresholds(0.4)), clip(tmp_path / "v.mp4", frames=7)))
    assert [frame.index for frame, _ in seen] == list(range(7))
    assert all(len(found) == 2 for _, found in seen)
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    assert len(list(stream(partial(detector.detect_batch, thresholds=Thresholds(0.4)), tmp_path / "in"))) == 1
    with pytest.raises(UserError):
        list(stream(detector, tmp_path / "none.mp4"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained network, which has detections everywhere at threshold 0."""
    torch.manual_seed(0)
    config = ModelConfig(
        ("person", "dog"), "mobilenet_v3_small", 0.25, neck_width=0.25, input_size=(64, 64), score_threshold=0.0
    )
    path = tmp_path_factory.mktemp("model") / "m.pth"
    save_checkpoint(path, Checkpoint(config, YOLOv4(config).state_dict()))
    return path


def test_a_real_network_goes_through_every_option(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg")
    clip(tmp_path / "in" / "v.mp4", frames=3)
    arguments = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--max-detections", 4, "--json"]
    assert run(tmp_path / "in", *arguments, "--heatmap", "--cam", "--device", "cpu") == 0
    assert len(rows(tmp_path / "out")[0]["detections"]) == 4
    assert {"a_heatmap.jpg", "a_cam_000.jpg", "a_cam_003.jpg"} <= {path.name for path in (tmp_path / "out").iterdir()}
    for number, extra in enumerate((["--tile", 64, "--tta"], ["--nms", "soft"], ["--nms", "wbf"], ["--nms", "diou"])):
        arguments[3] = tmp_path / f"out{number}"
        assert run(tmp_path / "in" / "a.jpg", *arguments, *extra) == 0
        assert len(rows(tmp_path / f"out{number}")[0]["detections"]) >= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot ask another process to end")
def test_an_interruption_leaves_complete_files(checkpoint: Path, tmp_path: Path) -> None:
    source, out = clip(tmp_path / "v.avi", frames=1000, codec="mjpg"), tmp_path / "out"
    command = [sys.executable, "predict.py", source, "--checkpoint", checkpoint, "--output", out, "--json"]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 1200
    while not (out / "v.mp4").exists() or (out / "detections.json").stat().st_size < 1000:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=1500)
    assert process.returncode == 128 + signal.SIGTERM
    assert stdout.splitlines()[-1] == "predict: 0 of 1 sources done"
    assert "Traceback" not in stderr and "interrupted" in stderr
    check_stopped(out, 1000)


def check_stopped(out: Path, frames: int) -> None:
    count = len(rows(out))
    with VideoReader(out / "v.mp4") as reader:
        assert len(list(reader)) == count < frames


def test_ctrl_c_leaves_complete_files(detector: Painted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = detector.detect_batch

    def interrupted(images: Sequence[np.ndarray], thresholds: Thresholds, trim: bool) -> list[Detections]:
        if len(detector.asked) == 3:
            raise KeyboardInterrupt
        return find(images, thresholds)

    monkeypatch.setattr(detector, "detect_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(clip(tmp_path / "v.mp4", frames=60), "--output", tmp_path / "out", "--json", "--batch-size", 4)
    assert len(rows(tmp_path / "out")) == 12
    check_stopped(tmp_path / "out", 60)


def test_a_failing_camera_is_an_error_after_its_frames_are_written(
    detector: Painted, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "BACK_OFF", 0.01)
    served = Page()
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.02):
            served.show(scene())

    threading.Thread(target=serve, daemon=True).start()
    address = served.address + "stream"
    assert run(address, "--output", tmp_path / "out", "--json", "--max-frames", 3) == 0
    assert [row["frame"] for row in rows(tmp_path / "out")] == [0, 1, 2]
    assert len(rows(tmp_path / "out")[0]["detections"]) == 2
    find = detector.detect_batch

    def unplug(images: Sequence[np.ndarray], thresholds: Thresholds, trim: bool) -> list[Detections]:
        if not stop.is_set():
            stop.set()
            served.close()
        return find(images, thresholds)

    monkeypatch.setattr(detector, "detect_batch", unplug)
    assert run(address, "--output", tmp_path / "out2", "--json") == 1
    captured = capsys.readouterr()
    assert "no frames received after 5 attempts" in captured.err
    assert captured.out.splitlines()[-1] == "predict: 0 of 1 sources done, 1 failed"
    count = len(rows(tmp_path / "out2"))
    with VideoReader(tmp_path / "out2" / "stream.mp4") as reader:
        assert count >= 1 and len(list(reader)) >= 1
