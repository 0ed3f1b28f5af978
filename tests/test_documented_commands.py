"""Commands in README and docs can be parsed, and those of the README work with the packages of requirements.txt."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from generated_pages import COMMANDS, options_class  # noqa: E402

from training.options import PRESETS  # noqa: E402
from utils.config import parse_options  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "model_data" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = {"EXPERIMENTS.md", "MODEL_CARD.md"}  # commands as they were typed at the commits that they name
COMMAND = re.compile(r"(?:^|`|\s)(python (?:\w+\.py|-m [\w.]+) [^`\n]*)")
PLACEHOLDER = re.compile(r"\.\.\.|…")


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page, with continued lines joined and comments removed."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in COMMAND.findall(text):
        yield re.split(r"\s#|\s\||\s>|;|&&", line)[0].strip()


def documented() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        if page.name not in RECORDS
        for command in commands(page)
        if not PLACEHOLDER.search(command)
    ]


@pytest.mark.parametrize(("page", "command"), documented())
def test_a_documented_command_has_options_that_exist(page: str, command: str) -> None:
    _, *words = shlex.split(command)
    name = f"python -m {words[1]}" if words[0] == "-m" else words[0]
    rest = words[2:] if words[0] == "-m" else words[1:]
    if name == "dataset.py" and rest and not rest[0].startswith("-"):
        name, rest = f"dataset.py {rest[0]}", rest[1:]
    if name not in COMMANDS:  # benchmarks, examples and tools have argument parsers of their own
        file = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
        assert list(ROOT.rglob(file)) or importlib.util.find_spec(words[1].split(".")[0]), command
        return
    if not rest:  # a command named in a sentence
        return
    if not set(rest) & {"--help", "--help-all"}:
        parse_options(options_class(COMMANDS[name]), rest, description="", presets=PRESETS)


BLOCK = """
import importlib.machinery, sys

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {banned!r} else super().find_spec(name, path, target)

sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def extras() -> set[str]:
    """Top-level modules of installed packages that requirements.txt does not install, directly or indirectly."""
    needed: set[str] = set()
    waiting = re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in needed:
            continue
        needed.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[^\w.-]", line)[0] for line in requires if "extra ==" not in line]
    owners = importlib.metadata.packages_distributions()
    kept = {
        module for module, names in owners.items() if any(re.sub(r"[-_.]+", "-", n).lower() in needed for n in names)
    }
    return set(owners) - kept


@pytest.mark.slow
def test_the_path_of_the_readme_works_with_the_requirements_alone(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK.format(banned=extras()))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
        "MOBILENET_YOLO_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    small = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    steps = [
        ["dataset.py", "demo", "photos", "--num-images", "12", "--seed", "0"],
        ["dataset.py", "check", "photos"],
        ["train.py", "--preset", "auto", "--data", "photos", "--run-dir", "runs/first", *small],
        ["eval.py", "--checkpoint", "runs/first/best.pth", "--data", "photos", "--report", "report.html"],
        ["predict.py", "photos/VOC2026/JPEGImages", "--checkpoint", "runs/first/best.pth", "--json"],
    ]
    for script, *arguments in steps:
        done = subprocess.run(
            [sys.executable, ROOT / script, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        # check reports findings of a set this small by exit code 1
        assert done.returncode in ((0, 1) if arguments[0] == "check" else (0,)), (script, done.stderr[-2000:])
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "output").rglob("detections.json"))
