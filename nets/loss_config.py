"""Options of the loss, with their defaults, ranges and help texts."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import check_fields, option

ASSIGNERS = ("best", "iou", "ratio", "simota")  # the rules of nets.assigner
BOX_LOSSES = ("giou", "diou", "ciou")  # implemented in nets.losses


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss. Each field is an option of train.py.

    Raises:
        ValueError: for a value outside its range.
    """

    assigner: str = option("ratio", "rule that matches anchors to objects", choices=ASSIGNERS)
    box_loss: str = option("ciou", "regression loss of matched boxes", choices=BOX_LOSSES)
    box_weight: float = option(3.0, "weight of the box loss", low=0)
    objectness_weight: float = option(1.0, "weight of the objectness loss", low=0)
    class_weight: float = option(0.5, "weight of the class loss", low=0)
    level_weights: tuple[float, ...] = option(
        (1.0, 1.0, 1.0), "weights of the objectness loss at strides 8, 16, 32", low=0, nargs=3
    )
    objectness_target: float = option(
        1.0,
        "objectness target of a match: 1 = its IoU (YOLOv5), 0 = always 1; values between interpolate",
        low=0,
        high=1,
    )
    ignore_iou: float = option(
        1.0, "ignore unmatched predictions whose IoU with an object exceeds this (YOLOv3); 1 = off", low=0, high=1
    )
    label_smoothing: float = option(
        0.0, "label smoothing eps: class targets are eps / C and 1 - eps + eps / C", low=0, high=0.5
    )
    focal_gamma: float = option(0.0, "gamma of the focal loss; 0 = plain cross-entropy", low=0, high=10)
    class_balance: float = option(
        0.0, "class weights are (1 / frequency) to this power; 0 = equal weights", low=0, high=1
    )

    def __post_init__(self) -> None:
        check_fields(self)
