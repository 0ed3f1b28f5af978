"""No command overwrites an existing file, for each of its output files, unless --overwrite is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import export
from nets.export.formats import FORMATS
from nets.model_config import ModelConfig
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from utils.errors import UserError

CONFIG = ModelConfig(("car",), "mobilenet_v3_small", alpha=0.35, neck_width=0.1, input_size=(64, 64))


@pytest.mark.parametrize("name", FORMATS)
def test_no_file_of_an_export_replaces_another_one(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", Checkpoint(CONFIG, YOLOv4(CONFIG).state_dict()))
    files = FORMATS[name].files(tmp_path / f"m{FORMATS[name].suffix}")
    assert files
    for file in files:
        if file.suffix:
            file.write_text("mine")
        else:
            file.mkdir()
            (file / "mine").write_text("mine")
        with pytest.raises(UserError):
            export.main(["--checkpoint", str(tmp_path / "m.pth"), "--format", name])
        assert (file if file.suffix else file / "mine").read_text() == "mine"
        for left in [file] if file.suffix else [file / "mine"]:
            left.unlink()
        if not file.suffix:
            file.rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth"]
