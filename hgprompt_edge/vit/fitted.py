"""A backbone as a bundle's prompt and head know it."""

from __future__ import annotations

from dataclasses import replace

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.vit.backbone import Backbone


def as_fitted(bundle: Bundle, backbone: Backbone) -> Backbone:
    """Return the backbone with the preprocessing and the pooling that the bundle was fitted with.

    The one place where a bundle's pooling reaches a backbone: whatever takes both calls it first.

    Raises
    ------
    UserError
        The backbone cannot be pooled like that.
    """
    return replace(backbone, preprocessing=bundle.preprocessing).with_pooling(bundle.pooling)
