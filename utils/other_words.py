"""Suggestions for unknown options: similar names, and the names used by other detection tools."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Option names of Ultralytics, YOLOv5, YOLOX, MMDetection, torchvision's references and
# bubbliiiing/mobilenet-yolov4-pytorch -> our options; the first one that the command has is suggested.
_WORDS: tuple[tuple[str, str], ...] = (
    ("imgsz img img-size image-size imsz size resolution input-shape test-size tsize shape", "input-size"),
    ("conf conf-thres conf-threshold confidence threshold thresh score score-thr", "score-threshold"),
    ("iou iou-thres iou-thresh nms-iou nms-thres nms-threshold nms-thresh", "iou-threshold"),
    ("max-det max-dets max-per-img", "max-detections"),
    ("weights weight w model model-path ckpt checkpoints c pretrained-weights load-from", "checkpoint weights"),
    ("cfg arch architecture model-name", "backbone checkpoint"),
    ("yaml dataset data-dir data-path data-root root dataset-path d train-path annotation-path", "data"),
    ("epoch num-epochs max-epochs n-epochs total-epochs unfreeze-epoch e", "epochs"),
    ("lr lr0 init-lr base-lr learning-rate-init", "learning-rate"),
    ("lrf min-lr", "final-rate"),
    ("batch bs batchsize b train-batch-size samples-per-gpu", "batch-size"),
    ("num-workers nw j worker", "workers"),
    ("project name save-dir out outdir out-dir output-dir output-folder logdir log-dir work-dir o", "run-dir output"),
    ("gpu gpus gpu-id gpu-ids cuda", "device"),
    ("half fp16 mixed-precision use-amp", "half amp precisions"),
    ("quantize quantization int-8", "int8"),
    ("include formats to", "format"),
    ("augment test-time-augmentation", "tta"),
    ("view-img view display imshow", "show"),
    ("exist-ok force", "overwrite run-dir"),
    ("cos-lr cosine lr-scheduler lr-decay-type", "schedule"),
    ("optim optimizer-type", "optimizer"),
    ("freeze freeze-train freeze-epoch", "freeze-epochs"),
    ("early-stopping early-stop", "patience"),
    ("wd weight-decay-rate", "weight-decay"),
    ("label-smooth", "label-smoothing"),
    ("anchors-path anchor", "anchors"),
    ("ckpt-path resume-from", "resume checkpoint"),
    ("seed-everything manual-seed", "seed"),
    ("tensorboard-dir tb", "tensorboard"),
    ("classes-path names class-names classes-file filter-classes", "classes"),
    ("train-set set subset", "split train-split"),
    ("onnx-model engine backend", "runtime"),
    ("address bind", "host"),
    ("workers-per-host", "threads"),
)
# Option names without a single equivalent option: the suggestion to print.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("agnostic-nms", "type: --nms agnostic"),
    ("save-txt", "type: --save yolo"),
    ("save-crop save-crops", "type: --save crops"),
    ("save-json save-conf", "type: --json"),
    ("nosave no-save", "type: --no-images"),
    ("line-thickness line-width hide-labels hide-conf", "widths depend on the image size"),
    (
        "source input i img-path image images-path path file video webcam dir folder",
        "give the file without an option: photo.jpg",
    ),
    ("nc num-classes", "the classes come from the data; --classes FILE gives their order"),
    ("simplify opset batch-size", "the export is always simplified and uses the newest opset"),
    ("task mode", "each task is a script: train.py, eval.py, predict.py, export.py"),
    ("data yaml", "no data is needed: class names are stored in the model"),
    ("epochs", "to train, use train.py"),
)
_TABLE = {word: ours.split() for words, ours in _WORDS for word in words.split()}
_TEXTS = {word: text for words, text in _ADVICE for word in words.split()}


def option_hint(typed: str, flags: Iterable[str]) -> str:
    """Suggestion for an unknown option, or an empty text.

    Args:
        typed: the user's text: `--imgsz`, `--imgsz=320`, `imgsz=320`.
        flags: the command's options, such as `--input-size`.
    """
    known = sorted({each.removeprefix("--") for each in flags if each.startswith("--")})
    word = re.split("[=:]", typed.strip().lstrip("-"), maxsplit=1)[0].replace("_", "-").lower()
    if word in known:
        return f"did you mean --{word}?"
    ours = [name for name in _TABLE.get(word, ()) if name in known]
    if ours:
        return f"did you mean --{ours[0]}?"
    if word in _TEXTS:
        return _TEXTS[word]
    near = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = near or difflib.get_close_matches(word.removeprefix("no-"), known, n=1, cutoff=0.65)
    return f"did you mean --{near[0]}?" if near else ""


def value_hint(value: object, choices: Sequence[object]) -> str:
    """`did you mean X?` for a value near one of the choices, else an empty text."""
    near = difflib.get_close_matches(str(value)[:100].lower(), [str(each) for each in choices], n=1)
    return f"did you mean {near[0]}?" if near else ""


def choice_hint(value: object, choices: Sequence[object]) -> str:
    """`did you mean X?` for a value near one of the choices, else all choices."""
    return value_hint(value, choices) or f"choose from {', '.join(map(str, choices))}"
