"""What the detector sees on the pictures that are not labelled yet, found in the background."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
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

LEAST_SCORE = 0.05  # of a suggestion; the page shows those above its own threshold
MOST = 100  # suggestions of a picture
REORDER_SECONDS = 5.0  # between two computations of the order, while pictures come in
IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Suggestions:
    """What a model sees on a picture.

    Args:
        model: number of the model; it grows with every new one.
        boxes: (N, 4) xyxy pixels of the upright picture.
        scores: (N,).
        names: N class names of the model.
        looks: what the picture looks like (`order.appearance`).
    """

    model: int
    boxes: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    looks: np.ndarray


class Suggester:
    """Runs a detector over unlabelled pictures in a thread, and orders them by what it is least sure of.

    Args:
        store: the pictures.
        detector: sees first.
        name: what to call it to the user.
    """

    def __init__(self, store: Store, detector: Detector, name: str) -> None:
        self.store, self.detector, self.name = store, detector, name
        self.model = 1
        self.found: dict[int, Suggestions] = {}
        self.renames = _Renames(store.root)
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
        """Take another detector: everything is looked at again, in the present order."""
        with self._lock:
            self.detector, self.name = detector, name
            self.model += 1
            self._failed.clear()
            self._waiting.clear()

    # ---- suggestions

    def of(self, number: int) -> Suggestions | None:
        """What the present model sees on a picture, now if it has not looked yet; None if it cannot be read."""
        found = self.found.get(number)
        if found is None or found.model != self.model:
            found = self._look(number)
        return found

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The suggestions of a picture as plain types, under the names that the user has given the model's classes."""
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
        """Unlabelled pictures that the present model has seen, and all of them."""
        todo = [number for number in range(len(self.store.paths)) if number not in self.store.labelled]
        return sum(self._is_seen(number) for number in todo), len(todo)

    def order(self) -> list[int]:
        """Unlabelled pictures, the most useful first; those that nobody has looked at yet last, by name."""
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
            except Exception as error:  # noqa: BLE001 -- one picture is not worth the thread
                warn("suggestions", f"{type(error).__name__}: {str(error)[:200]}", "this picture gets none")
                if number is not None:
                    self._failed.add(number)

    def _next(self) -> int | None:
        """The next picture to look at: after a new model, first what would be shown first."""
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
        labelled = self.store.labelled
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
    """What the user calls the classes of the model; kept for the next start in the user's cache folder."""

    def __init__(self, root: Path) -> None:
        key = hashlib.blake2b(os.fsencode(os.path.abspath(root)), digest_size=12).hexdigest()
        self._path = cache_folder() / "labelling" / f"{key}.json"
        self._names: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(self._path.read_bytes())
            self._names = {str(old): str(new) for old, new in read.items()}

    def get(self, name: str) -> str | None:
        """The user's name of a class; empty if it is not to be suggested; None if nothing was said."""
        return self._names.get(name)

    def set(self, name: str, meant: str) -> None:
        self._names[name] = meant
        with contextlib.suppress(OSError, UserError):  # only a convenience
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._names, ensure_ascii=False).encode())

    def to_dict(self) -> dict[str, str]:
        return dict(self._names)
