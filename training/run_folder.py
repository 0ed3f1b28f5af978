"""A run's folder: configuration, figures, curves."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, warn
from utils.files import write_atomically

RUNS = Path("logs")
LEFTOVERS = ".*.tmp"  # temporary files of a process that was killed in the middle of writing
SCORE = "voc10_mAP50"  # the column that the curves mark the best of
_locks: set[int] = set()


def new_run_dir(path: str | None, name: str) -> Path:
    """Make a run's folder: `path`, which must not hold a run yet, or the first free logs/NAME-N.

    Raises:
        UserError: if `path` exists and is not empty, or cannot be made.
    """
    check_run_dir(path)
    folder = Path(path) if path is not None else RUNS / f"{name}-1"
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=path is not None)
            return folder
        except FileExistsError:  # also of a run that started at the same moment
            if path is not None:
                raise UserError("--run-dir", f"{folder} is not a folder", "choose another folder") from None
            number += 1
            folder = RUNS / f"{name}-{number}"
        except OSError as error:
            what = f"{folder} cannot be made: {error.strerror}"
            raise UserError("--run-dir", what, "choose another folder") from error


def check_run_dir(path: str | None) -> None:
    """Refuse a folder for a new run that holds something, without making it. Raises UserError."""
    folder = Path(path or RUNS)
    if path is None or not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError("--run-dir", f"{folder} is not a folder", "choose another")
    if any(not each.match(LEFTOVERS) for each in folder.iterdir()):
        raise UserError("--run-dir", f"{folder} exists and is not empty", f"choose another, or --resume {folder}")


def lock_run(folder: Path) -> None:
    """Hold a run's folder for this process for as long as it lives; a no-op where the system cannot lock folders.

    Raises:
        UserError: if another process trains in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    unlock_runs()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(folder, "another process is training in it", "wait for it, or end it first") from error
    except OSError:  # some network drives
        os.close(descriptor)
        return
    _locks.add(descriptor)


def unlock_runs() -> None:
    """Let go of the folders that this process holds; loader workers do so as soon as they are forked."""
    while _locks:
        os.close(_locks.pop())


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed has left half written."""
    for path in folder.glob(LEFTOVERS):
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """One row an epoch. It is rewritten whole from the run's state, so that it never disagrees with the checkpoint."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue().encode())


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Losses of training and validation, scores with the best epoch marked, and learning rate by epoch, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed
    losses, scores, rates = figure.subplots(1, 3, sharex=True)
    names = [name.removeprefix("train_") for name in _columns(history) if name.startswith("train_")]
    for number, name in enumerate(names):
        colour = f"C{number}"
        _plot(losses, history, f"train_{name}", f"{name}, training", color=colour)
        _plot(losses, history, f"val_{name}", f"{name}, validation", color=colour, linestyle="--")
    _plot(scores, history, SCORE, "mAP50 (VOC 2010)", color="tab:blue", linewidth=2)
    _plot(scores, history, "coco_AP", "AP (COCO)", color="tab:orange")
    scored = [row for row in history if row.get(SCORE) not in (None, "")]
    if scored:
        best = max(scored, key=lambda row: float(row[SCORE]))
        epoch, score = best["epoch"], float(best[SCORE])
        scores.axvline(epoch, color="tab:blue", linestyle=":", linewidth=1)
        scores.plot([epoch], [score], "*", color="tab:blue", markersize=14, label=f"best: {score:.3f}, epoch {epoch}")
        scores.set_ylim(0, max(0.05, 1.1 * score))
    for name in [name for name in _columns(history) if name.startswith("learning_rate")]:
        _plot(rates, history, name, name.removeprefix("learning_rate").lstrip("_ ,") or "all layers")
    for axis, title in ((losses, "losses"), (scores, "validation scores"), (rates, "learning rate")):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    rates.set_ylim(bottom=0)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, format="png")
    write_atomically(path, picture.getvalue())


def _plot(axis: Any, history: Sequence[Mapping[str, Any]], column: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], float(row[column])) for row in history if row.get(column) not in (None, "")]
    if points:
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else None, label=label, **style)


class TensorBoard:
    """Events for TensorBoard; a logger that fails is switched off with one warning and never stops a run."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        except Exception as error:  # noqa: BLE001 -- whatever its reason, logging is not worth the run
            warn("tensorboard", f"cannot be used: {error}", "run goes on without; metrics.csv has the figures")

    def add(self, step: int, **values: float) -> None:
        """Named numbers at a step; a double underscore in a name stands for a slash."""
        self._try(lambda: [self._writer.add_scalar(k.replace("__", "/"), v, step) for k, v in values.items()])

    def close(self) -> None:
        self._try(lambda: self._writer.close())

    def _try(self, action: Any) -> None:
        if self._writer is None:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001
            self._writer = None
            warn("tensorboard", f"stopped: {error}", "the run goes on without")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=unlock_runs)


def _columns(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in history for name in row))
