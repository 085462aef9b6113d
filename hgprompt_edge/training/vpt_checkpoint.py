"""Complete checkpoints of the VPT code: the prompt among a frozen backbone and a head.

The model of KMnP/vpt keeps its prompt as `enc.transformer.prompt_embeddings` and
`.deep_prompt_embeddings`, beside the backbone (`.embeddings.*`, `.encoder.*`) and `head.*`. What
else there is took part in training, and without it the prompt is another one: a projection of the
prompt (`prompt_proj`, the code's option `PROJECT`), keys and values (`deep_QKV_embeddings`, E2VPT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import FileError, MismatchError

SHALLOW_KEY, DEEP_KEY = "prompt_embeddings", "deep_prompt_embeddings"
FROZEN = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "encoder.encoder_norm.weight": "norm.weight",
    "encoder.encoder_norm.bias": "norm.bias",
    "encoder.layer.0.ffn.fc1.bias": "blocks.0.mlp.fc1.bias",
}
"""What is compared with the backbone, by its name in timm: little, and any training changes it."""


def prompt_of_checkpoint(
    path: Path, content: Mapping[str, Any], backbone: Backbone
) -> dict[str, Any] | None:
    """Take the prompt out of a complete checkpoint, or out of its state dict.

    Returns
    -------
    dict[str, Any] | None
        `shallow_prompt` and, of a deep prompt, `deep_prompt`, as `prompt_ep*.pth` has them; None
        where `content` is no such checkpoint.

    Raises
    ------
    UserError
        The model is more than its prompt, or its backbone is not `backbone`.
    """
    inner = content.get("model", content)
    if not isinstance(inner, Mapping):
        return None
    state = {str(key).removeprefix("module."): value for key, value in inner.items()}
    _check_no_keys_and_values(path, state)
    found = [key for key in state if key.split(".")[-1] == SHALLOW_KEY]
    if len(found) != 1:
        return None
    prefix = found[0].removesuffix(SHALLOW_KEY)
    prompts = {"shallow_prompt": state.pop(found[0])}
    if (deep := state.pop(prefix + DEEP_KEY, None)) is not None:
        prompts["deep_prompt"] = deep
    _check_nothing_else(path, state, prefix)
    _check_same_backbone(path, state, prefix, backbone)
    return prompts


def _check_no_keys_and_values(path: Path, state: Mapping[str, Any]) -> None:
    for key in state:
        if "QKV_embeddings" in key:
            raise FileError(
                path,
                f"{key!r} are key and value prompts of E2VPT, and without them its prompt is "
                "another one; hgedge cannot use them, give a prompt of VPT",
            )


def _check_nothing_else(path: Path, state: Mapping[str, Any], prefix: str) -> None:
    for key in state:
        name = key.removeprefix(prefix)
        if name.startswith("prompt_proj."):
            raise FileError(
                path,
                f"{key!r} projects the prompt (option PROJECT of the VPT code), and hgedge cannot "
                "use a projection; give a prompt that was trained without it",
            )
        if not re.match(r"(embeddings|encoder)\.", name) and not re.match(r"head\b", key):
            raise FileError(
                path,
                f"holds {key!r} beside prompt, backbone and head, and hgedge does not know what "
                "it does to the prompt; give a file that holds only the prompt",
            )


def _check_same_backbone(
    path: Path, state: Mapping[str, Any], prefix: str, backbone: Backbone
) -> None:
    """Hold the frozen weights in the file against the backbone's, where it has them."""
    own = backbone.model.state_dict()
    for theirs, ours in FROZEN.items():
        value = state.get(prefix + theirs)
        if not isinstance(value, torch.Tensor) or ours not in own:
            continue
        expected = own[ours].float().cpu()
        if value.numel() != expected.numel() or not torch.allclose(
            value.detach().float().reshape(expected.shape), expected, rtol=1e-3, atol=1e-4
        ):
            raise MismatchError(
                path,
                f"the backbone {backbone.name}",
                f"its {prefix}{theirs} differs",
                "name the backbone that the prompt was trained on, or its weights with "
                "`checkpoint`",
            )
