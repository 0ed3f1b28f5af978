"""Update the file trees in README.md and docs/ARCHITECTURE.md from docstrings, and the presets in docs/PRESETS.md."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import RunError, run_command

BEGIN, END = "<!-- tree: python scripts/readme_tree.py -->\n```text\n", "```\n<!-- end of tree -->"
PRESETS, END_OF_PRESETS = "<!-- presets -->\n", "<!-- end of presets -->"
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
    "benchmarks/compare",
    "imaging",
    "utils",
)
SCRIPTS = {
    "scripts": "Tools of the maintainers: generated pages and pictures, packed weights, known vulnerabilities",
    "examples": "A notebook, a camera loop, detection without this project's code, C++ and Kotlin",
}
OTHERS = {
    "model_data/": "class lists, presets, the bundled weights and their model card",
    "VOCdevkit/": "default folder for VOC data",
    "tests/": "one file per module; tests/faults: invalid inputs; tests/long: fuzzers, kill test",
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


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")


def tree(short: bool = False) -> str:
    """Folders and modules with the first line of their docstrings; if `short`, top folders and the files of `FIRST`."""
    rows: list[tuple[str, str]] = []
    for part in (*PARTS, *SCRIPTS):
        if short and "/" in part:
            continue
        folder = ROOT / part
        package, depth = folder / "__init__.py", 0 if part == "." else part.count("/") + 1
        if depth:
            about = first_line(package) if package.is_file() else SCRIPTS[part]
            rows.append((f"{'  ' * (depth - 1)}{folder.name}/", about))
        first = [path for path in (ROOT / name for name in FIRST) if path.parent == folder.resolve()]
        for path in first if short else sorted(folder.glob("*.py")):
            if path != package:
                rows.append((f"{'  ' * depth}{path.name}", first_line(path)))
    width = 26 if short else 30
    return "".join(f"{name.ljust(width)}{about}".rstrip() + "\n" for name, about in (*rows, *OTHERS.items()))


def updated(page: Path, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Replace the text between the markers of a page. Raises RunError if a marker is missing."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise RunError(page, "has no markers for the generated part", f"insert {begin!r} and {end!r}")
    return before + begin + text + end + after


def pages() -> dict[Path, str]:
    """The pages with up-to-date generated parts."""
    readme, architecture, presets = ROOT / "README.md", ROOT / "docs" / "ARCHITECTURE.md", ROOT / "docs" / "PRESETS.md"
    table = readme.read_text(encoding="utf-8").partition(PRESETS)[2].partition(END_OF_PRESETS)[0]
    return {
        readme: updated(readme, tree(short=True)),
        architecture: updated(architecture, tree()),
        presets: updated(presets, table.replace("](docs/", "]("), PRESETS, END_OF_PRESETS),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with --check report whether they are current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    arguments = parser.parse_args(argv)
    behind = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    if arguments.check:
        print(f"out of date: {', '.join(path.name for path in behind)}" if behind else "current")
        return int(bool(behind))
    for path, text in behind.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
