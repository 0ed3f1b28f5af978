"""Pages that are written anew with each build: every option, from the dataclasses that define the command lines."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from utils.config import leaves

ROOT = Path(__file__).resolve().parents[2]
# command -> the dataclass of its options
COMMANDS = {
    "train.py": "TrainOptions",
    "eval.py": "EvalOptions",
    "predict.py": "PredictOptions",
    "export.py": "ExportOptions",
    "serve.py": "ServeOptions",
    "benchmark.py": "BenchmarkOptions",
    "dataset.py check": "CheckOptions",
    "dataset.py stats": "StatsOptions",
    "dataset.py split": "SplitOptions",
    "dataset.py convert": "ConvertOptions",
    "dataset.py anchors": "AnchorOptions",
    "dataset.py demo": "DemoOptions",
    "dataset.py download": "DownloadOptions",
    "python -m nets.summary": "SummaryOptions",
    "python -m nets.weights.import_reference": "ImportOptions",
}


def options_class(name: str) -> type:
    """The dataclass of that name, from the one module outside of tests that defines it."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-su-z]*/**/*.py"), *ROOT.glob("training/*.py")]:
        if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            return getattr(importlib.import_module(module), name)
    raise LookupError(name)


def option_rows(options: type) -> list[str]:
    """Markdown: one table for each group of options."""
    lines: list[str] = []
    title = None
    for leaf in leaves(options).values():
        if leaf.title != title:
            title = leaf.title
            lines += [
                "",
                f"**{title}**" if title else "",
                "",
                "| option | default | what it does |",
                "| --- | --- | --- |",
            ]
        elif not lines:
            lines += ["| option | default | what it does |", "| --- | --- | --- |"]
        facts = leaf.field.metadata
        name = leaf.name if facts["positional"] else f"--{leaf.name.replace('_', '-')}"
        words = facts["help"].replace("|", "\\|").replace("<", "&lt;")
        if facts["choices"]:
            words += f" One of: {', '.join(map(str, facts['choices']))}."
        limits = [f"at least {facts['low']:g}"] if facts["low"] is not None else []
        limits += [f"more than {facts['above']:g}"] if facts["above"] is not None else []
        limits += [f"at most {facts['high']:g}"] if facts["high"] is not None else []
        words += f" ({', '.join(limits)})" if limits else ""
        lines.append(f"| `{name}` | {_default(leaf.field.default)} | {words} |")
    return lines


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def write_options(folder: Path) -> None:
    """Write OPTIONS.md."""
    lines = [
        "# Every option",
        "",
        "A value comes from the command line, else from `--config FILE.json`, else from `--preset NAME`, else it is",
        "the default. `train.py --show-config` prints each value with its origin.",
        "This page is generated from the source.",
    ]
    for command, name in COMMANDS.items():
        lines += ["", f"## {command}", "", *option_rows(options_class(name))]
    (folder / "OPTIONS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write_options(Path(app.srcdir)))
    return {"parallel_read_safe": True}
