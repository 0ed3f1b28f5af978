"""Choose the training recipe from the size of the data, with reasons (`--preset auto`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.config import typed_form
from utils.text import counted

# Optimiser steps of a run, for any number of images. A randomly initialised backbone needs more, a pretrained detector
# fewer: it reached 0.96 after 60 steps on 50 images of another class (docs/EXPERIMENTS.md, section 13).
STEPS_OF_A_DETECTOR, STEPS_PRETRAINED, STEPS_FROM_SCRATCH = 2000, 6000, 12000
EPOCHS_RANGE = (30, 500)
USUAL_BATCH = 16
GPU_BATCH = 32  # a GPU computes small batches no faster than larger ones
# From scratch on few images, the number of steps is the limit (docs/EXPERIMENTS.md, section 12). Not tried with more.
SCRATCH_BATCH, SCRATCH_RATE, FEW_IMAGES = 8, 2e-2, 2000
LEAST_STEPS_PER_EPOCH = 8  # with fewer, batch-norm statistics and the schedule become coarse
RARE = 0.05  # a class in less than this fraction of the images is oversampled
SMALL_SET = 200
SCORES = 40  # evaluations of a run
# The first layers of a pretrained backbone detect edges and need no further training. Their maps are the largest.
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
    given_batch: int | None = None,
    is_detector: bool = False,
    world_size: int = 1,
    usual_batch: int = USUAL_BATCH,
) -> list[Choice]:
    """Choose the options for a data set.

    Args:
        num_images: training images.
        boxes_per_class, images_per_class: (C,) number of boxes of each class, and of images that contain it.
        pretrained: whether the backbone starts from weights.
        layers_are_known: whether `features` of the backbone lists its layers in order (not for timm).
        given_epochs: number of epochs, if given by the user.
        given_batch: images per step in all processes, if given by the user.
        is_detector: whether neck and head start from weights too.
        world_size: processes that share the images of a step.
        usual_batch: images per step, if there are enough (`GPU_BATCH` on a GPU).
    """
    quick = not pretrained and num_images < FEW_IMAGES
    batch = SCRATCH_BATCH if quick else usual_batch
    while batch > 2 and num_images / batch < LEAST_STEPS_PER_EPOCH:
        batch //= 2
    batch = given_batch or batch
    steps = -(-num_images // batch)
    goal, start = STEPS_FROM_SCRATCH, "a random backbone"
    if is_detector:
        goal, start = STEPS_OF_A_DETECTOR, "fine-tuning a detector"
    elif pretrained:
        goal, start = STEPS_PRETRAINED, "a pretrained backbone"
    epochs = int(np.clip(round(goal / steps), *EPOCHS_RANGE))
    warmup = round(min(3.0, max(0.5, 100 / steps)), 1)
    choices = [
        Choice(
            "batch_size",
            -(-batch // world_size),
            f"{counted(steps, 'step')} per epoch of {counted(num_images, 'image')}",
        ),
        Choice("epochs", epochs, f"about {counted(epochs * steps, 'step')}, for {start}"),
        Choice(
            "optimizer", "adamw", "learns from the first steps on; on little data, SGD detects nothing for a long time"
        ),
        Choice("warmup_epochs", warmup, f"about {warmup * steps:.0f} steps"),
    ]
    if quick:
        why = "few images from scratch: a high rate and many steps learn most in the same time"
        choices.append(Choice("learning_rate", SCRATCH_RATE, why))
    if pretrained:
        choices.append(
            Choice("freeze_norms", True, "small batches give worse statistics than ImageNet; a step takes less time")
        )
    if pretrained and layers_are_known:
        choices.append(
            Choice("freeze_layers", FROZEN_LAYERS, "they detect edges, as on ImageNet; halves the time of a step")
        )
    if num_images < SMALL_SET:
        choices.append(Choice("mosaic", 0.7, f"fewer than {SMALL_SET} images: mosaic adds the most variation"))
    every = max((given_epochs or epochs) // SCORES, 1)
    if every > 1:
        choices.append(
            Choice("eval_every", every, f"about {SCORES} evaluations are enough for a curve, and each takes time")
        )
    share = images_per_class[boxes_per_class > 0] / max(num_images, 1)
    if len(share) > 1 and share.min() < RARE:
        choices.append(Choice("repeat_rare", RARE, f"the rarest class is in {share.min():.1%} of the images"))
    return choices
