"""The norm behind which the head stands: exported graphs have its scale and bias in the head."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

Floats = npt.NDArray[np.float32]


def last_norm(model: VisionTransformer) -> nn.Module:
    """Norm behind which the head stands; an Identity where there is none."""
    norms = [norm for norm in (model.norm, model.fc_norm) if isinstance(norm, nn.LayerNorm)]
    return norms[-1] if norms else nn.Identity()


def before_affine(features: Floats, model: VisionTransformer) -> Floats:
    """Features `[n, D]` or `[n, 2 D]` without the scale and bias of the last norm.

    So an exported model gives them.
    """
    norm = last_norm(model)
    if not isinstance(norm, nn.LayerNorm):
        return features
    parts = features.shape[1] // norm.normalized_shape[-1]
    shift, scale = (
        default if tensor is None else np.tile(tensor.detach().cpu().float().numpy(), parts)
        for tensor, default in ((norm.bias, np.float32(0)), (norm.weight, np.float32(1)))
    )
    return cast("Floats", ((features - shift) / scale).astype(np.float32))
