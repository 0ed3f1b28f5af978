"""Suggested labels: detections on the unlabelled images, computed in the background."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.index_cache import cache_folder
from imaging.image_io import read_image
from prediction.detector import Detector
from service.labelling.order import appearance, diverse_order, uncertainty
from service.labelling.store import Store
from utils.errors import UserError, warn
from utils.files import write_atomically
from utils.thresholds import Thresholds

LEAST_SCORE = 0.05  # minimum score of a suggestion; the page applies its own threshold
MOST = 100  # maximum number of suggestions per image
REORDER_SECONDS = 5.0  # minimum time between two computations of the order
IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Suggestions:
    """The detections of a model on an image.

    Args:
        model: number of the model, increased with every new model.
        boxes: (N, 4) xyxy pixels of the upright image.
        scores: (N,).
        names: N class names of the model.
        looks: appearance of the image (`order.appearance`).
    """

    model: int
    boxes: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    looks: np.ndarray


class Suggester:
    """Runs a detector on unlabelled images in a thread, and orders them by uncertainty.

    Args:
        store: the images.
        detector: the first detector.
        name: its name, shown to the user.
    """

    def __init__(self, store: Store, detector: Detector, name: str) -> None:
        self.store, self.detector, self.name = store, detector, name
        self.model = 1
        self.found: dict[int, Suggestions] = {}
        self.renames = _Renames(store.key)
        self._order: list[int] = []
        self._ordered_at, self._ordered_count = 0.0, -1
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed: set[int] = set()
        self._thread = threading.Thread(target=self._work, name="suggestions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def replace(self, detector: Detector, name: str) -> None:
        """Use another detector: all images are processed again, in the current order."""
        with self._lock:
            self.detector, self.name = detector, name
            self.model += 1
            self._failed.clear()
            self._waiting.clear()

    # ---- suggestions

    def of(self, number: int) -> Suggestions | None:
        """The current model's detections on an image, computed now if needed; None if the image cannot be read."""
        found = self.found.get(number)
        if found is None or found.model != self.model:
            found = self._look(number)
        return found

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The suggestions for an image as plain types, with the user's names of the model's classes."""
        found = self.of(number)
        if found is None:
            return []
        rows = []
        for box, score, name in zip(found.boxes.tolist(), found.scores.tolist(), found.names, strict=True):
            meant = self.renames.get(name)
            if meant != "":
                rows.append({"class_name": meant or name, "model_class": name, "score": round(score, 4), "box": box})
        return rows

    def _look(self, number: int) -> Suggestions | None:
        with self._lock:
            detector, model = self.detector, self.model
        try:
            image = read_image(self.store.paths[number])
            found = detector.detect_batch([image], Thresholds(LEAST_SCORE, max_detections=MOST))[0]
        except UserError:
            self._failed.add(number)
            return None
        names = tuple(detector.config.class_names[label] for label in found.labels.tolist())
        result = Suggestions(model, found.boxes, found.scores, names, appearance(image))
        with self._lock:
            if model == self.model:
                self.found[number] = result
        return result

    # ---- the order

    @property
    def progress(self) -> tuple[int, int]:
        """Number of unlabelled images processed by the current model, and of all unlabelled images."""
        todo = [number for number in range(len(self.store.paths)) if number not in self.store.labelled]
        return sum(self._is_seen(number) for number in todo), len(todo)

    def order(self) -> list[int]:
        """Unlabelled images, the most useful first; images without detections yet are last, by name."""
        labelled = self.store.labelled
        listed = [number for number in self._order if number not in labelled]
        there = set(listed)
        return listed + [n for n in self.store.by_name() if n not in there and n not in labelled]

    def _work(self) -> None:
        while not self._stop.is_set():
            number = None
            try:
                number = self._next()
                if number is None:
                    self._reorder()
                    self._stop.wait(IDLE_SECONDS)
                    continue
                self._look(number)
                if time.monotonic() - self._ordered_at > REORDER_SECONDS:
                    self._reorder()
            except Exception as error:  # noqa: BLE001 -- one image must not end the thread
                warn("suggestions", f"{type(error).__name__}: {str(error)[:200]}", "this image gets no suggestions")
                if number is not None:
                    self._failed.add(number)

    def _next(self) -> int | None:
        """The next image to process; after a change of the model, in the order in which they are shown."""
        for refill in (False, True):
            if refill:
                self._waiting.extend(number for number in self.order() if not self._is_seen(number))
            while self._waiting:
                number = self._waiting.popleft()
                if number not in self.store.labelled and not self._is_seen(number):
                    return number
        return None

    def _is_seen(self, number: int) -> bool:
        found = self.found.get(number)
        return number in self._failed or (found is not None and found.model == self.model)

    def _reorder(self) -> None:
        with self._lock:
            known = dict(self.found)
        labelled = set(self.store.labelled)  # a copy: saves change it meanwhile
        todo = [number for number in known if number not in labelled]
        state = hash((self.model, len(known), len(todo)))
        if state == self._ordered_count:
            return
        if todo:
            doubt = np.array([uncertainty(known[number].scores) for number in todo], np.float32)
            looks = np.stack([known[number].looks for number in todo])
            done = [known[number].looks for number in labelled if number in known]
            seen = np.stack(done) if done else np.zeros((0, looks.shape[1]), np.float32)
            self._order = [todo[place] for place in diverse_order(doubt, looks, seen)]
        self._ordered_at, self._ordered_count = time.monotonic(), state


class _Renames:
    """The user's names of the model's classes, stored in the user's cache folder."""

    def __init__(self, key: str) -> None:
        self._path = cache_folder() / "labelling" / f"{key}.json"
        self._names: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(self._path.read_bytes())
            self._names = {str(old): str(new) for old, new in read.items()}

    def get(self, name: str) -> str | None:
        """The user's name of a class; empty if it is not suggested; None if it was not renamed."""
        return self._names.get(name)

    def set(self, name: str, meant: str) -> None:
        self._names[name] = meant
        with contextlib.suppress(OSError, UserError):  # only a convenience
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._names, ensure_ascii=False).encode())

    def to_dict(self) -> dict[str, str]:
        return dict(self._names)
