"""Commands in README and docs can be parsed, and those of the README work with the packages of requirements.txt."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from documented import documented, hide_packages  # noqa: E402
from generated_pages import COMMANDS, options_class  # noqa: E402

from training.options import PRESETS  # noqa: E402
from utils.config import parse_options  # noqa: E402


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


@pytest.mark.slow
def test_the_path_of_the_readme_works_with_the_requirements_alone(tmp_path: Path) -> None:
    hide_packages(tmp_path / "site")
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
