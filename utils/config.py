"""Command-line options from a frozen dataclass; each value has an origin: default, preset, config file or typed."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from utils.errors import UserError, brief, warn
from utils.json_file import read_json
from utils.other_words import choice_hint, option_hint, value_hint
from utils.text import counted, text_table

Options = TypeVar("Options")

CONFIG_SIZE_LIMIT = 1 << 20  # bytes; a configuration is a page of text
HUGE = 1e300  # upper limit of numbers; larger ones may not fit in a float
ORIGINS, REASONS, ASKED = "_origins", "_reasons", "_asked"  # keys of a run's config.json
# origins of a value, lowest priority first; `preset`, `config` and `checkpoint` are followed by a name
DEFAULT, AUTO, CHECKPOINT, PRESET, CONFIG, TYPED = "default", "auto", "checkpoint", "preset", "config", "typed"
_RANKS = {DEFAULT: 0, AUTO: 0, CHECKPOINT: 0, PRESET: 1, CONFIG: 2, TYPED: 3}


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    zero: bool = False,
    nargs: str | int | None = None,
    positional: bool = False,
    metavar: str | tuple[str, ...] | None = None,
    common: bool = False,
    old: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: the value if neither command line nor config file sets the option.
        help: what the option does, with its unit and special values.
        choices: the allowed values.
        low, high: the allowed range, both ends included. `above`: a lower end that is not included. `zero`: 0 is
            allowed, too.
        nargs, positional, metavar: as in argparse.
        common: shown by --help; a command with common options shows the others only with --help-all.
        old: an earlier name, accepted with a warning.
    """
    metadata = dict(locals())
    del metadata["default"]
    return field(default=default, metadata=metadata)


def group(cls: type, title: str) -> Any:
    """A dataclass field that holds a dataclass of options, shown in the help as one group with the title `title`."""
    return field(default_factory=cls, metadata={"group": title})


@dataclass(frozen=True)
class Leaf:
    """One option of a dataclass of options or of its groups.

    Args:
        name: name of the field, also of the option on the command line and in files; unique among all groups.
        path: attribute names from the dataclass to the value.
        hint: the type annotation.
        field: the dataclass field, with the metadata of `option`.
        title: title of the group; empty outside groups.
    """

    name: str
    path: tuple[str, ...]
    hint: Any
    field: Any
    title: str


_known_leaves: dict[type, dict[str, Leaf]] = {}


def leaves(cls: type) -> dict[str, Leaf]:
    """All options of a dataclass by name, including those of its groups.

    Raises:
        TypeError: if two groups have an option with the same name, or a field is not an option.
    """
    if cls in _known_leaves:
        return _known_leaves[cls]
    found: dict[str, Leaf] = {}
    for leaf in _walk(cls, (), ""):
        if leaf.name in found:
            raise TypeError(f"{cls.__name__}: two options are called {leaf.name}")
        if "help" not in leaf.field.metadata:
            raise TypeError(f"{cls.__name__}: {leaf.name} is not declared with option() or group()")
        found[leaf.name] = leaf
    _known_leaves[cls] = found
    return found


def _walk(cls: type, path: tuple[str, ...], title: str) -> Iterator[Leaf]:
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if "group" in each.metadata:
            yield from _walk(hints[each.name], (*path, each.name), each.metadata["group"])
        else:
            yield Leaf(each.name, (*path, each.name), hints[each.name], each, title)


def get_option(options: Any, name: str) -> Any:
    """The value of an option, in any group."""
    return functools.reduce(getattr, leaves(type(options))[name].path, options)


def replace_options(options: Options, values: Mapping[str, Any]) -> Options:
    """A copy with some options changed, by name, in any group; values are not checked."""
    for name, value in values.items():
        options = _replace(options, leaves(type(options))[name].path, value)
    return options


def _replace(options: Any, path: tuple[str, ...], value: Any) -> Any:
    if len(path) > 1:
        value = _replace(getattr(options, path[0]), path[1:], value)
    return dataclasses.replace(options, **{path[0]: value})


def options_to_dict(options: Any) -> dict[str, Any]:
    """All options by name as plain JSON values, without their groups."""
    return {name: _plain(get_option(options, name)) for name in leaves(type(options))}


def typed_form(name: str, value: Any) -> str:
    """An option and its value as they are typed: `--scale 0.5 1.5`, `--no-ema`."""
    if isinstance(value, bool):
        return flag(name) if value else "--no-" + name.replace("_", "-")
    values = value if isinstance(value, (tuple, list)) else [value]
    return " ".join([flag(name), *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])


def flag(name: str) -> str:
    """The command-line form of an option's name."""
    return "--" + name.replace("_", "-")


# ---- values and their origins


@dataclass(frozen=True)
class Settings(Generic[Options]):
    """Options with the origin of each value.

    Args:
        options: the dataclass.
        origins: by option: `default`, `auto`, `typed`, or `preset`, `config` or `checkpoint` followed by its name.
        reasons: by option: why an automatic value was chosen.
        asked: by option that the user gave: [value, origin], as plain JSON values; kept when `choose` replaces the
            value, so that a run can be started again from what the user asked for.
    """

    options: Options
    origins: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Options) -> Settings[Options]:
        """Settings from an options object: values that differ from the default count as typed."""
        values, usual = options_to_dict(options), options_to_dict(type(options)())
        return cls(options, {name: DEFAULT if value == usual[name] else TYPED for name, value in values.items()})

    def rank(self, name: str) -> int:
        """Priority of the origin: 3 typed, 2 config file, 1 preset, 0 default or chosen automatically."""
        return _RANKS[self.origins[name].split()[0]]

    def is_given(self, *names: str) -> bool:
        """Whether the user gave one of these options, typed, by a config file or by a preset."""
        return any(self.rank(name) > 0 for name in names)

    def choose(self, origin: str, values: Mapping[str, Any], reasons: Mapping[str, str] | None = None) -> Settings:
        """A copy with new values and their origin, whatever the current origin."""
        origins = {**self.origins, **dict.fromkeys(values, origin)}
        kept = {name: why for name, why in self.reasons.items() if name not in values}
        return Settings(replace_options(self.options, values), origins, {**kept, **(reasons or {})}, self.asked)

    def with_asked(self) -> Settings:
        """A copy that remembers the present values of the given options as asked for."""
        values = options_to_dict(self.options)
        asked = {name: [values[name], origin] for name, origin in self.origins.items() if self.is_given(name)}
        return dataclasses.replace(self, asked=asked)

    def only_asked(self) -> Settings:
        """Settings of what was asked for; every other option has its default again."""
        values = {name: value for name, (value, _) in self.asked.items()}
        origins = dict.fromkeys(self.origins, DEFAULT) | {name: origin for name, (_, origin) in self.asked.items()}
        return Settings(check_options(type(self.options), values), origins, {}, self.asked)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json: each option's value; origins, reasons and what was asked for as comment keys."""
        extra = {ORIGINS: dict(self.origins), REASONS: dict(self.reasons), ASKED: dict(self.asked)}
        return options_to_dict(self.options) | extra

    def table(self, everything: bool = True) -> str:
        """One line per option, by group: name, value, origin and reason; defaults only with `everything`."""
        known = leaves(type(self.options)).values()
        shown = [leaf for leaf in known if everything or self.origins[leaf.name] != DEFAULT]
        cells = [
            (flag(name), _words(get_option(self.options, name)), self.origins[name], self.reasons.get(name, ""))
            for name in (leaf.name for leaf in shown)
        ]
        lines: list[str] = []
        title = ""
        for leaf, line in zip(shown, text_table(cells, left=4), strict=True):
            if everything and leaf.title != title:
                title = leaf.title
                lines.append(f"{title}:")
            lines.append(f"  {line}")
        return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


# ---- reading


_KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        where, what = "command line", message
        if message.startswith("argument "):
            where, _, what = message.removeprefix("argument ").partition(": ")
            where = where.split("/")[-1]
        hint = ""
        if message.startswith("unrecognized arguments: "):
            words = message.removeprefix("unrecognized arguments: ").split()
            typed = next((word for word in words if word.startswith("-")), words[0])
            hint = option_hint(typed, self._option_string_actions)
            where, what = typed, "unknown option" if typed.startswith("-") else "not expected here"
        elif match := re.match(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", what):
            hint = value_hint(match[1], re.findall(r"[\w.-]+", match[2]))
        elif match := re.match(r"invalid (int|float) value: (.*)", what):
            what = f"{match[2][:80]} is not {_KINDS[match[1]]}"
        separator = "" if hint.endswith("?") or not hint else ";"
        raise UserError(where, what, f"{hint}{separator} see {self.prog} --help".strip())


class _ShowHelp(argparse.Action):
    """Print the help of the parser that `make` returns, and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, make: Any, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.make = make

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        self.make().print_help()
        parser.exit()


def parse_settings(
    cls: type[Options],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    prog: str | None = None,
    presets: Path | None = None,
    example: str | None = None,
) -> Settings[Options]:
    """Read a command line into `cls`, with the origin of each value; a typed default also counts as typed.

    Args:
        cls: a frozen dataclass whose fields come from `option` or `group`.
        argv: the arguments; None uses those of the process.
        description: the script's description, shown by --help.
        presets: a folder of NAME.json files that `--preset NAME` may name (as `--config` does by path).
        example: a command line to show at the end of --help.

    Raises:
        UserError: for an unknown option, a value of the wrong type or outside its range, an unreadable config file.
    """
    parser = _build_parser(cls, description, prog, presets, example, show_all=True)
    typed = _new_names(cls, vars(parser.parse_intermixed_args(argv)), "command line")
    typed.pop("debug", None)
    _refuse_assignments(cls, typed, parser.prog)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(leaves(cls), DEFAULT)
    preset = typed.pop("preset", None)
    config = typed.pop("config", None)
    files = [] if config is None else [(CONFIG, config, Path(config))]
    if preset is not None and presets is not None:
        if preset not in (names := _presets(presets)):
            raise UserError("--preset", f"no preset {preset!r}", choice_hint(preset, names))
        files.insert(0, (PRESET, preset, presets / f"{preset}.json"))
    for kind, name, path in files:
        given = _known(cls, read_config(path), name)
        values |= given
        origins |= dict.fromkeys(given, f"{kind} {name}")
    values |= typed  # argparse.SUPPRESS omits options that were not typed
    origins |= dict.fromkeys(typed, TYPED)
    return Settings(check_options(cls, values), origins)


def parse_options(cls: type[Options], argv: Sequence[str] | None = None, **texts: Any) -> Options:
    """`parse_settings` without the origins."""
    return parse_settings(cls, argv, **texts).options


def _refuse_assignments(cls: type, typed: Mapping[str, Any], prog: str) -> None:
    """Refuse `source=photo.jpg` of other tools where a file is expected."""
    for leaf in leaves(cls).values():
        given = typed.get(leaf.name, ()) if leaf.field.metadata["positional"] else ()
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str) and re.match("[a-z][a-z_-]*=.", value) and not os.path.lexists(value):
                hint = option_hint(value, map(flag, leaves(cls))) or f"see {prog} --help"
                raise UserError(value, "options are typed as --NAME VALUE", hint)


def check_options(cls: type[Options], values: Mapping[str, Any]) -> Options:
    """Build `cls` from plain values (for example from JSON) and check their types and ranges.

    Raises:
        UserError: naming the option, its value and what is allowed.
    """
    known = leaves(cls)
    checked = {name: _check(known[name], value) for name, value in values.items() if name in known}
    return _build(cls, checked)


def _build(cls: type[Options], values: Mapping[str, Any]) -> Options:
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        if "group" in each.metadata:
            given[each.name] = _build(hints[each.name], values)
        elif each.name in values:
            given[each.name] = values[each.name]
    try:
        return cls(**given)
    except UserError:
        raise
    except ValueError as error:  # an invalid combination of values
        name, _, what = str(error).partition(": ")
        raise UserError(flag(name), what, "see --help-all") from error


def check_fields(options: Any) -> None:
    """Check the type and range of each option of a dataclass that was made in Python. Raises ValueError naming it."""
    for each in dataclasses.fields(options):
        leaf = Leaf(each.name, (each.name,), typing.get_type_hints(type(options))[each.name], each, "")
        try:
            object.__setattr__(options, each.name, _check(leaf, getattr(options, each.name)))
        except UserError as error:
            raise ValueError(f"{each.name}: {error.what}; {error.todo}") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Keys starting with an underscore are comments."""
    return {name: value for name, value in read_json_object(path).items() if not name.startswith("_")}


def read_settings(cls: type[Options], path: Path) -> Settings[Options]:
    """Read a file written from `Settings.to_dict`. Values without an origin count as typed."""
    content = read_json_object(path)
    values = _known(cls, {name: value for name, value in content.items() if not name.startswith("_")}, path)
    origins = dict.fromkeys(leaves(cls), DEFAULT) | dict.fromkeys(values, TYPED)
    reasons: dict[str, str] = {}
    for key, into in ((ORIGINS, origins), (REASONS, reasons)):
        said = content.get(key, {})
        if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
            raise UserError(path, f"{key} is not a table of texts", "restore the file as the run wrote it")
        into |= {name: text for name, text in said.items() if name in values}
    asked = content.get(ASKED, {})
    if not isinstance(asked, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in asked.values()):
        raise UserError(path, f"{ASKED} is not a table of values and origins", "restore the file as the run wrote it")
    asked = {name: pair for name, pair in asked.items() if name in origins}
    used = [*origins.values(), *(origin for _, origin in asked.values())]
    if unknown := [text for text in used if not isinstance(text, str) or text.split(" ")[0] not in _RANKS]:
        raise UserError(path, f"{unknown[0]!r} is not a known origin", f"use one of {', '.join(_RANKS)}")
    return Settings(check_options(cls, values), origins, reasons, asked)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most a megabyte. Raises UserError naming file and line."""
    values = read_json(path, "a JSON file of options", CONFIG_SIZE_LIMIT)
    if not isinstance(values, dict):
        raise UserError(path, "must contain one JSON object of options", "see the files in model_data/")
    return values


def _known(cls: type, values: dict[str, Any], where: object) -> dict[str, Any]:
    """The values under their current names. Raises UserError for an unknown option."""
    values = _new_names(cls, values, where)
    for name in values:
        if name not in leaves(cls):
            hint = option_hint(name, map(flag, leaves(cls)))
            raise UserError(where, f"unknown option {name!r}", hint or f"known: {', '.join(sorted(leaves(cls)))}")
    return values


def _new_names(cls: type, values: dict[str, Any], where: object) -> dict[str, Any]:
    old = {leaf.field.metadata["old"]: name for name, leaf in leaves(cls).items() if leaf.field.metadata["old"]}
    renamed = {}
    for name, value in values.items():
        if name in old:
            warn(where, f"{flag(name)} is now called {flag(old[name])}", "use the new name")
        renamed[old.get(name, name)] = value
    return renamed


def _presets(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.json"))


def _build_parser(
    cls: type, description: str, prog: str | None, presets: Path | None, example: str | None, show_all: bool
) -> _Parser:
    known = leaves(cls).values()
    has_short = any(leaf.field.metadata["common"] for leaf in known)
    epilog = None if example is None else f"example: {example}"
    parser = _Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False, add_help=False)
    places = [(leaf.field.metadata["metavar"] or leaf.name, leaf.field.metadata["nargs"]) for leaf in known
              if leaf.field.metadata["positional"]]  # fmt: skip
    parser.usage = " ".join(["%(prog)s [options]", *(f"[{name} ...]" if nargs else name for name, nargs in places)])
    make = functools.partial(_build_parser, cls, description, prog or parser.prog, presets, example)
    groups: dict[str, Any] = {"": parser}
    if presets is not None:
        text = f"preset of options: {', '.join(_presets(presets))}"
        groups[""].add_argument("--preset", metavar="NAME", help=text)
    for leaf in known:
        if leaf.title not in groups:
            groups[leaf.title] = parser.add_argument_group(leaf.title)
        _add(groups[leaf.title], leaf, hidden=has_short and not show_all and not leaf.field.metadata["common"])
        if old := leaf.field.metadata["old"]:
            _add(parser, dataclasses.replace(leaf, name=old), hidden=True)
    config_help = "JSON file with option values; options on the command line take precedence"
    parser.add_argument("--config", metavar="FILE.json", help=config_help)
    parser.add_argument("--debug", action="store_true", help="show a traceback for errors")
    short = functools.partial(make, show_all=not has_short)
    parser.add_argument("-h", "--help", action=_ShowHelp, make=short, help="show this help and exit")
    if has_short:
        every = functools.partial(make, show_all=True)
        parser.add_argument("--help-all", action=_ShowHelp, make=every, help="show all options and exit")
    return parser


def _inner(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the option holds several."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _add(parser: Any, leaf: Leaf, hidden: bool) -> None:
    kind, several = _inner(leaf.hint)
    meta, default = leaf.field.metadata, leaf.field.default
    text = meta["help"].replace("%", "%%")
    if default is not None and default != () and not meta["positional"]:
        text += f" (default: {_words(default)})".replace("%", "%%")
    settings: dict[str, Any] = {"help": argparse.SUPPRESS if hidden else text, "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(flag(leaf.name), action=argparse.BooleanOptionalAction, **settings)
        return
    settings |= {"type": kind, "choices": meta["choices"], "metavar": meta["metavar"] or _metavar(kind, meta)}
    if several or meta["nargs"]:
        settings["nargs"] = meta["nargs"] or "+"
    if meta["positional"]:
        settings["metavar"] = meta["metavar"]
    parser.add_argument(leaf.name if meta["positional"] else flag(leaf.name), **settings)


def _metavar(kind: Any, meta: Mapping[str, Any]) -> str | None:
    """Placeholder of the value in the help: its type instead of the option's name."""
    return None if meta["choices"] else {int: "N", float: "X"}.get(kind)


def _check(leaf: Leaf, value: Any) -> Any:
    kind, several = _inner(leaf.hint)
    meta = leaf.field.metadata
    name = leaf.name if meta["positional"] else flag(leaf.name)
    if value is None:
        if type(None) in typing.get_args(leaf.hint):
            return None
        raise UserError(name, "has no value", f"give {_KINDS[kind.__name__]}")
    if several:
        if not isinstance(value, (list, tuple)):
            value = [value]
        count = meta["nargs"]
        if isinstance(count, int) and len(value) != count:
            raise UserError(name, counted(len(value), "value"), f"give {count}")
        if kind is str:  # thresholds and classes may be numbers in a file of options
            value = [str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v for v in value]
        return tuple(_check_one(name, meta, kind, v) for v in value)
    return _check_one(name, meta, kind, value)


def _check_one(name: str, meta: Any, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < HUGE else (math.inf if value > 0 else -math.inf)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        wanted = _KINDS[kind.__name__]
        raise UserError(name, f"{brief(value)} is not {wanted}", f"give {wanted}")
    if kind is str and "\0" in value:
        raise UserError(name, f"{brief(value)} contains a zero byte", "remove it")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise UserError(name, f"{brief(value)} is not known", choice_hint(value, meta["choices"]))
    if kind in (int, float):
        low, high, above = meta["low"], meta["high"], meta["above"]
        fits = abs(value) < HUGE and (low is None or value >= low) and (high is None or value <= high)
        if (not fits or (above is not None and value <= above)) and not (meta["zero"] and value == 0):
            bounds = [f"{'0 or ' * meta['zero']}at least {low:g}"] if low is not None else []
            bounds += [f"above {above:g}"] if above is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            shown = str(value) if abs(value) < HUGE or kind is float else "a number of many digits"
            raise UserError(name, f"{shown} is out of range", f"it must be {' and '.join(bounds) or 'a finite number'}")
    return value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
