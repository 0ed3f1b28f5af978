"""Analyse tracked objects: trails, line crossings, zones, and a log of all tracks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imaging.detections import Detections
from imaging.draw import class_colour, draw_caption, draw_polygon, draw_trail
from utils.errors import UserError
from utils.files import write_file

TRAIL_FRAMES = 30

Point = tuple[float, float]


class LineCounter:
    """Count objects whose centre crosses a line.

    Args:
        start, end: (x, y) pixels. Seen from `start` to `end`, `in` is from the left side to the right one (with y
            pointing down: a line drawn from left to right is crossed `in` by what moves down).
    """

    def __init__(self, start: Point, end: Point) -> None:
        self.start, self.end = start, end
        self.counts: Counter[str] = Counter()
        self.events: list[dict[str, Any]] = []
        self._last: dict[int, Point] = {}

    def update(self, frame: int, detections: Detections) -> None:
        for track, label, point in _centres(detections):
            before = self._last.get(track)
            self._last[track] = point
            if before is None:
                continue
            a, b = _side(self.start, self.end, before), _side(self.start, self.end, point)
            # a centre on the line belongs to the right side, so that each crossing counts once
            if (a >= 0) == (b >= 0) or not _between(before, point, self.start, self.end):
                continue
            direction = "in" if b >= 0 else "out"
            self.counts[direction] += 1
            self.events.append({"frame": frame, "track_id": track, "class_id": label, "direction": direction})

    def to_dict(self) -> dict[str, Any]:
        return {
            "line": [*self.start, *self.end],
            "in": self.counts["in"],
            "out": self.counts["out"],
            "crossings": self.events,
        }

    def draw(self, canvas: np.ndarray) -> None:
        draw_polygon(canvas, np.array([self.start, self.end]), (255, 220, 0), closed=False)

    def text(self) -> str:
        return f"in {self.counts['in']}, out {self.counts['out']}"


class ZoneCounter:
    """Count objects whose centre is inside a polygon.

    Args:
        points: (N, 2) corners x, y, pixels, N >= 3.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = np.asarray(points, np.float32)
        self.now = 0
        self.most = 0
        self.tracks: set[int] = set()

    def update(self, frame: int, detections: Detections) -> None:
        polygon = self.points.reshape(-1, 1, 2)
        inside = {track for track, _, point in _centres(detections) if cv2.pointPolygonTest(polygon, point, False) >= 0}
        self.now = len(inside)
        self.most = max(self.most, self.now)
        self.tracks |= inside

    def to_dict(self) -> dict[str, Any]:
        return {
            "zone": self.points.tolist(),
            "most_at_once": self.most,
            "objects": len(self.tracks),
            "track_ids": sorted(self.tracks),
        }

    def draw(self, canvas: np.ndarray) -> None:
        draw_polygon(canvas, self.points, (0, 220, 255))

    def text(self) -> str:
        return f"zone {self.now}, total {len(self.tracks)}"


class TrackLog:
    """Every track of a video with its boxes, and the counts of lines and zones, for tracks.json.

    Args:
        class_names: of the model.
        counters: lines and zones.
    """

    def __init__(self, class_names: Sequence[str], counters: Sequence[LineCounter | ZoneCounter] = ()) -> None:
        self.class_names, self.counters = class_names, counters
        self._boxes: dict[int, list[list[float]]] = defaultdict(list)
        self._labels: dict[int, Counter[int]] = defaultdict(Counter)
        self._trails: dict[int, deque[Point]] = defaultdict(lambda: deque(maxlen=TRAIL_FRAMES))
        self._seen: dict[int, int] = {}

    def update(self, frame: int, detections: Detections) -> None:
        assert detections.track_ids is not None
        for (track, label, point), box, score in zip(
            _centres(detections), detections.boxes, detections.scores, strict=True
        ):
            self._boxes[track].append([frame, *(round(float(v), 2) for v in box), round(float(score), 4)])
            self._labels[track][label] += 1
            self._trails[track].append(point)
            self._seen[track] = frame
        for counter in self.counters:
            counter.update(frame, detections)
        for track in [t for t, last in self._seen.items() if frame - last > TRAIL_FRAMES]:
            del self._seen[track], self._trails[track]

    def draw(self, canvas: np.ndarray) -> None:
        """Draw trails, lines, zones and their counts, in place."""
        for track, trail in self._trails.items():
            draw_trail(canvas, list(trail), class_colour(self._labels[track].most_common(1)[0][0]))
        for row, counter in enumerate(self.counters):
            counter.draw(canvas)
            draw_caption(canvas, counter.text(), row)

    def to_dict(self) -> dict[str, Any]:
        """`tracks`: id, class (the most frequent one), first and last frame, boxes (frame, x1, y1, x2, y2, score)."""
        tracks = []
        for track, boxes in sorted(self._boxes.items()):
            label = self._labels[track].most_common(1)[0][0]
            tracks.append(
                {
                    "track_id": track,
                    "class_id": label,
                    "class_name": self.class_names[label],
                    "first_frame": boxes[0][0],
                    "last_frame": boxes[-1][0],
                    "boxes": boxes,
                }
            )
        kinds = {"lines": LineCounter, "zones": ZoneCounter}
        counts = {name: [c.to_dict() for c in self.counters if isinstance(c, kind)] for name, kind in kinds.items()}
        return {"columns": ["frame", "x1", "y1", "x2", "y2", "score"], "tracks": tracks, **counts}

    def save(self, path: Path) -> None:
        write_file(path, json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace"))


def read_line(text: str) -> LineCounter:
    """`x1,y1,x2,y2` in pixels. Raises UserError."""
    values = _numbers("--line", text)
    if len(values) != 4 or values[:2] == values[2:]:
        raise UserError("--line", f"{text!r} is not two different points", "give x1,y1,x2,y2 in pixels")
    return LineCounter((values[0], values[1]), (values[2], values[3]))


def read_zone(text: str) -> ZoneCounter:
    """`x1,y1,x2,y2,x3,y3,...` in pixels. Raises UserError."""
    values = _numbers("--zone", text)
    if len(values) < 6 or len(values) % 2:
        raise UserError("--zone", f"{text!r} is not three or more points", "give x1,y1,x2,y2,x3,y3,... in pixels")
    return ZoneCounter(list(zip(values[::2], values[1::2], strict=True)))


def _numbers(option: str, text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError as error:
        raise UserError(option, f"{text!r} is not a list of numbers", "give pixels with commas between") from error
    if not np.isfinite(values).all():
        raise UserError(option, f"{text!r} is not finite", "give pixels with commas between")
    return values


def _centres(detections: Detections) -> list[tuple[int, int, Point]]:
    assert detections.track_ids is not None
    centres = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
    rows = zip(detections.track_ids.tolist(), detections.labels.tolist(), centres.tolist(), strict=True)
    return [(track, label, (x, y)) for track, label, (x, y) in rows]


def _side(start: Point, end: Point, point: Point) -> float:
    """Positive on the right of the line as seen on the screen (y points down)."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _between(a: Point, b: Point, start: Point, end: Point) -> bool:
    """Whether `start` and `end` lie on different sides of the path from a to b, so that it crosses the segment."""
    return (_side(a, b, start) >= 0) != (_side(a, b, end) >= 0)
