"""Do bank, backbone and task fit each other? Asked before any work is done."""

from __future__ import annotations

import numpy as np

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.errors import FileError, MismatchError, ParameterError
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.prompt import SHALLOW


def check_bank(bank: PromptBank, backbone: Backbone) -> None:
    """Refuse a bank that was not made for `backbone`.

    Raises
    ------
    UserError
        Empty bank, other weights, image size, width or depth.
    """
    if not bank.prompts:
        raise ParameterError(
            "sources", None, "the bank is empty; name a folder that holds prompt files"
        )
    layers, _, width = bank.prompts[0].tokens.shape
    use = f"use the backbone {bank.backbone}"
    if bank.image_size != backbone.image_size:
        raise _misfit(
            backbone,
            f"its prompts are for images of {bank.image_size} px, not {backbone.image_size}",
            f"use `image_size={bank.image_size}`, or prompts that were trained at "
            f"{backbone.image_size} px",
        )
    if width != backbone.embed_dim:
        raise _misfit(backbone, f"its prompts have width {width}, not {backbone.embed_dim}", use)
    if layers not in (1, backbone.depth):
        raise _misfit(backbone, f"its prompts have {layers} layers, not {backbone.depth}", use)
    check_same_weights(bank, backbone)


def check_folded(bank: PromptBank, folded: int) -> None:
    """Refuse several folded prompts of a shallow bank.

    Raises
    ------
    ParameterError
        More than one was asked for.
    """
    if folded > 1 and bank.mode == SHALLOW:
        raise ParameterError(
            "folded",
            None,
            "several folded prompts need deep prompts, and these are shallow; take 1",
        )


def check_same_weights(bank: PromptBank, backbone: Backbone) -> None:
    """Refuse a bank that was trained on other weights than those of `backbone`.

    Raises
    ------
    MismatchError
        They are others.
    """
    if bank.backbone_sha256 != backbone.sha256:
        advice = f"use the backbone {bank.backbone}"
        if bank.backbone == backbone.name:
            advice = "give its weights with `checkpoint`"
        raise _misfit(
            backbone,
            f"its prompts were trained on the weights {bank.backbone_sha256[:12]} of "
            f"{bank.backbone}, not {backbone.sha256[:12]}",
            f"{advice}, or train prompts for this one",
        )


def _misfit(backbone: Backbone, difference: str, advice: str) -> MismatchError:
    return MismatchError("the prompt bank", f"the backbone {backbone.name}", difference, advice)


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
        raise ParameterError(
            "sources",
            None,
            f"all prompts are of the family of the task {task.name} ('{task.family}'), so none is "
            "left; add a source of another family",
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
        raise FileError(task.data or task.name, "no validation images to choose by; add some")


def check_same_images(bundle: Bundle, task: Task) -> None:
    """Refuse other images than a bundle was fitted on: its validation images could train.

    Raises
    ------
    UserError
        One of the images, their labels or their split differs.
    """
    if bundle.split_digest == task.digest:
        return
    fitted_on = f"it was fitted on other images{f' ({bundle.data})' if bundle.data else ''}"
    raise MismatchError(
        f"the bundle of {bundle.task}",
        task.data or task.name,
        "the images have changed since it was fitted"
        if task.data and task.data == bundle.data
        else fitted_on,
        "run `hgedge fit` on these images first",
    )


def can_train(task: Task) -> bool:
    """Whether a prompt can be trained on the task: a class has two training images."""
    return bool(np.bincount(task.train.labels).max(initial=0) > 1)


def check_batch(task: Task, batch_size: int) -> None:
    """Refuse batches in which a head could not tell the classes apart.

    A step scores each image by a head fitted on others of its batch; an image whose class has no
    other image there says nothing.

    Raises
    ------
    UserError
        More classes than images a batch, or no class with two training images.
    """
    if not can_train(task):
        raise FileError(
            task.data or task.name,
            "no class has two training images, so that no prompt can be trained on them; add "
            "images",
        )
    classes = len(np.unique(task.train.labels))
    if batch_size < classes:
        raise ParameterError(
            "batch_size",
            batch_size,
            f"fewer images per step than the {classes} classes of {task.name}; use {2 * classes} "
            "or more",
        )
