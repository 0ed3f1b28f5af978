"""Find a model file by path, by the name of bundled weights, or in a run's folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from nets.export.formats import FORMATS
from nets.model_config import ModelConfig
from utils.errors import MissingFileError, UserError
from utils.text import counted

MODEL_DATA = Path(__file__).resolve().parents[2] / "model_data"
DEFAULTS = ("small", "nano")  # the default model is the first of these that exists
OF_A_RUN = ("best.pth", "last.pth")


def bundled_names() -> list[str]:
    """Names of the weights in model_data/, the default first."""
    names = sorted(path.stem for path in MODEL_DATA.glob("*.pth"))
    return [name for name in DEFAULTS if name in names] + [name for name in names if name not in DEFAULTS]


def find_model(name: str | os.PathLike[str] | None = None, where: object = None) -> Path:
    """Find the model file that `name` refers to.

    Args:
        name: a checkpoint or exported file; the name of bundled weights (`small`, `nano`); the folder of a training
            run (its best.pth, else last.pth) or of one exported file; None for the default weights.
        where: the option to name in an error; None for the file itself.

    Raises:
        MissingFileError: if there is no such file. UserError: for a folder without a model, or with several.
    """
    bundled = bundled_names()
    if name is None:
        if not bundled:
            raise MissingFileError("--checkpoint", "not given, and there are no bundled weights", "give a model file")
        return MODEL_DATA / f"{bundled[0]}.pth"
    path = Path(name)
    if re.match(r"[a-z][a-z0-9+.-]+://", str(name), re.IGNORECASE):
        raise UserError(where or name, f"{name} is an address" if where else "is an address", "download the file first")
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    stem = str(name).removesuffix(".pth")
    if stem in bundled:
        return MODEL_DATA / f"{stem}.pth"
    near = difflib.get_close_matches(stem.lower(), bundled, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give a file, a run's folder, or one of {', '.join(bundled)}"
    raise MissingFileError(where or path, f"{name} does not exist" if where else "does not exist", hint)


def model_names(paths: Sequence[Path]) -> list[str]:
    """A name for each model file, the shortest form in which all differ: `small`, `small.onnx`, `run1/best.pth`.

    Raises:
        UserError: for a file that is given twice.
    """
    forms = (
        [path.stem for path in paths],
        [path.name for path in paths],
        [f"{path.resolve().parent.name}/{path.name}" for path in paths],
        [str(path.resolve()) for path in paths],
    )
    for names in forms:
        if len(set(names)) == len(names):
            return names
    twice = next(path for path in paths if sum(path.resolve() == each.resolve() for each in paths) > 1)
    raise UserError("--checkpoint", f"{twice} is given twice", "name each model once")


def default_model_text(config: ModelConfig) -> str:
    """Message about the default model: its file, classes and input size."""
    names = config.class_names
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    height, width = config.input_size
    return f"no --checkpoint given: {find_model()}, input {height} x {width}, {counted(len(names), 'class')} ({shown})"


def _in_folder(folder: Path) -> Path:
    for name in OF_A_RUN:
        if (folder / name).is_file():
            return folder / name
    suffixes = tuple(each.suffix for each in FORMATS.values() if each.runs)
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(suffixes))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise UserError(folder, f"is a folder with {counted(len(files), 'exported file')} ({names})", "give the file")
    runs = sorted(path.parent.name for path in folder.glob("*/best.pth"))
    todo = f"give a run: {folder / runs[-1]}" if runs else "give the file"
    raise UserError(folder, "is a folder without best.pth or an exported file", todo)
