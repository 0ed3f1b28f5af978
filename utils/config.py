"""A frozen dataclass becomes a command line: defaults, then `--config FILE`, then what is typed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from utils.errors import UserError
from utils.files import FileError, read_file

Options = TypeVar("Options")

CONFIG_SIZE_LIMIT = 1 << 20  # bytes; a configuration is a page of text
HUGE = 1e300  # nothing is so large; a number beyond may not even be a float


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    nargs: str | int | None = None,
    positional: bool = False,
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: used where neither command line nor config file says otherwise.
        help: what it does, with the unit and the special values.
        choices: the allowed values.
        low, high: the allowed range, both ends included. `above`: a lower end that is not included.
        nargs, positional, metavar: as argparse's.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "low": low,
            "high": high,
            "above": above,
            "nargs": nargs,
            "positional": positional,
            "metavar": metavar,
        },
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        where, what = "command line", message
        if message.startswith("argument "):
            where, _, what = message.removeprefix("argument ").partition(": ")
            where = where.split("/")[-1]
        raise UserError(where, what, f"see {self.prog} --help")


def parse_options(
    cls: type[Options],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    prog: str | None = None,
    presets: Path | None = None,
) -> Options:
    """Read a command line into `cls`.

    Args:
        cls: a frozen dataclass whose fields come from `option`.
        argv: the arguments; None takes the process's.
        description: the script's sentence, shown by --help.
        presets: a folder of NAME.json files that `--preset NAME` may name (as `--config` does by path).

    Raises:
        UserError: for an unknown option, a value of the wrong type or outside its range, an unreadable config file.
    """
    values = given_options(cls, argv, description=description, prog=prog, presets=presets)
    return check_options(cls, values)


def given_options(
    cls: type[Options],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    prog: str | None = None,
    presets: Path | None = None,
) -> dict[str, Any]:
    """The options that the user gave, typed or by a file, by name, not checked yet; arguments as of `parse_options`."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        _add(parser, field, hints[field.name])
    parser.add_argument("--config", metavar="FILE.json", help="take defaults from this file; the command line wins")
    if presets is not None:
        parser.add_argument("--preset", metavar="NAME", help=f"a named recipe: {', '.join(_presets(presets))}")
    parser.add_argument("--debug", action="store_true", help="show a traceback when something fails")
    typed = vars(parser.parse_intermixed_args(argv))
    typed.pop("debug", None)
    values: dict[str, Any] = {}
    preset = typed.pop("preset", None)
    config = typed.pop("config", None)
    if preset is not None and presets is not None:
        if preset not in _presets(presets):
            raise UserError("--preset", f"no preset {preset!r}", f"choose from {', '.join(_presets(presets))}")
        values |= read_config(presets / f"{preset}.json")
    if config is not None:
        values |= read_config(Path(config))
    values |= typed  # argparse.SUPPRESS leaves out what was not typed
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(config or preset, f"unknown option {name!r}", f"known: {', '.join(sorted(known))}")
    return values


def check_options(cls: type[Options], values: dict[str, Any]) -> Options:
    """Build `cls` from plain values (of JSON, say), with each value's type and range checked."""
    hints = typing.get_type_hints(cls)
    checked = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in values:
            checked[field.name] = _check(field, hints[field.name], values[field.name])
    return cls(**checked)


def changed_options(options: Any) -> dict[str, Any]:
    """All fields as plain JSON values."""
    return {f.name: _plain(getattr(options, f.name)) for f in dataclasses.fields(options)}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Keys starting with an underscore are comments."""
    try:
        values = json.loads(read_file(path, CONFIG_SIZE_LIMIT).decode("utf-8-sig"))
    except FileError as error:
        raise UserError(path, f"cannot be read: it {error.what}", "give a JSON file of options") from error
    except UnicodeDecodeError as error:
        raise UserError(path, "cannot be read: it is not UTF-8 text", "give a JSON file of options") from error
    except (ValueError, RecursionError) as error:  # not JSON, or a number of thousands of digits
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}", f"not JSON: {getattr(error, 'msg', error)}", "correct the file") from error
    if not isinstance(values, dict):
        raise UserError(path, "must hold one JSON object of options", "see the files in model_data/")
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _presets(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.json"))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _inner(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the option holds several."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _add(parser: argparse.ArgumentParser, field: Any, hint: Any) -> None:
    kind, several = _inner(hint)
    meta = field.metadata
    text = meta["help"].replace("%", "%%")
    if field.default is not None and field.default != () and not meta["positional"]:
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})".replace("%", "%%")
    settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, **settings)
        return
    settings |= {"type": kind, "choices": meta["choices"], "metavar": meta["metavar"]}
    if several or meta["nargs"]:
        settings["nargs"] = meta["nargs"] or "+"
    if meta["positional"]:
        parser.add_argument(field.name, **settings)
    else:
        parser.add_argument(_flag(field.name), **settings)


def _check(field: Any, hint: Any, value: Any) -> Any:
    kind, several = _inner(hint)
    flag = field.name if field.metadata["positional"] else _flag(field.name)
    if value is None:
        if field.default is None:
            return None
        raise UserError(flag, "has no value", f"give a {kind.__name__}")
    if several:
        if not isinstance(value, (list, tuple)):
            value = [value]
        count = field.metadata["nargs"]
        if isinstance(count, int) and len(value) != count:
            raise UserError(flag, f"{len(value)} values", f"give {count}")
        return tuple(_check_one(flag, field.metadata, kind, v) for v in value)
    return _check_one(flag, field.metadata, kind, value)


def _check_one(flag: str, meta: Any, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < HUGE else (math.inf if value > 0 else -math.inf)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(flag, f"{value!r} is not a {kind.__name__}", f"give a {kind.__name__}")
    if kind is str and "\0" in value:
        raise UserError(flag, f"{value!r} holds a zero byte", "give a name without")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise UserError(flag, f"{value!r} is not known", f"choose from {', '.join(map(str, meta['choices']))}")
    if kind in (int, float):
        low, high, above = meta["low"], meta["high"], meta["above"]
        fits = abs(value) < HUGE and (low is None or value >= low) and (high is None or value <= high)
        if not fits or (above is not None and value <= above):
            bounds = [f"at least {low:g}"] if low is not None else []
            bounds += [f"above {above:g}"] if above is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            shown = str(value) if abs(value) < HUGE or kind is float else "a number of many digits"
            raise UserError(flag, f"{shown} is out of range", f"it must be {' and '.join(bounds) or 'a finite number'}")
    return value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
