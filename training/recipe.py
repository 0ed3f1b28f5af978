"""Choose the training recipe from the size of the data, with reasons (`--preset auto`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.config import typed_form

# Optimiser steps of a run, whatever the number of images. A backbone that starts at random needs more, and a whole
# detector fewer: 60 steps on 50 images of another class took it to 0.96 (docs/EXPERIMENTS.md, section 13).
STEPS_OF_A_DETECTOR, STEPS_PRETRAINED, STEPS_FROM_SCRATCH = 2000, 6000, 12000
EPOCHS_RANGE = (30, 500)
USUAL_BATCH = 16
# From scratch on few images steps are what is short: docs/EXPERIMENTS.md, section 12. More images were not tried.
SCRATCH_BATCH, SCRATCH_RATE, FEW_IMAGES = 8, 2e-2, 2000
LEAST_STEPS_PER_EPOCH = 8  # with fewer, batch-norm statistics and the schedule become coarse
RARE = 0.05  # share of the images below which a class is oversampled
SMALL_SET = 200
SCORES = 40  # evaluations of a run
# of a pretrained backbone: its first layers see edges, which need no new training and have the largest maps
FROZEN_LAYERS = 4


@dataclass(frozen=True)
class Choice:
    """One option, its value and the reason."""

    option: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"  {typed_form(self.option, self.value)}: {self.why}"


def choose_recipe(
    num_images: int,
    boxes_per_class: np.ndarray,
    images_per_class: np.ndarray,
    pretrained: bool,
    layers_are_known: bool = True,
    given_epochs: int | None = None,
    is_detector: bool = False,
    world_size: int = 1,
) -> list[Choice]:
    """Choose the options for a data set.

    Args:
        num_images: training images.
        boxes_per_class, images_per_class: (C,) number of boxes of each class, and of images that contain it.
        pretrained: whether the backbone starts from weights.
        layers_are_known: whether the backbone is one of ours, whose first layers are the first.
        given_epochs: number of epochs, if given by the user.
        is_detector: whether neck and head start from weights too.
        world_size: processes that share the images of a step.
    """
    quick = not pretrained and num_images < FEW_IMAGES
    batch = SCRATCH_BATCH if quick else USUAL_BATCH
    while batch > 2 and num_images / batch < LEAST_STEPS_PER_EPOCH:
        batch //= 2
    steps = -(-num_images // batch)
    goal, start = STEPS_FROM_SCRATCH, "a backbone from scratch"
    if is_detector:
        goal, start = STEPS_OF_A_DETECTOR, "a detector that is trained further"
    elif pretrained:
        goal, start = STEPS_PRETRAINED, "a pretrained backbone"
    epochs = int(np.clip(round(goal / steps), *EPOCHS_RANGE))
    choices = [
        Choice("batch_size", -(-batch // world_size), f"{num_images} images make {steps} steps an epoch"),
        Choice("epochs", epochs, f"about {epochs * steps} steps, for {start}"),
        Choice("optimizer", "adamw", "learns from the first steps on, where SGD on little data shows no box for long"),
        Choice("warmup_epochs", round(min(3.0, max(0.5, 100 / steps)), 1), "about 100 steps"),
    ]
    if quick:
        why = "few images from scratch: large, many steps learn most in the same time"
        choices.append(Choice("learning_rate", SCRATCH_RATE, why))
    if pretrained:
        choices.append(
            Choice("freeze_norms", True, "batches here say less of the averages than ImageNet did; a step costs less")
        )
    if pretrained and layers_are_known:
        choices.append(Choice("freeze_layers", FROZEN_LAYERS, "they see edges, as ImageNet does; a step costs half"))
    if num_images < SMALL_SET:
        choices.append(
            Choice("mosaic", 0.7, f"fewer than {SMALL_SET} images: new arrangements are most of what varies")
        )
    every = max((given_epochs or epochs) // SCORES, 1)
    if every > 1:
        choices.append(Choice("eval_every", every, f"about {SCORES} points make a curve; scoring costs time as well"))
    share = images_per_class[boxes_per_class > 0] / max(num_images, 1)
    if len(share) > 1 and share.min() < RARE:
        choices.append(Choice("repeat_rare", RARE, f"the rarest class is in {share.min():.1%} of the images"))
    return choices
