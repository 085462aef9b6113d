"""Which models are supported, and how others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from test_backbones_backbone import SMALL as SMALL
from test_backbones_backbone import TINY as TINY
from test_backbones_backbone import small as small
from timm.models import vision_transformer as vit
from torch import nn

from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.backbones.support import check_supported
from hgprompt_edge.errors import UserError


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vit_tinny_patch16_224", f"did you mean {TINY} or "),
        (f"{TINY}.augreg_in21", rf"did you mean {TINY}\.augreg_in21k"),
        ("?", r"neither a bundled backbone \(dinov2-small, tiny\) nor a timm id"),
        ("vit_small_patch16_36x1_224", "no weights are published .* `checkpoint`"),
    ],
)
def test_unknown_backbones_get_near_matches(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_backbone(spec)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"qkv_bias": False, "proj_bias": False},
        {"reg_tokens": 4, "no_embed_class": True},
        {"pre_norm": True, "act_layer": "quick_gelu"},
        {"act_layer": "gelu_tanh"},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg", "class_token": False},
        {"pos_embed": "none"},
        {"final_norm": False},
    ],
)
def test_plain_transformers_are_supported(options: dict[str, Any]) -> None:
    check_supported(small(**options))


class TwoPasses(vit.VisionTransformer):
    """Same modules, another computation."""

    def forward_features(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.norm(self.blocks(self.blocks(self._pos_embed(self.patch_embed(x)))))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "windows"),
    "hybrid": (lambda: timm.create_model("vit_tiny_r_s16_p8_224"), "one convolution .HybridEmbed"),
    "rope": (lambda: timm.create_model("eva02_tiny_patch14_224"), "rotary position"),
    "relative": (lambda: timm.create_model("vit_relpos_small_patch16_224"), "relative position"),
    "cnn": (lambda: timm.create_model("resnet18"), "not a vision transformer"),
    "distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "more than one class token",
    ),
    "map": (lambda: small(global_pool="map", class_token=False), "by attention"),
    "max": (lambda: small(global_pool="max"), "pools its tokens by 'max'"),
    "none": (lambda: small(global_pool=""), "pools its tokens by ''"),
    "average of all": (
        lambda: small(global_pool="avg", pool_include_prefix=True), "averages its class token",
    ),
    "parallel": (lambda: small(block_fn=vit.ParallelThingsBlock), "built from ParallelThingsBlock"),
    "scaling": (lambda: small(block_fn=vit.ParallelScalingBlock), "from ParallelScalingBlock"),
    "post-norm": (lambda: small(block_fn=vit.ResPostBlock), "built from ResPostBlock"),
    "differential": (lambda: small(attn_layer="diff"), "softmax attention .DiffAttention"),
    "scaled": (lambda: small(scale_attn_norm=True), "normalised Attention"),
    "glu": (lambda: timm_glu(), "an MLP of another kind"),
    "act": (lambda: small(act_layer="relu"), "activation ReLU"),
    "rms": (lambda: small(norm_layer="rmsnorm"), "normalises by RmsNorm"),
    "dynamic": (lambda: small(dynamic_img_size=True), "dynamic_img_size=False"),
    "channels": (lambda: small(in_chans=4), "takes 4 channels"),
    "oblong": (lambda: small(img_size=(16, 32)), "not square"),
    "subclass": (lambda: TwoPasses(**SMALL), "redefines `forward_features`"),
}  # fmt: skip


def timm_glu() -> nn.Module:
    return small(mlp_layer=timm.layers.GluMlp)


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_by_a_sentence(case: str) -> None:
    build, words = REFUSED[case]
    model = build()
    with pytest.raises(UserError, match=words) as caught:
        check_supported(model)
    assert "choose a plain timm VisionTransformer" in str(caught.value)


def test_refusals_name_the_backbone_before_anything_is_downloaded() -> None:
    with pytest.raises(UserError, match=r"^`backbone='swin_tiny_patch4_window7_224'`: Swin"):
        load_backbone("swin_tiny_patch4_window7_224")
