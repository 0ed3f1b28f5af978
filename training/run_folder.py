"""A run's folder: configuration, metrics and curves."""

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
LEFTOVERS = ".*.tmp"  # temporary files of a process that was killed while writing
SCORE = "voc10_mAP50"  # the column whose maximum is marked in the curves
_locks: set[int] = set()


def new_run_dir(path: str | None, name: str) -> Path:
    """Create a run's folder: `path`, which must be empty or new, or the first free logs/NAME-N.

    Raises:
        UserError: if `path` exists and is not empty, or cannot be created.
    """
    check_run_dir(path)
    folder = Path(path) if path is not None else RUNS / f"{name}-1"
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=path is not None)
            return folder
        except FileExistsError:  # possibly by another run at the same moment
            if path is not None:
                raise UserError("--run-dir", f"{folder} is not a folder", "choose another folder") from None
            number += 1
            folder = RUNS / f"{name}-{number}"
        except OSError as error:
            what = f"{folder} cannot be created: {error.strerror}"
            raise UserError("--run-dir", what, "choose another folder") from error


def check_run_dir(path: str | None) -> None:
    """Check that the folder of a new run is empty or new, without creating it. Raises UserError."""
    folder = Path(path or RUNS)
    if path is None or not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError("--run-dir", f"{folder} is not a folder", "choose another")
    if any(not each.match(LEFTOVERS) for each in folder.iterdir()):
        raise UserError("--run-dir", f"{folder} exists and is not empty", f"choose another, or --resume {folder}")


def lock_run(folder: Path) -> None:
    """Lock a run's folder for the lifetime of this process; does nothing if the system cannot lock folders.

    Raises:
        UserError: if another process is training in it.
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
        raise UserError(folder, "another process is training in it", "wait for it, or stop it first") from error
    except OSError:  # some network drives
        os.close(descriptor)
        return
    _locks.add(descriptor)


def unlock_runs() -> None:
    """Release the locks of this process; loader workers call it directly after the fork."""
    while _locks:
        os.close(_locks.pop())


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes."""
    for path in folder.glob(LEFTOVERS):
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch. The whole file is written from the run's state, so it always matches the checkpoint."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue().encode())


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses, validation scores with the best epoch marked, and the learning rate over epochs, as a PNG."""
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
    """Events for TensorBoard. If logging fails, it is switched off with one warning, and the run continues."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        except Exception as error:  # noqa: BLE001 -- logging must not stop the run
            warn(
                "tensorboard",
                f"cannot be used: {error}",
                "the run continues without it; the metrics are in metrics.csv",
            )

    def add(self, step: int, **values: float) -> None:
        """Log named numbers at a step; a double underscore in a name becomes a slash."""
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
            warn("tensorboard", f"stopped: {error}", "the run continues without it")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=unlock_runs)


def _columns(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in history for name in row))
