"""Installation: editable only, a console command for every script, and an error if another `utils` is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib
from pathlib import Path

import pytest

from utils.console import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )


def test_another_utils_is_named(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").touch()
    done = run("-c", "import nets", cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "hides the package `utils`" in last and str(tmp_path) in last


def test_the_console_command_runs_in_a_folder_with_another_utils(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").touch()
    code = "import sys; sys.argv[1:] = ['dataset', '--help']; from utils.console import main; main()"
    done = run("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "convert" in done.stdout


def test_a_misspelt_console_command_gets_the_nearest() -> None:
    code = "import sys; sys.argv[1:] = ['trian']; from utils.console import main; main()"
    done = run("-c", code, cwd=ROOT)
    assert done.returncode == 2 and "did you mean train?" in done.stderr


def test_every_script_has_a_console_command() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} - {"setup"} == set(COMMANDS)


def test_a_wheel_is_rejected_in_one_line() -> None:
    pytest.importorskip("setuptools.command.bdist_wheel", reason="setuptools is not installed, or too old")
    done = run("setup.py", "-q", "bdist_wheel", "--dist-dir", "unused", cwd=ROOT)
    assert done.returncode == 1 and "pip install -e" in done.stderr.strip().splitlines()[-1]


def test_no_extra_brings_a_second_opencv() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "all" in extras
    brings_opencv = ("supervision", "trackers", "opencv", "ultralytics", "sahi")
    assert not [line for lines in extras.values() for line in lines if line.startswith(brings_opencv)]


def test_every_documented_installation_of_this_project_is_editable() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*")]
    for page in pages:
        if page.is_file() and page.name != "TROUBLESHOOTING.md":  # which names the mistake
            for words in re.findall(r"pip install ([^`\n]*)", page.read_text(encoding="utf-8")):
                assert not re.match(r"['\"]?\.", words), (page.name, words)
