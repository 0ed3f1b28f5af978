"""Typical user errors, including option names of other tools, get a one-line message with the solution.

`python tests/test_typical_mistakes.py` prints the lines.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import run_command  # noqa: E402

MISTAKES = [  # what is typed, and what its one line must hold
    ("train --imgsz 320", "did you mean --input-size?"),
    ("train --img-size 320", "did you mean --input-size?"),
    ("train --batch 8", "did you mean --batch-size?"),
    ("train --lr0 0.01", "did you mean --learning-rate?"),
    ("train --epoch 3", "did you mean --epochs?"),
    ("train --cfg yolov4.yaml", "did you mean --backbone?"),
    ("train --project runs", "did you mean --run-dir?"),
    ("train --model small", "did you mean --weights?"),
    ("train data=coco128.yaml", "did you mean --data?"),
    ("train --num_workers 4", "did you mean --workers?"),
    ("train --data nowhere --classes voc", "error: --data: nowhere does not exist"),
    ("train --epochs ten", "error: --epochs: 'ten' is not a whole number"),
    ("train --optimiser sgd", "did you mean --optimizer?"),
    ("train --optimizer adm", "did you mean adam"),
    ("train --preset nan0", "did you mean nano?"),
    ("train --data nowhere --epochs 1", "nowhere does not exist"),
    ("train --input-size 100 --data tests", "multiple"),
    ("eval --weights best.pth", "did you mean --checkpoint?"),
    ("eval --conf-thres 0.3", "did you mean --score-threshold?"),
    ("eval --iou 0.5", "did you mean --iou-threshold?"),
    ("eval", "--data: is required"),
    ("eval --data nowhere --checkpoint nano", "nowhere"),
    ("predict --source photo.jpg", "give the file without an option: photo.jpg"),
    ("predict --conf 0.3 photo.jpg", "did you mean --score-threshold?"),
    ("predict --weights best.pth photo.jpg", "did you mean --checkpoint?"),
    ("predict source=photo.jpg", "give the file without an option: photo.jpg"),
    ("predict --data coco.yaml photo.jpg", "class names are stored in the model"),
    ("predict --save-txt photo.jpg", "type: --save yolo"),
    ("predict photo.jpg --score-threshold 0.5 0.6", "0.5 and 0.6 are both for all classes"),
    ("predict --save txt photo.jpg", "choose from json, jsonl, csv"),
    ("predict --checkpoint nano photo.jpg --classes ,", "error: --classes: ',' names no class"),
    ("predict --classes dgo photo.jpg --checkpoint nano", "did you mean 'dog'?"),
    ("predict --agnostic-nms photo.jpg", "type: --nms agnostic"),
    ("predict", "give images, folders or videos"),
    ("predict --checkpoint nanoo photo.jpg", "did you mean 'nano'?"),
    ("predict --score-threshold 30 photo.jpg", "at least 0 and at most 1"),
    ("predict 97", "there is no /dev/video97"),
    ("predict --checkpoint nano --device cuda:77 photo.jpg", "error: --device: 'cuda:77'"),
    ("export --include onnx", "did you mean --format?"),
    ("export --checkpoint model.onnx --output new.onnx", "cannot be trained or exported again"),
    ("export --format onxx", "did you mean onnx?"),
    ("serve --prot 8000", "did you mean --port?"),
    ("dataset convert nowhere out --to coco", "error: nowhere: does not exist"),
    ("dataset stat VOCdevkit", "did you mean stats?"),
]


def line_of(typed: str, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    """Run the command in this process. Returns its exit code and its stderr."""
    script, *arguments = typed.split()
    with pytest.raises(SystemExit) as left:
        run_command(importlib.import_module(script).main, arguments)
    assert left.value.code == 2, f"{typed}: exit code {left.value.code}"
    return capsys.readouterr().err if capsys else ""


@pytest.mark.parametrize(("typed", "remedy"), MISTAKES)
def test_a_typical_error_gets_one_line_with_the_solution(
    typed: str, remedy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    line = line_of(typed, capsys)
    assert remedy in line and line.startswith("error: ") and line.count("\n") == 1


def test_there_are_at_least_thirty_unique_cases() -> None:
    assert len({typed for typed, _ in MISTAKES}) == len(MISTAKES) >= 30


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({modules!r}))  # as if they were not installed
import {script}
from utils.errors import MissingExtra
try:
    {script}.main({arguments!r})
except MissingExtra as error:
    print(error, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("script", "arguments", "modules", "extra"),
    [
        ("export", ["--format", "litert"], ["litert_torch"], "litert-export"),
        ("export", ["--format", "openvino"], ["openvino", "onnxscript"], "openvino"),
        ("export", ["--format", "openvino", "--int8", "--data", "x"], ["nncf"], "openvino"),
        ("eval", ["--data", "x", "--evaluator", "faster"], ["faster_coco_eval"], "faster"),
        ("train", ["--backbone", "timm:resnet18"], ["timm"], "timm"),
        ("serve", [], ["fastapi"], "serve"),
    ],
)
def test_a_missing_extra_is_named_before_pytorch_is_imported(
    script: str, arguments: list[str], modules: list[str], extra: str
) -> None:
    code = WITHOUT.format(script=script, arguments=arguments, modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith(f"run: pip install -e '.[{extra}]' False\n"), done.stdout + done.stderr


if __name__ == "__main__":
    for each, _ in MISTAKES:
        line_of(each)
