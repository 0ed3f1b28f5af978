"""Write the trees of README.md and docs/ARCHITECTURE.md from the first line of each module."""

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
    "imaging",
    "utils",
)
LAST_PARTS = ("scripts", "examples")
OTHERS = {
    "model_data/": "class lists, presets, the bundled weights and their model card",
    "VOCdevkit/": "a place for VOC data",
    "tests/": "one file a module; tests/faults: broken inputs; tests/long: fuzzers, kill test",
    "docs/": "the documentation: `make docs`",
}
# The files to read first, in this order; README shows these and the folders.
FIRST = (
    "train.py",
    "nets/yolov4.py",
    "nets/anchors.py",
    "nets/assigner.py",
    "nets/losses.py",
    "nets/postprocess.py",
    "nets/detector.py",
    "data/open.py",
    "data/loader.py",
    "evaluation/evaluator.py",
)
README_WIDTH = 118


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


def short_tree() -> str:
    """Folders with their sentences, and the files to read first."""
    lines: list[str] = []
    for part in (*PARTS, *LAST_PARTS):
        folder = ROOT / part
        package = folder / "__init__.py"
        if part != "." and "/" not in part:
            lines.append(f"{part}/".ljust(26) + (first_line(package) if package.is_file() else ""))
        for path in (ROOT / name for name in FIRST):
            if path.parent == folder.resolve():
                lines.append(f"{'' if part == '.' else '  '}{path.name}".ljust(26) + first_line(path))
    lines += [name.ljust(26) + about for name, about in OTHERS.items()]
    return "\n".join(line[:README_WIDTH].rstrip() for line in lines) + "\n"


def updated(page: str, tree: str) -> str:
    """A page with the present tree."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise RunError("page", "has no place for the tree", f"put in: {BEGIN!r} and {END!r}")
    return before + BEGIN + tree + END + after


def pages() -> dict[Path, str]:
    """The pages that hold a tree, as they should be."""
    trees = {ROOT / "README.md": short_tree(), ROOT / "docs" / "ARCHITECTURE.md": tree()}
    return {path: updated(path.read_text(encoding="utf-8"), text) for path, text in trees.items()}


def main(argv: list[str] | None = None) -> int:
    """Write them, or with --check say whether they are current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is behind")
    arguments = parser.parse_args(argv)
    behind = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    if arguments.check:
        print(f"behind: {', '.join(path.name for path in behind)}" if behind else "current")
        return int(bool(behind))
    for path, text in behind.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
