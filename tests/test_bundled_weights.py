"""The bundled weights: they match the options of their preset and the scores in the model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nets.weights.checkpoint import load_checkpoint
from training.options import PRESETS, TrainOptions
from utils.config import parse_options

MODEL_DATA = Path(__file__).resolve().parent.parent / "model_data"
NAMES = ("small", "nano")
PRESET = "bundled-finish"  # of both: nano is the same run at another input size
EARLIER_PRESETS = ("bundled-start", "bundled-small")  # of the runs before it, each from the weights of the one before
FIRST_PRESET = EARLIER_PRESETS[0]
MAX_MEGABYTES = 8


@pytest.mark.parametrize("name", NAMES)
def test_the_file_was_trained_by_its_preset(name: str) -> None:
    stored = load_checkpoint(MODEL_DATA / f"{name}.pth").info["options"]
    preset = json.loads((PRESETS / f"{PRESET}.json").read_text())
    preset.pop("_about")
    preset["input_size"] *= 2  # one number is a square
    assert {key: stored[key] for key in preset} == preset
    parse_options(TrainOptions, ["--preset", PRESET], description="", presets=PRESETS)


def test_the_first_run_was_made_with_its_preset() -> None:
    stored = json.loads((MODEL_DATA.parent / "docs/training/small_start.json").read_text())
    preset = json.loads((PRESETS / f"{FIRST_PRESET}.json").read_text())
    preset.pop("_about")
    preset["input_size"] *= 2
    assert {key: stored[key] for key in preset} == preset
    card = (MODEL_DATA / "MODEL_CARD.md").read_text(encoding="utf-8")
    positions = [card.index(f"--preset {name} ") for name in (*EARLIER_PRESETS, PRESET)]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_gives_its_command_and_figures(name: str) -> None:
    path = MODEL_DATA / f"{name}.pth"
    card = (MODEL_DATA / "MODEL_CARD.md").read_text(encoding="utf-8")
    metrics = load_checkpoint(path).metrics
    assert f"--preset {PRESET} " in card
    assert f"{metrics['voc10_mAP50']:.3f} / {metrics['coco_AP']:.3f}" in card
    megabytes = path.stat().st_size / 1e6
    assert megabytes <= MAX_MEGABYTES and f"{megabytes:.2f} MB" in card
