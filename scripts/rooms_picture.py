"""Draw docs/images/rooms.svg: folders by layer, and which folder imports which: `python scripts/rooms_picture.py`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    ("train", "eval", "predict", "export", "dataset", "serve", "benchmark"),
    ("benchmarks", "service"),
    ("training", "prediction"),
    ("nets", "evaluation"),
    ("data",),
    ("imaging",),
    ("utils",),
)
WIDTH, HEIGHT, BOX = 960, 600, (112, 34)


def sources(name: str) -> list[Path]:
    """The files of a folder, or the script of that name."""
    return sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]


def imported(name: str) -> set[str]:
    """Folders that are imported by the files of a folder."""
    known = {each for layer in LAYERS for each in layer}
    found = set()
    for path in sources(name):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
    return (found & known) - {name}


def lines_of(name: str) -> int:
    """Number of lines of a folder or script."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(name))


def draw() -> str:
    """The diagram as SVG text."""
    places = {}
    for row, layer in enumerate(LAYERS):
        gap = WIDTH / (len(layer) + 1)
        for column, name in enumerate(layer):
            places[name] = (gap * (column + 1), 40 + row * 85)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#889"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for name, (x, y) in places.items():
        for target in sorted(imported(name)):
            to_x, to_y = places[target]
            way = f"M{x:.0f} {y + BOX[1] / 2:.0f} L{to_x:.0f} {to_y - BOX[1] / 2 - 2:.0f}"
            colour = "#889" if to_y > y else "#c33"  # red: within a layer or back up
            parts.append(f'<path d="{way}" stroke="{colour}" stroke-width="0.8" marker-end="url(#a)"/>')
    for name, (x, y) in places.items():
        is_script = name in LAYERS[0]
        fill = "#eef" if is_script else "#efe"
        parts.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
            f'fill="{fill}" stroke="#667"/>'
            f'<text x="{x:.0f}" y="{y - 1:.0f}" text-anchor="middle">{name}{".py" if is_script else "/"}</text>'
            f'<text x="{x:.0f}" y="{y + 12:.0f}" text-anchor="middle" font-size="10" '
            f'fill="#667">{lines_of(name)} lines</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "images" / "rooms.svg").write_text(draw(), encoding="utf-8")
    sys.stdout.write("docs/images/rooms.svg\n")
