"""ByteTrack: track objects over video frames from boxes and scores alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from imaging.detections import Detections
from nets.nms import box_iou

LOW_SCORE = 0.1  # known objects are followed through scores as low as this (section 3)
LOST_SECONDS = 1.0  # a lost object is remembered for this long: 30 frames of a 30 Hz video, as in the paper
FIRST_IOU, SECOND_IOU, NEW_IOU = (
    0.2,
    0.5,
    0.3,
)  # minimum IoU of the three associations (the authors' 0.8, 0.5, 0.7 are costs)
POSITION_NOISE, VELOCITY_NOISE = 1 / 20, 1 / 160  # standard deviations as fractions of the height, as in DeepSORT


@dataclass
class Track:
    """One object. `mean` is (cx, cy, w, h and their velocities); `covariance` is of the same order, (8, 8)."""

    mean: np.ndarray
    covariance: np.ndarray
    identity: int = -1  # assigned at the second consecutive detection
    missed: int = 0
    place: int = field(default=-1)  # index of its detection in the current frame

    @property
    def box(self) -> np.ndarray:
        """(4,) xyxy pixels."""
        return np.concatenate([self.mean[:2] - self.mean[2:4] / 2, self.mean[:2] + self.mean[2:4] / 2])


class ByteTracker:
    """Associates detections with tracks: high scores first, then low scores with the remaining tracks.

    Args:
        score_threshold: minimum score that starts a track; lower scores only continue an existing track.
        fps: frames per second.

    Source: Zhang et al. 2022, https://arxiv.org/abs/2110.06864
    """

    def __init__(self, score_threshold: float, fps: float) -> None:
        self.threshold, self.patience = score_threshold, max(1, round(LOST_SECONDS * fps))
        self.tracks: list[Track] = []
        self._next = 0

    def update(self, detections: Detections) -> Detections:
        """Update with the next frame; returns its objects with their identities (from 0), highest score first.

        An object gets its identity at its second consecutive detection. Objects without one are omitted.
        """
        boxes, scores = detections.boxes.astype(float), detections.scores
        for track in self.tracks:
            _predict(track)
            track.place = -1
        confident = np.flatnonzero(scores >= self.threshold)
        weak = np.flatnonzero((scores >= LOW_SCORE) & (scores < self.threshold))
        known = [track for track in self.tracks if track.identity >= 0]
        confident = self._associate(known, boxes, confident, FIRST_IOU, scores)
        self._associate([t for t in known if t.place < 0 and t.missed == 0], boxes, weak, SECOND_IOU)
        fresh = [track for track in self.tracks if track.identity < 0]
        confident = self._associate(fresh, boxes, confident, NEW_IOU, scores)
        for track in self.tracks:
            track.missed = 0 if track.place >= 0 else track.missed + 1
            if track.place >= 0 and track.identity < 0:
                track.identity, self._next = self._next, self._next + 1
        self.tracks = [t for t in self.tracks if t.missed <= (self.patience if t.identity >= 0 else 0)]
        self.tracks += [_begin(boxes[place]) for place in confident]
        seen = [track for track in self.tracks if track.place >= 0 and track.identity >= 0]
        seen.sort(key=lambda track: -scores[track.place])
        places = np.array([track.place for track in seen], int)
        ids = np.array([track.identity for track in seen], int)
        return Detections(detections.boxes[places], scores[places], detections.labels[places], ids)

    def _associate(
        self, tracks: list[Track], boxes: np.ndarray, places: np.ndarray, least: float, scores: np.ndarray | None = None
    ) -> np.ndarray:
        """Assign detections to tracks by the highest sum of IoUs (Hungarian algorithm); returns the unmatched ones."""
        if not tracks or not len(places):
            return places
        overlap = np.nan_to_num(box_iou(np.stack([track.box for track in tracks]), boxes[places]))  # NaN: no area
        similarity = overlap if scores is None else overlap * scores[places]
        rows, columns = linear_sum_assignment(-similarity)
        fits = similarity[rows, columns] >= least * (1.0 if scores is None else self.threshold)
        for row, column in zip(rows[fits], columns[fits], strict=True):
            tracks[row].place = int(places[column])
            _correct(tracks[row], boxes[places[column]])
        return np.delete(places, columns[fits])


def _measured(box: np.ndarray) -> np.ndarray:
    return np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])


def _begin(box: np.ndarray) -> Track:
    mean = np.concatenate([_measured(box), np.zeros(4)])
    height = max(mean[3], 1.0)
    deviation = np.repeat([2 * POSITION_NOISE * height, 10 * VELOCITY_NOISE * height], 4)
    return Track(mean, np.diag(deviation**2))


def _predict(track: Track) -> None:
    """Kalman prediction for one frame at constant velocity."""
    height = max(track.mean[3], 1.0)
    noise = np.diag(np.repeat([POSITION_NOISE * height, VELOCITY_NOISE * height], 4) ** 2)
    track.mean = MOTION @ track.mean
    track.mean[2:4] = np.maximum(track.mean[2:4], 1.0)
    track.covariance = MOTION @ track.covariance @ MOTION.T + noise


def _correct(track: Track, box: np.ndarray) -> None:
    """Kalman update by a measured box."""
    height = max(track.mean[3], 1.0)
    projected = track.covariance[:4, :4] + np.eye(4) * (POSITION_NOISE * height) ** 2
    gain = np.linalg.solve(projected, track.covariance[:4]).T
    track.mean = track.mean + gain @ (_measured(box) - track.mean[:4])
    track.covariance = track.covariance - gain @ track.covariance[:4]


MOTION = np.eye(8) + np.eye(8, k=4)
