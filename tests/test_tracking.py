"""Tracking: stable identities, and lines and zones that count each object once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imaging.detections import Detections
from prediction.byte_track import ByteTracker
from prediction.tracking import LineCounter, TrackLog, ZoneCounter, read_line, read_zone
from utils.errors import UserError


def tracked(*rows: tuple[float, float, int]) -> Detections:
    """Objects of 10 x 10 pixels with their centre and identity."""
    table = np.array(rows, dtype=float).reshape(-1, 3)
    boxes = np.concatenate([table[:, :2] - 5, table[:, :2] + 5], axis=1)
    return Detections(boxes, np.full(len(table), 0.9), np.zeros(len(table)), table[:, 2])


def test_objects_that_move_keep_their_identity_even_with_a_weak_score_between() -> None:
    tracker = ByteTracker(score_threshold=0.5, fps=25)
    seen: list[dict[int, int]] = []
    for frame in range(12):
        boxes = np.array([[10 + 3 * frame, 10, 50 + 3 * frame, 60], [200 - 3 * frame, 100, 260 - 3 * frame, 170]])
        scores = np.array([0.9, 0.2 if frame == 6 else 0.8])
        found = tracker.update(Detections(boxes, scores, np.array([0, 1])))
        assert found.track_ids is not None
        seen.append(dict(zip(found.labels.tolist(), found.track_ids.tolist(), strict=True)))
    assert seen[0] == {}
    assert all(each == seen[1] for each in seen[1:]) and len(set(seen[1].values())) == 2


def test_frames_without_objects_and_weak_ones_alone_give_no_tracks() -> None:
    tracker = ByteTracker(score_threshold=0.5, fps=25)
    for _ in range(3):
        assert len(tracker.update(Detections.empty())) == 0
        weak = Detections(np.array([[0, 0, 9, 9]]), np.array([0.3]), np.array([0]))
        assert len(tracker.update(weak)) == 0
    assert tracker.update(Detections.empty()).track_ids is not None


def test_a_line_counts_each_crossing_once_with_its_direction() -> None:
    line = LineCounter((0, 50), (100, 50))  # left to right: down is in
    for frame, y in enumerate((30, 45, 50, 55, 70, 40)):
        line.update(frame, tracked((20, y, 1), (150, y, 2)))  # the second passes beside the line
    assert line.counts == {"in": 1, "out": 1}
    assert [event["frame"] for event in line.events] == [2, 5]
    assert line.text() == "in 1, out 1"


def test_a_zone_counts_who_is_in_it_now_and_who_ever_was() -> None:
    zone = ZoneCounter([(0, 0), (100, 0), (0, 100)])
    zone.update(0, tracked((20, 20, 1), (90, 90, 2)))
    zone.update(1, tracked((30, 20, 1), (40, 40, 2)))
    zone.update(2, tracked((90, 90, 1)))
    assert (zone.now, zone.most, zone.tracks) == (0, 2, {1, 2})


def test_the_log_of_tracks_is_json_with_the_most_frequent_class(tmp_path: Path) -> None:
    log = TrackLog(("person", "dog"), [LineCounter((0, 0), (9, 9)), ZoneCounter([(0, 0), (9, 0), (0, 9)])])
    for frame in range(3):
        found = tracked((10 + frame, 20, 7))
        label = np.array([1 if frame == 1 else 0])
        log.update(frame, Detections(found.boxes, found.scores, label, found.track_ids))
    log.save(tmp_path / "tracks.json")
    content = json.loads((tmp_path / "tracks.json").read_text())
    (track,) = content["tracks"]
    assert track["class_name"] == "person" and track["track_id"] == 7
    assert [track["first_frame"], track["last_frame"], len(track["boxes"])] == [0, 2, 3]
    assert len(content["lines"]) == len(content["zones"]) == 1
    canvas = np.zeros((60, 80, 3), np.uint8)
    log.draw(canvas)
    assert canvas.any()


def test_trails_of_objects_that_left_are_forgotten() -> None:
    log = TrackLog(("person",))
    log.update(0, tracked((10, 10, 1)))
    for frame in range(1, 60):
        log.update(frame, tracked((50, 50, 2)))
    assert list(log._trails) == [2]


@pytest.mark.parametrize("text", ["", "1,2", "1,2,1,2", "a,b,c,d", "1,2,3,nan", "1,2,3,4,5"])
def test_invalid_lines_are_user_errors(text: str) -> None:
    with pytest.raises(UserError, match="--line"):
        read_line(text)


def test_zones_have_three_corners_at_least() -> None:
    assert len(read_zone("0,0,10,0,10,10").points) == 3
    for text in ("0,0,10,0", "0,0,10,0,5", "x"):
        with pytest.raises(UserError, match="--zone"):
            read_zone(text)
