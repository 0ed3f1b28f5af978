"""Imports between folders: each folder may import only the folders below it, and no module imports an entry script."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENTRY_SCRIPTS = {"train", "eval", "predict", "export", "dataset", "serve", "benchmark"}
MAY_IMPORT = {
    "utils": {"utils"},
    "imaging": {"imaging", "utils"},
    "data": {"data", "imaging", "utils"},
    "nets": {"nets", "data", "imaging", "utils"},
    "evaluation": {"evaluation", "data", "imaging", "utils"},
    "prediction": {"prediction", "evaluation", "nets", "data", "imaging", "utils"},
    "training": {"training", "evaluation", "nets", "data", "imaging", "utils"},
    "service": {"service", "prediction", "nets", "data", "imaging", "utils"},
    "benchmarks": {"benchmarks", "service", "prediction", "training", "evaluation", "nets", "data", "imaging", "utils"},
}
# What takes long to import. A function may import a module of ours late where that keeps one of these out of a command
# that does not need it: `--help`, a usage error, or prediction with an exported file.
HEAVY = {
    "torch",
    "torchvision",
    "cv2",
    "matplotlib",
    "scipy",
    "fastapi",
    "uvicorn",
    "timm",
    "onnx",
    "onnxruntime",
    "PIL",
    "numpy",
}


def modules() -> dict[str, Path]:
    """All modules of the folders and scripts, by dotted name."""
    paths = [p for room in MAY_IMPORT for p in (ROOT / room).rglob("*.py")]
    paths += [ROOT / f"{name}.py" for name in ENTRY_SCRIPTS]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


MODULES = modules()


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Modules of this project that a file imports, and whether it does so at the top (not inside a function)."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    for top in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in ast.walk(top):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [
                    f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module
                    for a in node.names
                ]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            is_top = not isinstance(top, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
            yield from ((name, is_top) for name in names if name in MODULES)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_folder_imports_only_the_folders_below_it(room: str) -> None:
    back = {
        (module, target)
        for module, path in MODULES.items()
        if module.split(".")[0] == room
        for target, _ in imports(path)
        if target.split(".")[0] not in MAY_IMPORT[room]
    }
    assert not back


def test_no_module_and_no_tool_imports_an_entry_script() -> None:
    tools = {f"scripts.{p.stem}": p for p in (ROOT / "scripts").glob("*.py")}
    rooms = {m: p for m, p in MODULES.items() if m not in ENTRY_SCRIPTS}
    found = {(m, t) for m, p in {**rooms, **tools}.items() for t, _ in imports(p) if t in ENTRY_SCRIPTS}
    assert not found


def test_every_import_of_ours_names_a_module() -> None:
    files = [*MODULES.values(), *(p for part in ("tests", "scripts", "examples") for p in (ROOT / part).rglob("*.py"))]
    missing = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            missing |= {(path.name, n) for n in names if n.split(".")[0] in MAY_IMPORT and n not in MODULES}
    assert not missing


def test_imports_have_no_circle() -> None:
    graph = {m: {t for t, is_top in imports(p) if t != m} for m, p in MODULES.items()}
    graph = {m: {t for t in targets if t not in m.split(".")} for m, targets in graph.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            circles.append(" -> ".join((*way[way.index(module) :], module)))
            return
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    circles: list[str] = []
    for module in sorted(graph):
        visit(module, ())
    assert not circles


def packages(path: Path) -> set[str]:
    """Packages that a file imports at the top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_only_slow_packages_are_imported_late() -> None:
    top = {m: {t for t, is_top in imports(p) if is_top} for m, p in MODULES.items()}

    heavy = {m for m, p in MODULES.items() if packages(p) & HEAVY}
    while more := {m for m, targets in top.items() if m not in heavy and targets & heavy}:
        heavy |= more
    late = {(m, t) for m, p in MODULES.items() for t, is_top in imports(p) if not is_top and t not in top[m]}
    assert not {(m, t) for m, t in late if t not in heavy}


def test_no_folder_holds_more_than_a_quarter_of_the_code() -> None:
    lines = dict.fromkeys(MAY_IMPORT, 0)
    for name, path in MODULES.items():
        room = name.split(".")[0]
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    assert max(lines.values()) <= sum(lines.values()) / 4, lines
    assert lines["utils"] <= 2600
