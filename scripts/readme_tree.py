"""Write the tree of README.md from the first line of each module: `python scripts/readme_tree.py [--check]`."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import RunError, run_command

BEGIN, END = "<!-- tree: python scripts/readme_tree.py -->\n```text\n", "```\n<!-- end of tree -->"
PARTS = (
    ".",
    "nets",
    "nets/backbones",
    "nets/weights",
    "nets/export",
    "data",
    "data/formats",
    "data/tools",
    "evaluation",
    "evaluation/metrics",
    "evaluation/report",
    "prediction",
    "training",
    "service",
    "benchmarks",
    "utils",
)
LAST_PARTS = ("scripts", "examples")
OTHERS = {
    "model_data/": "class lists, presets, the weights in the box and their card",
    "VOCdevkit/": "where a VOC-style data set goes by custom",
    "tests/": "one file a module; tests/faults: broken inputs of every kind",
    "docs/": "use from Python, serving, architecture, experiments, deployment, reliability, scaling",
}


def first_line(path: Path) -> str:
    """The sentence of a module."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")


def tree() -> str:
    """All modules with their sentences, and the folders that hold no code."""
    lines: list[str] = []
    for part in (*PARTS, *LAST_PARTS):
        folder = ROOT / part
        package = folder / "__init__.py"
        depth = 0 if part == "." else part.count("/") + 1
        if part != ".":
            about = first_line(package) if package.is_file() else ""
            lines.append(f"{'  ' * (depth - 1)}{folder.name}/".ljust(30) + about)
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"{'  ' * depth}{path.name}".ljust(30) + first_line(path))
    lines += [name.ljust(30) + about for name, about in OTHERS.items()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def updated(readme: str) -> str:
    """README with the present tree."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise RunError("README.md", "has no place for the tree", f"put in: {BEGIN!r} and {END!r}")
    return before + BEGIN + tree() + END + after


def main(argv: list[str] | None = None) -> int:
    """Write it, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README is behind")
    arguments = parser.parse_args(argv)
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = updated(old)
    if arguments.check:
        print("current" if old == new else "README.md is behind: run python scripts/readme_tree.py")
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
