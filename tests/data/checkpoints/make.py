"""Make the golden checkpoints of this folder: tiny random models of the libraries that name them.

Each folder holds a checkpoint as its library writes it, and `expected.safetensors`: the class token
that the library's own code makes of `pixels.safetensors`, at the model's own size and at a smaller
one, where the library takes that. Run it once for each library, with that library importable:

    python make.py transformers          # once with 4.57 and once with 5.24
    python make.py dino CLONE            # of facebookresearch/dino at 7c446df
    python make.py dinov2 CLONE          # of facebookresearch/dinov2 at b8931f7
    python make.py deit CLONE            # of facebookresearch/deit at 7e160fe

No code of these libraries is in this repository.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
SIDE, SMALL, PATCH = 20, 12, 4
WIDTH, DEPTH, HEADS, HIDDEN = 16, 2, 4, 32


def randomize(model: nn.Module) -> Any:
    """Every parameter away from its neutral start, and exact in float16."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim >= 2 else 0.5
            one = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            parameter.copy_((one + scale * noise).half())
    return model.eval()


def write_expected(case: str, features: Callable[[Tensor], Tensor], *, resizes: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = {
        name: torch.randn(2, 3, side, side, generator=generator)
        for name, side in (("own", SIDE), ("small", SMALL))
    }
    save_file(pixels, HERE / "pixels.safetensors")
    with torch.inference_mode():
        tensors = {
            name: features(pixels[name]).clone() for name in pixels if resizes or name == "own"
        }
    save_file(tensors, HERE / case / "expected.safetensors")


# transformers

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make_transformers() -> None:
    import transformers as t

    version = int(t.__version__.partition(".")[0])
    size = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    size |= {"image_size": SIDE, "patch_size": PATCH}
    wide = {**size, "intermediate_size": HIDDEN}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 4}
    dino = {**size, "mlp_ratio": HIDDEN // WIDTH}
    mae = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1}
    mae |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 8}
    square = {"height": SIDE, "width": SIDE}
    crop = {"size": {"shortest_edge": 24}, "crop_size": square}
    clip = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    tower = t.CLIPVisionConfig(**wide, hidden_act="quick_gelu")
    whole = t.CLIPConfig(text_config=text, vision_config={**wide, "hidden_act": "gelu"})
    vit = t.ViTImageProcessor(size=square)
    bit = t.BitImageProcessor(**crop, **IMAGENET)
    tanh = t.ViTConfig(**wide, hidden_act="gelu_pytorch_tanh", layer_norm_eps=0.05)
    registers = t.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)
    cases = [
        ("vit", t.ViTForImageClassification(t.ViTConfig(**wide)), vit),
        ("vit-tanh", t.ViTModel(tanh), vit),
        ("mae", t.ViTMAEForPreTraining(t.ViTMAEConfig(**wide, **mae)), vit),
        ("dinov2", t.Dinov2Model(t.Dinov2Config(**dino)), bit),
        ("registers", t.Dinov2WithRegistersForImageClassification(registers), bit),
        ("clip-tower", t.CLIPVisionModel(tower), clip),
        ("clip-gelu", t.CLIPModel(whole), clip),
    ]
    original = {} if version < 5 else {"save_original_format": False}
    for name, model, processor in cases:
        case = f"transformers-{version}-{name}"
        randomize(model).half().save_pretrained(HERE / case, **original)
        processor.save_pretrained(HERE / case)
        model.float()
        if name == "mae":  # its own forward pass hides patches at random
            encoder = t.ViTModel(t.ViTConfig(**wide), add_pooling_layer=False).eval()
            encoder.load_state_dict(model.vit.state_dict())
            model = encoder
        write_expected(case, partial(_of_transformers, model), resizes=True)


def _of_transformers(model: Any, pixels: Tensor) -> Tensor:
    if "CLIP" in type(model).__name__:
        vision = getattr(model, "vision_model", model)
        return vision(pixels, interpolate_pos_encoding=True).pooler_output
    inner = [n for n in ("vit", "dinov2_with_registers") if hasattr(model, n)]
    body = getattr(model, inner[0]) if inner else model
    resize = {} if "Dinov2" in type(body).__name__ else {"interpolate_pos_encoding": True}
    return body(pixels, **resize).last_hidden_state[:, 0]


# The original code

SIZE = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
SIZE |= {"mlp_ratio": HIDDEN / WIDTH, "qkv_bias": True}


def _save(case: str, content: Any) -> None:
    (HERE / case).mkdir(exist_ok=True)
    torch.save(content, HERE / case / f"{case.removeprefix('original-')}.pth")


def _half(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.half() for key, value in model.state_dict().items()}


def make_dino() -> None:
    import vision_transformer as vits

    norm = partial(nn.LayerNorm, eps=1e-6)
    model = randomize(vits.VisionTransformer(img_size=[SIDE], norm_layer=norm, **SIZE))
    _save("original-dino", _half(model))
    write_expected("original-dino", model, resizes=True)
    head = vits.DINOHead(WIDTH, 8, hidden_dim=8, bottleneck_dim=4)
    teacher = {f"backbone.{key}": value for key, value in _half(model).items()}
    teacher |= {f"head.{key}": value for key, value in _half(head).items()}
    # The student differs, so that a test sees which of the two was taken.
    student = {f"module.{key}": -value for key, value in teacher.items()}
    _save("original-dino-training", {"student": student, "teacher": teacher, "epoch": 7})
    write_expected("original-dino-training", model, resizes=True)


def make_dinov2() -> None:
    from dinov2.models.vision_transformer import DinoVisionTransformer

    registers = {"block_chunks": 0, "num_register_tokens": 3}
    registers |= {"interpolate_antialias": True, "interpolate_offset": 0.0}  # as published
    build = partial(DinoVisionTransformer, img_size=SIDE, init_values=1.0, **SIZE)
    for case, options in (
        ("original-dinov2", {"block_chunks": 0}),
        ("original-dinov2-registers", registers),
        ("original-dinov2-training", {"block_chunks": 2}),
    ):
        model = randomize(build(**options))
        content = _half(model)
        if case.endswith("training"):
            teacher = {f"backbone.{key}": value for key, value in content.items()}
            teacher["dino_head.mlp.0.weight"] = torch.zeros(8, WIDTH)
            content = {"teacher": teacher}
        _save(case, content)
        write_expected(case, model, resizes=True)


def make_deit() -> None:
    # Names that timm moved after this code was written.
    import timm.layers
    import timm.models

    sys.modules.setdefault("timm.models.layers", timm.layers)
    registry = types.ModuleType("timm.models.registry")
    registry.register_model = lambda build: build
    sys.modules["timm.models.registry"] = registry
    models, models_v2 = import_module("models"), import_module("models_v2")

    norm = partial(nn.LayerNorm, eps=1e-6)
    options = {"img_size": SIDE, "num_classes": 5, "norm_layer": norm, **SIZE}
    deit = randomize(models.VisionTransformer(**options))
    deit3 = randomize(
        models_v2.vit_models(block_layers=models_v2.Layer_scale_init_Block, **options)
    )
    _save("original-deit", {"model": _half(deit)})
    write_expected("original-deit", lambda x: deit.forward_features(x)[:, 0], resizes=False)
    _save("original-deit3", {"model": _half(deit3)})
    write_expected("original-deit3", deit3.forward_features, resizes=False)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
    globals()[f"make_{sys.argv[1]}"]()
