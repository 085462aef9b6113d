"""The names that checkpoints of others give to the weights of a plain vision transformer.

A layout is a table: for every weight by timm's name, the name or names that hold it in the file.
Queries, keys and values that a file keeps apart are joined in this order. What a file holds beyond
its table must be on the list of what may be left out, with the reason; `translate.py` reads by
these tables and refuses the rest.

The names were taken from these libraries: timm 1.0, transformers 4.57 and 5.24 (which writes the
names of version 4 to files and has new ones in memory), facebookresearch/dino, dinov2 and deit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Names = tuple[str, ...]
"""Of one weight in a file; several are joined along the first axis."""


@dataclass(frozen=True)
class Layout:
    """How one library names the weights.

    Attributes
    ----------
    name
        For messages.
    marks
        Names, without a prefix, by which the layout is recognised; all must be there.
    prefixes
        What may stand before each name, the empty one included.
    outer, block
        timm's name to the names in the file; in those of `block` a `#` stands for the number of
        the block, and timm's are without `blocks.#.`.
    optional
        Groups of timm's names; of each group all are there, in all blocks, or none.
    left_out
        Pattern of names under the prefix that are not needed, and what they are.
    left_out_beside
        The same for names without the prefix, as a classifier beside `vit.`.
    model_types
        `model_type` of the `config.json` that belongs to it.
    activation
        Of the MLP, where no `config.json` says; None: models of this layout differ.
    eps
        Of the norms, where no `config.json` says.
    family
        timm id whose preprocessing all published models of the layout share; None: they differ.
    flat_tokens
        Class token `[D]` and position embeddings `[P, D]`, without the axis of the batch.
    registers_without_position
        The class token has a position embedding, register tokens have none.
    """

    name: str
    marks: tuple[str, ...]
    outer: Mapping[str, Names]
    block: Mapping[str, Names]
    prefixes: tuple[str, ...] = ("",)
    optional: tuple[tuple[str, ...], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    left_out_beside: Mapping[str, str] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    activation: str | None = "gelu"
    eps: float = 1e-6
    family: str | None = None
    flat_tokens: bool = False
    registers_without_position: bool = False


def _linear(timm_name: str, *names: str) -> dict[str, Names]:
    """Weight and bias of one module."""
    return {
        f"{timm_name}.{part}": tuple(f"{name}.{part}" for name in names)
        for part in ("weight", "bias")
    }


def _same(*names: str) -> dict[str, Names]:
    return {name: (name,) for name in names}


# timm, and the code of Meta that grew from it

_BLOCK = {
    **_linear("norm1", "blocks.#.norm1"),
    **_linear("attn.qkv", "blocks.#.attn.qkv"),
    **_linear("attn.proj", "blocks.#.attn.proj"),
    **_linear("norm2", "blocks.#.norm2"),
    **_linear("mlp.fc1", "blocks.#.mlp.fc1"),
    **_linear("mlp.fc2", "blocks.#.mlp.fc2"),
}
_OUTER = {
    **_same("cls_token", "pos_embed"),
    **_linear("patch_embed.proj", "patch_embed.proj"),
    **_linear("norm", "norm"),
}
_QK_NORM = {**_linear("attn.q_norm", "blocks.#.attn.q_norm")} | {
    **_linear("attn.k_norm", "blocks.#.attn.k_norm")
}
_LAYER_SCALE = {"ls1.gamma": ("blocks.#.ls1.gamma",), "ls2.gamma": ("blocks.#.ls2.gamma",)}
_META_PREFIXES = ("", "module.", "backbone.", "module.backbone.")
_META_HEADS = {
    r"(module\.)?(dino_|ibot_)?head\..*": "the projection head of its training",
}
_HEAD = {r"head\..*": "the classifier"}

TIMM = Layout(
    name="timm",
    marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    prefixes=_META_PREFIXES,
    outer={
        **_OUTER,
        **_same("reg_token"),
        **_linear("norm_pre", "norm_pre"),
        **_linear("fc_norm", "fc_norm"),
    },
    block={**_BLOCK, **_QK_NORM, **_LAYER_SCALE},
    optional=(
        ("cls_token",),
        ("reg_token",),
        ("pos_embed",),
        ("patch_embed.proj.bias",),
        ("norm_pre.weight", "norm_pre.bias"),
        ("norm.weight", "norm.bias"),
        ("fc_norm.weight", "fc_norm.bias"),
        ("attn.qkv.bias",),
        ("attn.proj.bias",),
        tuple(_QK_NORM),
        tuple(_LAYER_SCALE),
    ),
    left_out=_HEAD,
    left_out_beside=_META_HEADS,
)
DINOV2 = Layout(
    name="original DINOv2",
    marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "mask_token"),
    prefixes=_META_PREFIXES,
    outer={**_OUTER, "reg_token": ("register_tokens",)},
    block={**_BLOCK, **_LAYER_SCALE},
    optional=(("reg_token",),),
    left_out={"mask_token": "the token for masked patches"},
    left_out_beside=_META_HEADS,
    family="vit_small_patch14_dinov2.lvd142m",
    registers_without_position=True,
)
DEIT3 = Layout(
    name="original DeiT III",
    marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1"),
    outer=_OUTER,
    block={**_BLOCK, "ls1.gamma": ("blocks.#.gamma_1",), "ls2.gamma": ("blocks.#.gamma_2",)},
    left_out=_HEAD,
    family="deit3_small_patch16_224.fb_in1k",
)

# transformers

_HF_OUTER = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    **_linear("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    **_linear("norm", "layernorm"),
}
_HF_LEFT_OUT = {
    r"pooler\..*": "the pooler",
    r"embeddings\.mask_token": "the token for masked patches",
}
_HF_BESIDE = {
    r"classifier\..*": "the classifier",
    r"decoder\..*": "the decoder of its training",
}
_HF_BIASES = ("attn.qkv.bias",)


def _split_attention(before: str, out: str, *names: str) -> dict[str, Names]:
    return {
        **_linear("attn.qkv", *(f"{before}.{name}" for name in names)),
        **_linear("attn.proj", out),
    }


def _attention_4(block: str) -> dict[str, Names]:
    inner = f"{block}.attention.attention"
    return _split_attention(inner, f"{block}.attention.output.dense", "query", "key", "value")


def _attention_5(block: str) -> dict[str, Names]:
    inner = f"{block}.attention"
    return _split_attention(inner, f"{inner}.o_proj", "q_proj", "k_proj", "v_proj")


def _vit(version: int, block: str, fc1: str, fc2: str) -> Layout:
    attention = _attention_4(block) if version == 4 else _attention_5(block)
    table = {
        **attention,
        **_linear("norm1", f"{block}.layernorm_before"),
        **_linear("norm2", f"{block}.layernorm_after"),
        **_linear("mlp.fc1", f"{block}.{fc1}"),
        **_linear("mlp.fc2", f"{block}.{fc2}"),
    }
    return Layout(
        name=f"transformers ViT (names of version {version})",
        marks=(table["norm1.weight"][0].replace("#", "0"),),
        prefixes=("", "vit.", "deit."),
        outer=_HF_OUTER,
        block=table,
        optional=(_HF_BIASES,),
        left_out=_HF_LEFT_OUT,
        left_out_beside=_HF_BESIDE,
        model_types=("vit", "deit", "vit_mae", "vit_msn"),
        eps=1e-12,
    )


def _hf_dinov2(version: int) -> Layout:
    block = "encoder.layer.#"
    table = {
        **(_attention_4(block) if version == 4 else _attention_5(block)),
        **_linear("norm1", f"{block}.norm1"),
        **_linear("norm2", f"{block}.norm2"),
        **_linear("mlp.fc1", f"{block}.mlp.fc1"),
        **_linear("mlp.fc2", f"{block}.mlp.fc2"),
        "ls1.gamma": (f"{block}.layer_scale1.lambda1",),
        "ls2.gamma": (f"{block}.layer_scale2.lambda1",),
    }
    marks = (table["norm1.weight"][0], table["attn.qkv.weight"][0])
    return Layout(
        name=f"transformers DINOv2 (names of version {version})",
        marks=tuple(mark.replace("#", "0") for mark in marks),
        prefixes=("", "dinov2.", "dinov2_with_registers."),
        outer={**_HF_OUTER, "reg_token": ("embeddings.register_tokens",)},
        block=table,
        optional=(_HF_BIASES, ("reg_token",)),
        left_out=_HF_LEFT_OUT,
        left_out_beside=_HF_BESIDE,
        model_types=("dinov2", "dinov2_with_registers"),
        family="vit_small_patch14_dinov2.lvd142m",
        registers_without_position=True,
    )


_CLIP_BLOCK = "encoder.layers.#"
_CLIP_PARTS = ("q_proj", "k_proj", "v_proj")
CLIP = Layout(
    name="transformers CLIP",
    marks=("embeddings.class_embedding",),
    prefixes=("vision_model.", ""),
    outer={
        "cls_token": ("embeddings.class_embedding",),
        "pos_embed": ("embeddings.position_embedding.weight",),
        "patch_embed.proj.weight": ("embeddings.patch_embedding.weight",),
        **_linear("norm_pre", "pre_layrnorm"),  # the library's spelling
        **_linear("norm", "post_layernorm"),
    },
    block={
        **_split_attention(
            f"{_CLIP_BLOCK}.self_attn", f"{_CLIP_BLOCK}.self_attn.out_proj", *_CLIP_PARTS
        ),
        **_linear("norm1", f"{_CLIP_BLOCK}.layer_norm1"),
        **_linear("norm2", f"{_CLIP_BLOCK}.layer_norm2"),
        **_linear("mlp.fc1", f"{_CLIP_BLOCK}.mlp.fc1"),
        **_linear("mlp.fc2", f"{_CLIP_BLOCK}.mlp.fc2"),
    },
    left_out={r"embeddings\.position_ids": "numbers of positions"},
    left_out_beside={
        r"text_model\..*": "the text tower",
        r"(visual|text)_projection\.weight": "the projection to what text and images share",
        r"logit_scale": "the temperature",
        r"classifier\..*": "the classifier",
    },
    model_types=("clip", "clip_vision_model"),
    activation=None,  # OpenAI's models have quick_gelu, those of others gelu
    eps=1e-5,
    flat_tokens=True,
)

LAYOUTS = (
    DINOV2,
    DEIT3,
    TIMM,
    _vit(4, "encoder.layer.#", "intermediate.dense", "output.dense"),
    _vit(5, "layers.#", "mlp.fc1", "mlp.fc2"),
    _hf_dinov2(4),
    _hf_dinov2(5),
    CLIP,
)
"""All that are read; of two that fit the first is taken."""

NOT_COVERED = {
    r"(.*\.)?(dist_token|head_dist\..*|distillation_token|distillation_classifier\..*)": (
        "has a distillation token beside its class token, which is not supported; take the model "
        "of the family without distillation"
    ),
    r".*\.mlp\.(w12|w3|weights_in|weights_out|gate_proj|up_proj|down_proj)\..*": (
        "has gated MLPs (SwiGLU), which are not supported; take a smaller model of the family"
    ),
    r"attn_pool\..*": "pools its tokens by attention, which is not supported; take another model",
}
"""Names of models that the prompted forward pass does not cover, and the sentence for them."""
