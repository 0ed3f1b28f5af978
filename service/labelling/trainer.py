"""Train on the labelled images in a separate process, and use the new weights if they are better."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.snapshot import write_snapshot
from data.index import DatasetIndex
from data.tools.hashing import file_hashes, near_duplicate_groups
from imaging.image_io import read_image_size
from service.labelling.store import Store
from utils.errors import RunError, UserError, warn
from utils.files import write_file
from utils.text import counted

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = Path("logs")
VAL_SHARE = 5  # one in this many groups of near-duplicates is used for validation
LEAST_PICTURES = 10  # labelled images with objects needed for automatic training
GROWTH = 1.25  # growth of the number of labelled images that starts the next run
RESULT = "result.json"  # in the folder of a finished run: its entry of the history, and how to continue from it
METRIC = "voc10_mAP50"
POLL_SECONDS = 0.5


@dataclass
class TrainingState:
    """Training state shown on the page.

    Args:
        status: `idle`, `preparing`, `training`, `comparing` or `failed`.
        message: text for the user.
        run: folder of the current or last run.
        pictures: number of training and of validation images.
        rows: rows of its metrics.csv so far.
        history: for each finished run, its score, the score of the previous weights, and which were used.
    """

    status: str = "idle"
    message: str = ""
    run: str = ""
    pictures: tuple[int, int] = (0, 0)
    rows: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


def snapshot_labels(store: Store, folder: Path, trained: set[Path] | None = None) -> tuple[int, int]:
    """Copy the labelled images of a store to a COCO data set with train and val, independent of later labelling.

    Near-duplicates are in the same split, and an image stays in its split in later snapshots, so that the scores of
    successive runs are on nearly the same images.

    Returns:
        Number of training and of validation images.

    Raises:
        UserError: if there are too few images.
    """
    numbers, labels = [], []
    for number in sorted(store.labelled):
        with contextlib.suppress(UserError):
            stored = store.read(number)
            if stored.is_labelled and not stored.problem:
                numbers.append(number)
                labels.append([box for box in stored.labels.boxes if box.class_name in store.class_names])
    names = list(dict.fromkeys(box.class_name for each in labels for box in each))
    if len(numbers) < 2 or not names:
        raise UserError(
            "training",
            f"{counted(len(numbers), 'image is', 'images are')} labelled, {counted(len(names), 'class')}",
            "label more images",
        )
    paths = [store.paths[number] for number in numbers]
    trained = set() if trained is None else trained
    held = _held_back(paths, [bool(each) for each in labels], trained)
    trained.update(path for path, is_held in zip(paths, held.tolist(), strict=True) if not is_held)
    index = DatasetIndex.build(
        name=str(store.root),
        class_names=names,
        paths=paths,
        image_ids=numbers,
        sizes=[read_image_size(path) for path in paths],
        boxes=[np.array([box.box for box in each]).reshape(-1, 4) for each in labels],
        labels=[[names.index(box.class_name) for box in each] for each in labels],
        difficult=[[box.difficult for box in each] for each in labels],
    )
    sides = {"train": [(index, np.flatnonzero(~held))], "val": [(index, np.flatnonzero(held))]}
    counts = write_snapshot(folder, sides)
    return counts["train"], counts["val"]


def _held_back(paths: Sequence[Path], has_objects: Sequence[bool], trained: Collection[Path] = ()) -> np.ndarray:
    """(N,) bool: validation images, at most one in `VAL_SHARE` if the groups of near-duplicates allow it.

    A hash of the name of a group's first image decides, so an image stays in its split when more are labelled. Groups
    with one of the images `trained`, which earlier weights were trained on, are not chosen.
    """
    groups = near_duplicate_groups(file_hashes(paths))
    first: dict[int, str] = {}
    for path, group in zip(paths, groups.tolist(), strict=True):
        first[group] = min(first.get(group, path.name), path.name)
    order = sorted(first, key=lambda group: _hash(first[group]))
    seen = {group for path, group in zip(paths, groups.tolist(), strict=True) if path in trained}
    size = dict(zip(*np.unique(groups, return_counts=True), strict=True))
    chosen: set[int] = set()
    left = -(-len(paths) // VAL_SHARE)
    for group in order:
        if _hash(first[group]) % VAL_SHARE == 0 and group not in seen and size[group] <= left:
            chosen.add(group)
            left -= size[group]
    objects = np.array(has_objects, bool)
    for group in sorted(order, key=lambda group: size[group]):  # both splits need an object
        held = np.isin(groups, list(chosen))
        if objects[held].any():
            break
        if objects[groups == group].any() and objects[~held & (groups != group)].any():
            chosen.add(group)
    held = np.isin(groups, list(chosen))
    if held.all() or not objects[~held].any():
        held[:] = False
        held[np.flatnonzero(objects)[:1]] = True
    return held


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


class LabelTrainer:
    """Starts training runs and monitors them.

    Args:
        store: labelled images.
        checkpoint: the weights to start from and to compare with.
        take: called with the path of better weights.
        minutes: time of one run.
        device: as in train.py.
        extra: more arguments of train.py.
        automatic: start automatically when enough images are labelled, and again when there are many more.
    """

    def __init__(
        self,
        store: Store,
        checkpoint: Path,
        take: Callable[[Path], None],
        minutes: float,
        device: str = "auto",
        extra: Sequence[str] = (),
        automatic: bool = True,
    ) -> None:
        self.store, self.checkpoint, self._take = store, checkpoint, take
        self._given = checkpoint
        self.minutes, self.device, self.extra, self.automatic = minutes, device, tuple(extra), automatic
        self.state = TrainingState()
        self._trained_on = 0
        self._trained: set[Path] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._asked = threading.Event()
        self._cancelled = False
        self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def restore(self) -> None:
        """Continue after a restart: with the best weights of earlier runs on these images from the same checkpoint."""
        rows = _results(str(self.store.root), str(self._given))
        for row in rows:
            self.state.history.append({key: row[key] for key in ("run", "pictures", "score", "before", "taken")})
            self._trained.update(self.store.root / name for name in row["trained"])
            self._trained_on = row["labelled"]
        weights = next((Path(row["run"], "train", "best.pth") for row in reversed(rows) if row["taken"]), None)
        if weights is None:
            return
        try:
            self._take(weights)
        except (UserError, RunError, OSError) as error:
            warn(weights, f"cannot be used ({error})", f"training starts from {self.checkpoint}")
            return
        self.checkpoint = weights
        self.state.message = f"continues with the weights of {weights.parent.parent.name}"

    def start(self) -> None:
        """Train as soon as no other run is active. Raises UserError if nothing is labelled."""
        if len(self.store.labelled) < 2:
            raise UserError(
                "training",
                f"{counted(len(self.store.labelled), 'image is', 'images are')} labelled",
                "label more images",
            )
        self._asked.set()

    def stop(self) -> None:
        """Stop the current run; its weights so far are compared nevertheless."""
        self._cancelled = True
        self._terminate()

    def close(self) -> None:
        self._stop.set()
        self._terminate()
        if self._thread.is_alive():
            self._thread.join(15)

    def _terminate(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            if not (self._asked.is_set() or (self.automatic and self._is_due())):
                continue
            self._asked.clear()
            self._cancelled = False
            try:
                self._train()
            except (UserError, OSError) as error:
                self.state.status, self.state.message = "failed", str(error)
            except Exception as error:  # noqa: BLE001 -- shown on the page; labelling continues
                warn("training", f"{type(error).__name__}: {str(error)[:200]}", "labelling continues")
                self.state.status, self.state.message = "failed", f"{type(error).__name__}: {str(error)[:200]}"

    def _is_due(self) -> bool:
        boxes = list(self.store.counts.boxes.values())
        count = sum(1 for each in boxes if each)
        return self.store.counts.is_complete and count >= max(LEAST_PICTURES, GROWTH * self._trained_on)

    def _train(self) -> None:
        run = _new_folder()
        self._trained_on = sum(1 for each in list(self.store.counts.boxes.values()) if each)
        history = self.state.history
        self.state = TrainingState("preparing", "writing the labelled images", str(run), history=history)
        self.state.pictures = snapshot_labels(self.store, run / "data", self._trained)
        train = run / "train"
        command = ["train.py", "--data", str(run / "data"), "--run-dir", str(train), "--weights", str(self.checkpoint)]
        command += ["--auto", "--minutes", f"{self.minutes:g}", "--device", self.device, *self.extra]
        self.state.status, self.state.message = "training", f"on {counted(self.state.pictures[0], 'training image')}"
        code = self._run(command, run / "train.log", lambda: self._follow(train / "metrics.csv"))
        best = train / "best.pth"
        if self._stop.is_set():
            return
        if not best.is_file():
            log = run / "train.log"
            raise RunError("train.py", f"ended with code {code}: {_last_line(log)}", f"see {log}")
        self.state.status, self.state.message = "comparing", "with the previous weights"
        self._compare(run, best)

    def _compare(self, run: Path, best: Path) -> None:
        new = max((row.get(METRIC) or 0.0 for row in self.state.rows), default=0.0)
        old = self._score(run, self.checkpoint)
        is_better = old is None or new > old
        if is_better:
            self._take(best)
            self.checkpoint = best
        words = "" if old is None else f" (before: {old:.3f})"
        taken = "used" if is_better else "not used"
        row = {"run": str(run), "pictures": self.state.pictures[0], "score": new, "before": old, "taken": is_better}
        self.state.history.append(row)
        trained = [os.path.relpath(path, self.store.root) for path in sorted(self._trained)]
        row = {"data": str(self.store.root), "checkpoint": str(self._given), **row}
        row |= {"labelled": self._trained_on, "trained": trained}
        write_file(run / RESULT, json.dumps(row, indent=1).encode("utf-8", "backslashreplace"))
        self.state.status = "idle"
        self.state.message = f"mAP50 {new:.3f}{words} on {counted(self.state.pictures[1], 'validation image')}: {taken}"

    def _score(self, run: Path, checkpoint: Path) -> float | None:
        """mAP50 of weights on the validation images; None if they have none of the classes."""
        result = run / "before.json"
        command = ["eval.py", "--checkpoint", str(checkpoint), "--data", str(run / "data"), "--split", "val"]
        self._run([*command, "--json", str(result), "--device", self.device, "--no-progress"], run / "eval.log", None)
        try:
            return float(json.loads(result.read_bytes())[METRIC] or 0.0)
        except (OSError, ValueError, KeyError):
            return None

    def _run(self, command: Sequence[str], log: Path, follow: Callable[[], None] | None) -> int:
        script, *arguments = command
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / script), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the service, which then stops this process
            )
            while self._process.poll() is None:
                if follow is not None:
                    follow()
                if self._stop.is_set():
                    self._terminate()
                time.sleep(POLL_SECONDS)
        if follow is not None:
            follow()
        return self._process.returncode

    def _follow(self, metrics: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            rows = list(csv.DictReader(metrics.read_text().splitlines()))
            self.state.rows = [{key: float(value) for key, value in row.items() if value} for row in rows]


def _results(data: str, checkpoint: str) -> list[dict[str, Any]]:
    """The results of the finished runs on a data set from a checkpoint, the oldest first."""
    found = []
    for file in sorted(Path(os.path.abspath(RUNS)).glob(f"label-*/{RESULT}"), key=lambda f: (len(str(f)), str(f))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            row = json.loads(file.read_bytes())
            row["run"] = str(file.parent)
            if (row["data"], row["checkpoint"]) == (data, checkpoint):
                row["trained"], row["labelled"] = [str(name) for name in row["trained"]], int(row["labelled"])
                row = {**row, "score": float(row["score"]), "pictures": int(row["pictures"])}
                found.append({"before": None, "taken": False, **row})
    return found


def _new_folder() -> Path:
    number = 1
    while True:
        folder = Path(os.path.abspath(RUNS / f"label-{number}"))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "no output")[-300:]
    return "no output"
