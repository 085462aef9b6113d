"""Do bank, backbone and task fit each other? Asked before any work is done."""

from __future__ import annotations

import numpy as np

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts.bank import PromptBank


def check_bank(bank: PromptBank, backbone: Backbone) -> None:
    """Refuse a bank that was not made for `backbone`.

    Raises
    ------
    UserError
        Empty bank, other weights, image size, width or depth.
    """
    if not bank.prompts:
        raise UserError("--sources: the bank is empty; name a folder that holds prompt files")
    layers, _, width = bank.prompts[0].tokens.shape
    if bank.image_size != backbone.image_size:
        raise UserError(
            f"--sources: the prompts are for images of {bank.image_size} px, --backbone "
            f"{backbone.name} takes {backbone.image_size} px; use --image-size {bank.image_size}, "
            f"or prompts that were trained at {backbone.image_size} px"
        )
    if width != backbone.embed_dim:
        raise UserError(
            f"--sources: the prompts are {width} wide, --backbone {backbone.name} is "
            f"{backbone.embed_dim} wide; use the backbone {bank.backbone}"
        )
    if layers not in (1, backbone.depth):
        raise UserError(
            f"--sources: the prompts have {layers} layers, --backbone {backbone.name} has "
            f"{backbone.depth} blocks; use the backbone {bank.backbone}"
        )
    if bank.backbone_sha256 != backbone.sha256:
        raise UserError(
            f"--sources: the prompts were trained on other weights ({bank.backbone}, "
            f"{bank.backbone_sha256[:12]}) than those of --backbone {backbone.name} "
            f"({backbone.sha256[:12]}); use that backbone or train prompts for this one"
        )


def leave_out_family(bank: PromptBank, task: Task) -> tuple[PromptBank, tuple[str, ...]]:
    """Split off the sources of the task's family: `(the others, their names)`.

    Raises
    ------
    UserError
        No source is left.
    """
    kept = bank.without_family(task.family)
    left_out = tuple(name for name in bank.names if name not in kept.names)
    if not kept.prompts:
        raise UserError(
            f"--sources: every prompt is of the family '{task.family}', as the task {task.name} "
            "is; add a source of another family"
        )
    return kept, left_out


def check_validation(task: Task) -> None:
    """Refuse a task without images to choose by.

    Raises
    ------
    UserError
        Its validation part is empty.
    """
    if not len(task.validation):
        raise UserError(f"--task {task.name}: no validation images to choose by; add some")


def check_same_images(bundle: Bundle, task: Task) -> None:
    """Refuse other images than a bundle was fitted on: its validation images could train.

    Raises
    ------
    UserError
        One of the images, their labels or their split differs.
    """
    if bundle.split_digest == task.digest:
        return
    if task.data and task.data == bundle.data:
        what = f"{task.data or task.name}: the images have changed since"
    else:
        what = f"{task.data or task.name}: these are not the images on which"
    raise UserError(
        f"{what} the bundle of {bundle.task} was fitted"
        + (f" (on {bundle.data})" if bundle.data and task.data != bundle.data else "")
        + "; run `hgedge fit` on them first"
    )


def check_batch(task: Task, batch_size: int) -> None:
    """Refuse batches in which a head could not tell the classes apart.

    A step scores each image by a head fitted on others of its batch; an image whose class has no
    other image there says nothing.

    Raises
    ------
    UserError
        More classes than images a batch, or no class with two training images.
    """
    counts = np.bincount(task.train.labels)
    if counts.max(initial=0) < 2:
        raise UserError(
            f"--task {task.name}: no class has two training images, so that no prompt can be "
            "trained on them; add images"
        )
    classes = int((counts > 0).sum())
    if batch_size < classes:
        raise UserError(
            f"--batch-size {batch_size}: fewer images a step than the {classes} classes of "
            f"{task.name}, so that most images could not be scored; use {2 * classes} or more"
        )
