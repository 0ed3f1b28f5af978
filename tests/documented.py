"""The commands of README and docs, and which packages their pages tell the reader to install."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "model_data" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "devices").glob("*.md"))
RECORDS = {"EXPERIMENTS.md", "MODEL_CARD.md"}  # commands as they were typed at the commits that they name
COMMAND = re.compile(r"(?:^|`|\s)(python (?:\w+\.py|-m [\w.]+) [^`\n]*)")
PLACEHOLDER = re.compile(r"\.\.\.|…")

# a sitecustomize.py that makes packages invisible
BLOCK = """
import importlib.machinery, sys

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {banned!r} else super().find_spec(name, path, target)

sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page, with continued lines joined and comments removed."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in COMMAND.findall(text):
        yield re.split(r"\s#|\s\||\s>|;|&&", line)[0].strip()


def documented() -> list[tuple[str, str]]:
    """Pairs of page and command, without those that have a gap."""
    return [
        (page.name, command)
        for page in PAGES
        if page.name not in RECORDS
        for command in commands(page)
        if not PLACEHOLDER.search(command)
    ]


def extras_of(page: Path) -> set[str]:
    """The extras that a page tells the reader to install."""
    return set(re.findall(r"'\.\[(\w[\w-]*)\]'", page.read_text(encoding="utf-8")))


def hide_packages(folder: Path, extras: Iterable[str] = ()) -> None:
    """Write a sitecustomize.py for PYTHONPATH that hides what requirements.txt and `extras` do not install."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(BLOCK.format(banned=_not_installed_by(extras)))


def _not_installed_by(extras: Iterable[str]) -> set[str]:
    """Top-level modules of installed packages that requirements.txt and the extras do not install, even indirectly."""
    of_extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = [
        *(ROOT / "requirements.txt").read_text().splitlines(),
        *(line for each in extras for line in of_extras[each]),
    ]
    needed: set[str] = set()
    waiting = [found[0] for line in lines if (found := re.match(r"[\w.-]+", line))]
    while waiting:
        name = _normal(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[^\w.-]", line)[0] for line in requires if "extra ==" not in line]
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if not any(_normal(name) in needed for name in names)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
