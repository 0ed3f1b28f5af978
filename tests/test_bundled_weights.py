"""The bundled weights: they match the options of their preset and the scores in the model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nets.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scripts.pack_weights import main as pack_weights
from scripts.train_bundled import main as train_bundled
from tests.export_makers import small_model
from training.options import PRESETS, TrainOptions
from utils.config import parse_options
from utils.errors import UserError

MODEL_DATA = Path(__file__).resolve().parent.parent / "model_data"
NAMES = ("small", "nano")
PRESET = "bundled-strong"  # of both: nano is the same run at another input size
EARLIER_PRESETS = (
    "bundled-start",
    "bundled-small",
    "bundled-finish",
    "bundled-wide",
)  # of the runs before it, in order
FIRST_PRESET = EARLIER_PRESETS[0]
MAX_MEGABYTES = 8


@pytest.mark.parametrize("name", NAMES)
def test_the_file_was_trained_by_its_preset(name: str) -> None:
    stored = load_checkpoint(MODEL_DATA / f"{name}.pth").info["options"]
    preset = json.loads((PRESETS / f"{PRESET}.json").read_text())
    preset.pop("_about")
    preset["input_size"] *= 2  # one number is a square
    assert {key: stored[key] for key in preset} == preset
    for run in (*EARLIER_PRESETS, PRESET):
        parse_options(TrainOptions, ["--preset", run], description="", presets=PRESETS)


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


def test_one_command_runs_the_commands_of_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    train_bundled(["DATA", "--pretrained", "BACKBONE", "--teacher", "FUSION.json", "--dry-run"])
    lines = [f"  {line}" for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 13
    assert "\n".join(lines) in (MODEL_DATA / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_pack_weights_averages_checkpoints_of_one_network(tmp_path: Path) -> None:
    model = small_model()
    weights = model.state_dict()
    for number, name in ((1, "a.pth"), (4, "b.pth")):
        scaled = {n: number * t if t.is_floating_point() else t for n, t in weights.items()}
        save_checkpoint(tmp_path / name, Checkpoint(model.config, scaled))
    pack_weights([str(tmp_path / name) for name in ("a.pth", "b.pth", "mean.pth")])
    for name, tensor in load_checkpoint(tmp_path / "mean.pth").weights.items():
        expected = 2.5 * weights[name] if tensor.is_floating_point() else weights[name]
        torch.testing.assert_close(tensor, expected, rtol=2e-3, atol=1e-6)  # stored as float16


def test_pack_weights_refuses_to_average_different_networks(tmp_path: Path) -> None:
    model = small_model()
    save_checkpoint(tmp_path / "other.pth", Checkpoint(model.config, model.state_dict()))
    with pytest.raises(UserError, match="is not the same network as"):
        pack_weights([str(MODEL_DATA / "small.pth"), str(tmp_path / "other.pth"), str(tmp_path / "mean.pth")])
    assert not (tmp_path / "mean.pth").exists()
