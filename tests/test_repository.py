"""The repository: trees, presets and options agree with the documentation."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.config import option, parse_options
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


ROOMS = ("nets", "utils", "imaging", "data", "evaluation", "prediction", "training", "service", "benchmarks", "scripts")
SOURCES = [*(p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))), *ROOT.glob("*.py")]


def test_nothing_of_a_copyleft_project_is_imported() -> None:
    banned = {"ultralytics", "albumentationsx", "lightly_train", "mmyolo", "yolov5"}
    for path in SOURCES:
        assert not imported(path) & banned, path


def test_every_module_has_a_one_sentence_docstring() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_trees_of_readme_and_architecture_are_current() -> None:
    from scripts.readme_tree import pages

    behind = [path.name for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert not behind, "run: python scripts/readme_tree.py"


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", sorted((ROOT / "model_data" / "presets").glob("*.json")), ids=lambda p: p.stem)
def test_every_preset_is_made_of_options_that_exist(path: Path) -> None:
    from training.options import PRESETS, TrainOptions

    assert json.loads(path.read_text())["_about"]
    options = parse_options(TrainOptions, ["--preset", path.stem], description="", presets=PRESETS)
    assert isinstance(options, TrainOptions)


@dataclass(frozen=True)
class Options:
    rate: float = option(0.5, "a rate", above=0, high=1)
    count: int = option(3, "a count", low=1)
    size: tuple[int, ...] = option((4,), "a size", nargs="+")
    name: str | None = option(None, "a name", choices=("a", "b"))
    flag: bool = option(True, "a flag")


def parse(*argv: str) -> Options:
    return parse_options(Options, list(argv), description="a test")


def test_defaults_then_the_file_then_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"_note": "x", "rate": 0.25, "count": 7}')
    assert parse() == Options()
    assert parse("--config", str(file), "--count", "9", "--no-flag") == Options(rate=0.25, count=9, flag=False)


@pytest.mark.parametrize(
    ("argv", "where", "what"),
    [
        (["--rate", "0"], "--rate", "0"),
        (["--rate", "nan"], "--rate", "nan"),
        (["--count", "0"], "--count", "0"),
        (["--count", "x"], "--count", "x"),
        (["--name", "c"], "--name", "c"),
        (["--nmae", "a"], "--nmae", "--name"),
    ],
)
def test_a_bad_option_is_named_with_its_value(argv: list[str], where: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert caught.value.where == where and what in str(caught.value)


@pytest.mark.parametrize("text", ['{"rat": 1}', '{"rate": "x"}', "[1]", "{", '{"count": true}', '{"rate": 2}'])
def test_a_bad_config_file_is_a_one_line_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("--config", str(file))
    assert "\n" not in str(caught.value)
