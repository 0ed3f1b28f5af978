"""Counts are printed with their nouns in the singular or plural."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.tools.check import main as check
from data.tools.demo import main as demo
from utils.text import counted

ROOT = Path(__file__).resolve().parent.parent
NOUNS = "images|boxes|classes|objects|detections|epochs|files|errors|warnings|notes|lists|labels|frames|findings|groups"
# a count is compared or a part ("of", "than"), or is more than one by its meaning ("the", "most")
COUNT = re.compile(
    r"(?<!of )(?<!of the )(?<!the )(?<!than )(?<!most )(?<!all )"
    rf"\{{(?:len\([^{{}}]*\)|[\w.]*(?:num_\w+|epochs?|counts?\b)[^{{}}]*)\}} (?:[a-z]+ )?(?:{NOUNS})\b"
)


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("box",), "0 boxes"),
        (1, ("box",), "1 box"),
        (2, ("class",), "2 classes"),
        (1, ("class",), "1 class"),
        (3, ("usable image",), "3 usable images"),
        (2, ("entry",), "2 entries"),
        (2, ("day",), "2 days"),
        (2, ("epoch",), "2 epochs"),
        (1, ("image is", "images are"), "1 image is"),
        (2, ("image is", "images are"), "2 images are"),
    ],
)
def test_a_count_and_its_noun_agree(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text


def test_no_message_prints_a_count_before_a_fixed_plural() -> None:
    own = ("docs", "examples", "tests")
    paths = [
        path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in own and ".venv" not in str(path)
    ]
    assert len(paths) > 100
    fixed = {path.name: COUNT.findall(path.read_text(encoding="utf-8")) for path in paths}
    known = {"detections.py"}  # errors about lengths that differ
    assert {name: found for name, found in fixed.items() if found and name not in known} == {}


def test_the_check_of_a_single_image_speaks_of_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo([str(tmp_path / "one"), "--num-images", "1", "--seed", "0"])
    check([str(tmp_path / "one")])
    text = capsys.readouterr().out
    assert "1 image " in text
    assert not re.search(rf"\b1 (?:[a-z]+ )?(?:{NOUNS})\b", text), text
