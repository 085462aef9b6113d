"""The backbone that a bundle was fitted on, as its prompt and head know it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.errors import FileError, MismatchError


def backbone_of(bundle: Bundle, checkpoint: Path | None = None) -> Backbone:
    """Load the backbone that a bundle was fitted on, which it remembers, and its preprocessing.

    Parameters
    ----------
    checkpoint
        The file with its weights, where it is not where it was.

    Raises
    ------
    UserError
        As for `load_backbone`, or the weights are not those of the bundle.
    """
    if checkpoint is None and bundle.checkpoint:
        checkpoint = Path(bundle.checkpoint)
        if not checkpoint.is_file():
            raise FileError(
                checkpoint,
                f"no such file; the bundle of {bundle.task} was fitted on its weights: name the "
                "file with `checkpoint`",
            )
    backbone = load_backbone(
        bundle.backbone, checkpoint=checkpoint, image_size=bundle.preprocessing.image_size
    )
    _check_same(bundle, backbone)
    return replace(backbone, preprocessing=bundle.preprocessing)


def as_fitted(bundle: Bundle, backbone: Backbone) -> Backbone:
    """Return the backbone with the preprocessing and the pooling that the bundle was fitted with.

    The one place where a bundle's pooling reaches a backbone: whatever takes both calls it first.

    Raises
    ------
    UserError
        The backbone has other weights than the bundle was fitted on, or cannot be pooled like that.
    """
    _check_same(bundle, backbone)
    return replace(backbone, preprocessing=bundle.preprocessing).with_pooling(bundle.pooling)


def _check_same(bundle: Bundle, backbone: Backbone) -> None:
    if bundle.backbone_sha256 != backbone.sha256:
        raise MismatchError(
            f"the bundle of {bundle.task}",
            f"the backbone {backbone.name}",
            f"it was fitted on the weights {bundle.backbone_sha256[:12]} of {bundle.backbone}, "
            f"not {backbone.sha256[:12]}",
            "give its weights with `checkpoint`",
        )
