"""Initialise a model from another model's checkpoint: copy matching weights, and match classes by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nets.model_config import ANCHORS_PER_LEVEL
from nets.weights.checkpoint import Checkpoint
from nets.yolov4 import YOLOv4
from utils.errors import UserError

# outputs of an anchor before the classes: tx, ty, tw, th, objectness
BOX_OUTPUTS = 5


@dataclass(frozen=True)
class TransferReport:
    """Result of a transfer; `print(report)` shows it in a few lines."""

    kept: int
    total: int
    mismatched: tuple[str, ...]
    matched_classes: tuple[str, ...]
    new_classes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"weights: {self.kept} of {self.total} tensors copied"]
        if self.mismatched:
            lines.append(f"  of another shape, initialised randomly: {', '.join(self.mismatched[:6])}")
        lines.append(f"  classes copied by name: {', '.join(self.matched_classes) or 'none'}")
        if self.new_classes:
            lines.append(f"  new classes, initialised randomly: {', '.join(self.new_classes)}")
        return "\n".join(lines)


def transfer_weights(model: YOLOv4, checkpoint: Checkpoint, path: object) -> TransferReport:
    """Copy the tensors of a checkpoint that match `model` by name and shape.

    If the classes differ, the outputs of classes with the same name are copied. `path` is only for errors.

    Raises:
        UserError: if less than half of the model's tensors match.
    """
    own = model.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    old, new = checkpoint.config.class_names, model.config.class_names
    rows = _output_rows(old, new)
    kept, mismatched = 0, []
    for name in names:
        theirs = checkpoint.weights.get(name)
        if theirs is None:
            continue
        outputs = ANCHORS_PER_LEVEL * (BOX_OUTPUTS + len(old))
        same_inputs = theirs.shape[1:] == own[name].shape[1:]
        is_output = name in _output_names(model) and theirs.shape[0] == outputs and same_inputs
        if is_output and old != new:
            _copy_rows(own[name], theirs, rows)
        elif theirs.shape == own[name].shape:
            own[name].copy_(theirs)
        else:
            mismatched.append(name)
            continue
        kept += 1
    if kept * 2 < len(names):
        todo = "give the backbone, alpha and neck that the file was trained with, or --pretrained"
        raise UserError(path, f"only {kept} of the model's {len(names)} tensors fit", todo)
    model.load_state_dict(own)
    matched = tuple(name for name in new if name in old)
    return TransferReport(kept, len(names), tuple(mismatched), matched, tuple(n for n in new if n not in old))


def _output_names(model: YOLOv4) -> set[str]:
    """Names of the last convolutions' tensors: for each level (outputs, channels, 1, 1) and (outputs,)."""
    lasts = [list(level.named_children())[-1] for level in model.head.levels]
    return {f"head.levels.{i}.{n}.{part}" for i, (n, conv) in enumerate(lasts) for part in conv.state_dict()}


def _output_rows(old: tuple[str, ...], new: tuple[str, ...]) -> list[tuple[int, int]]:
    """(new row, old row) of the outputs of one anchor that both models have."""
    pairs = [(i, i) for i in range(BOX_OUTPUTS)]
    return pairs + [(BOX_OUTPUTS + new.index(n), BOX_OUTPUTS + old.index(n)) for n in new if n in old]


def _copy_rows(own: Tensor, theirs: Tensor, rows: list[tuple[int, int]]) -> None:
    old, new = (t.view(ANCHORS_PER_LEVEL, t.shape[0] // ANCHORS_PER_LEVEL, *t.shape[1:]) for t in (theirs, own))
    for to, of in rows:
        new[:, to] = old[:, of]
