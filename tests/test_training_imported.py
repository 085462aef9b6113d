"""Prompts of others: both layouts come back exactly, everything else is refused in one sentence."""

from __future__ import annotations

import fractions
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_vits import make_backbone

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts.prompt import Prompt, read_prompt, write_prompt
from hgprompt_edge.training.import_prompt import NORMALIZATIONS, import_prompt

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
"""For the test backbone: 2 blocks, 32 wide."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def vpt(tokens: np.ndarray = TOKENS) -> dict[str, Any]:
    return {"shallow_prompt": tokens[:1], "deep_prompt": tokens[1:]}


def saved(path: Path, content: object, **options: Any) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        content = {key: torch.as_tensor(value).contiguous() for key, value in content.items()}
        safetensors.torch.save_file(content, path, **options)
    else:
        torch.save(content, path, **options)
    return path


def imported(path: Path, backbone: Backbone, normalization: str = "imagenet") -> Prompt:
    return import_prompt(path, backbone, NORMALIZATIONS.get(normalization), name="pets")


LAYOUTS: dict[str, Callable[[], dict[Any, Any]]] = {
    "vpt": vpt,
    "vpt in float64": lambda: vpt(TOKENS.astype(np.float64)),
    "vpt as tensors": lambda: {k: torch.nn.Parameter(torch.tensor(v)) for k, v in vpt().items()},
    "layers": lambda: {f"layers.{i}.prompt": layer for i, layer in enumerate(TOKENS)},
    "from one on": lambda: {f"prompt{i + 1}": layer[None] for i, layer in enumerate(TOKENS)},
    "input and numbers": lambda: {"deep_prompt.1": TOKENS[1], "input": TOKENS[0]},
    "numbers alone": lambda: dict(enumerate(TOKENS)),
}


def complete(backbone: Backbone, prefix: str = "enc.transformer.") -> dict[str, Any]:
    """Everything that the VPT code's model holds, as far as anybody reads it."""
    own = backbone.model.state_dict()
    return {
        f"{prefix}prompt_embeddings": torch.tensor(TOKENS[:1]),
        f"{prefix}deep_prompt_embeddings": torch.tensor(TOKENS[1:]),
        f"{prefix}embeddings.cls_token": own["cls_token"],
        f"{prefix}embeddings.patch_embeddings.weight": own["patch_embed.proj.weight"],
        f"{prefix}encoder.encoder_norm.weight": own["norm.weight"],
        f"{prefix}encoder.layer.0.attn.query.weight": torch.ones(32, 32),
        f"{prefix}encoder.layer.0.ffn.fc1.bias": own["blocks.0.mlp.fc1.bias"],
        "head.last_layer.weight": torch.ones(5, 32),
        "head.last_layer.bias": torch.ones(5),
    }


CHECKPOINTS: dict[str, Callable[[Backbone], dict[str, Any]]] = {
    "checkpoint": lambda b: {"model": complete(b), "iteration": 3},
    "several devices": lambda b: {"model": {f"module.{k}": v for k, v in complete(b).items()}},
    "state dict": complete,
    "prompt and head": lambda b: {k: v for k, v in complete(b).items() if ".e" not in k},
    "another model around it": lambda b: complete(b, ""),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_prompt_is_taken_out_of_a_complete_checkpoint(
    name: str, tmp_path: Path, backbone: Backbone
) -> None:
    content = CHECKPOINTS[name](backbone)
    suffixes = [".pth"] if "model" in content else [".pth", ".safetensors"]
    for suffix in suffixes:
        prompt = imported(saved(tmp_path / f"a{suffix}", content), backbone)
        np.testing.assert_array_equal(prompt.tokens, TOKENS)
    shallow = {k: v for k, v in complete(backbone).items() if "deep" not in k}
    prompt = imported(saved(tmp_path / "shallow.pth", shallow), backbone)
    np.testing.assert_array_equal(prompt.tokens, TOKENS[:1])


NO_CHECKPOINTS = {
    "prompt_proj.weight": "'enc.transformer.prompt_proj.weight' projects the prompt (option",
    "encoder.layer.1.attn.deep_QKV_embeddings": "are key and value prompts of E2VPT",
    "prompt_gate": "beside prompt, backbone and head, and hgedge does not know",
    "encoder.layer.0.ffn.fc1.bias": "encoder.layer.0.ffn.fc1.bias differs",
    "embeddings.patch_embeddings.weight": "patch_embeddings.weight differs",
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_a_checkpoint_that_is_more_than_its_prompt_is_refused(
    name: str, tmp_path: Path, backbone: Backbone
) -> None:
    content = {**complete(backbone), f"enc.transformer.{name}": torch.ones(3, 8)}
    with pytest.raises(UserError) as caught:
        imported(saved(tmp_path / "a.pth", {"model": content}), backbone)
    assert NO_CHECKPOINTS[name] in str(caught.value)
    with pytest.raises(UserError, match="are key and value prompts of E2VPT, and without them"):
        imported(saved(tmp_path / "pair.pth", {**vpt(), "deep_QKV_embeddings": TOKENS}), backbone)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_come_back_exactly(
    name: str, suffix: str, tmp_path: Path, backbone: Backbone
) -> None:
    content = LAYOUTS[name]()
    if suffix == ".safetensors":
        content = {str(key): value for key, value in content.items()}
    prompt = imported(saved(tmp_path / f"foreign{suffix}", content), backbone)
    np.testing.assert_array_equal(prompt.tokens, TOKENS)
    assert prompt.tokens.dtype == np.float32
    assert (prompt.mode, prompt.init_seed) == ("deep", None)
    assert (prompt.backbone_sha256, prompt.image_size) == (backbone.sha256, backbone.image_size)
    assert prompt.recipe["imported"] == f"foreign{suffix}"
    write_prompt(tmp_path / "pets.safetensors", prompt)
    np.testing.assert_array_equal(read_prompt(tmp_path / "pets.safetensors").tokens, TOKENS)


def test_twelve_layers_are_ordered_as_numbers(tmp_path: Path, backbone: Backbone) -> None:
    tokens = np.random.default_rng(0).normal(size=(12, 5, 32)).astype(np.float32)
    path = saved(tmp_path / "a.pth", {f"prompt.{i}": tokens[i] for i in reversed(range(12))})
    deep = make_backbone("tanh gelu")
    deep.model.blocks = torch.nn.Sequential(*[deep.model.blocks[0]] * 12)
    np.testing.assert_array_equal(imported(path, deep).tokens, tokens)


@pytest.mark.parametrize(
    "content",
    [
        {"shallow_prompt": TOKENS[:1]},
        {"shallow_prompt": TOKENS[:1], "deep_prompt": None},
        {"prompt": TOKENS[0]},
        {"layers.0.prompt": TOKENS[0]},
    ],
)
def test_the_first_block_alone_makes_a_shallow_prompt(
    content: dict[str, Any], tmp_path: Path, backbone: Backbone
) -> None:
    prompt = imported(saved(tmp_path / "a.pth", content), backbone)
    assert prompt.mode == "shallow"
    np.testing.assert_array_equal(prompt.tokens, TOKENS[:1])


def test_only_a_normalization_that_is_not_the_backbones_is_recorded(
    tmp_path: Path, backbone: Backbone
) -> None:
    path = saved(tmp_path / "a.pth", vpt())
    own = backbone.normalized(NORMALIZATIONS["imagenet"])
    assert (
        imported(path, backbone.normalized(NORMALIZATIONS["inception"])).normalization
        == (NORMALIZATIONS["imagenet"])
    )
    assert imported(path, own).normalization is None
    assert imported(path, own, "backbone").normalization is None


@pytest.mark.parametrize("old", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickles_of_numpy_1_and_2_are_read(old: bytes, tmp_path: Path, backbone: Backbone) -> None:
    with zipfile.ZipFile(saved(tmp_path / "new.pth", vpt())) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for name, data in parts.items():
            for known in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
                data = data.replace(known, old)
            target.writestr(name, data)
    np.testing.assert_array_equal(imported(tmp_path / "old.pth", backbone).tokens, TOKENS)


def test_files_from_before_torch_1_6_are_read(tmp_path: Path, backbone: Backbone) -> None:
    path = saved(tmp_path / "a.pth", vpt(), _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(imported(path, backbone).tokens, TOKENS)


def test_half_precision_is_widened(tmp_path: Path, backbone: Backbone) -> None:
    half = {name: torch.tensor(value).bfloat16() for name, value in vpt().items()}
    prompt = imported(saved(tmp_path / "a.safetensors", half), backbone)
    np.testing.assert_allclose(prompt.tokens, TOKENS, rtol=1e-2)


class Calls:
    """Pickled, it asks for a call of `function` when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def with_value(value: float) -> np.ndarray:
    tokens = TOKENS.astype(np.float64)
    tokens[1, 2, 3] = value
    return tokens


BAD_CONTENTS: dict[str, tuple[object, str]] = {
    "a command": (
        {"shallow_prompt": Calls(os.system, "touch owned")},
        "asks to call posix.system, ",
    ),
    "another class": ({"a": Calls(fractions.Fraction, 1)}, "asks to call fractions.Fraction, "),
    "numpy's file reader": ({"a": Calls(np.load, "a.npy")}, "asks to call numpy.load, "),
    "objects": ({"shallow_prompt": np.array([[None]])}, "asks to call numpy.dtypes.ObjectDType, "),
    "integers": ({"shallow_prompt": torch.ones(5, 32, dtype=torch.int64)}, "got torch.int64"),
    "a list": ([TOKENS], "holds a list"),
    "text": ({"shallow_prompt": "tokens"}, "must be an array of floats, got str"),
    "nothing": ({}, "but nothing; give a file that holds only the prompt"),
    "a whole model": (
        {"model": {"a": TOKENS}, "optimizer": {}, "epoch": 3},
        "but 'model', 'optimizer', 'epoch'; give",
    ),
    "a head beside it": ({**vpt(), "head": TOKENS[0]}, "'deep_prompt', 'head'; give"),
    "a backbone": (
        {f"blocks.{i}.{part}": TOKENS[0] for i in range(4) for part in ("norm1", "attn")},
        "'blocks.2.norm1' and 3 more; give",
    ),
    "two tensors a layer": ({"k.0": TOKENS[0], "v.0": TOKENS[0]}, "holds neither"),
    "two names without a number": ({"prompt": TOKENS[0], "input": TOKENS[0]}, "holds neither"),
    "a lone tensor of another kind": ({"cls_token": TOKENS[:1]}, "but 'cls_token'; give"),
    "deep alone": ({"deep_prompt": TOKENS}, "but 'deep_prompt'; give"),
    "an endless number": ({"prompt." + "9" * 5000: TOKENS[0]}, "holds neither"),
    "a missing layer": ({"p.0": TOKENS[0], "p.2": TOKENS[1]}, "layers are numbered 0, 2; give"),
    "a layer twice": ({"p.1": TOKENS[0], "p.01": TOKENS[1]}, "layers are numbered 1, 1; give"),
    "flat": ({"p.0": TOKENS[0, 0]}, r"'p.0' must be [tokens, width] of one layer, got [32]"),
    "stacked": ({"prompt": TOKENS}, r"must be [tokens, width] of one layer, got [2, 5, 32]"),
    "no tokens": ({"p.0": torch.ones(0, 32)}, "got [0, 32]"),
    "layers of different length": (
        {"p.0": TOKENS[0], "p.1": TOKENS[1, :4]},
        "'p.1' is [1, 4, 32], 'p.0' [1, 5, 32]; all layers",
    ),
    "NaN": (vpt(with_value(np.nan)), "'deep_prompt' holds NaN or inf"),
    "inf": (vpt(with_value(np.inf)), "'deep_prompt' holds NaN or inf"),
    "more than float32 holds": (vpt(with_value(1e300)), "'deep_prompt' holds NaN or inf"),
    "another width": (vpt(TOKENS[..., :16]), "width 16, not 32; name"),
    "another depth": (vpt(np.repeat(TOKENS, 2, 0)), "4 layers, not 2; name"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_bad_content_is_refused(
    name: str, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = BAD_CONTENTS[name]
    with pytest.raises(UserError) as caught:
        imported(saved(Path("bad.pth"), content), backbone)
    assert words in str(caught.value)
    assert str(caught.value).startswith(("bad.pth: ", "bad.pth does not fit "))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(
    part: float, suffix: str, tmp_path: Path, backbone: Backbone
) -> None:
    path = saved(tmp_path / f"a{suffix}", vpt())
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=r"truncated or not|cannot be read"):
        imported(path, backbone)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("data", [b"hello, world\n" * 9, b"\x80\x02}q\x00.", b"PK\x03\x04" * 50])
def test_files_of_another_kind_are_refused(
    data: bytes, suffix: str, tmp_path: Path, backbone: Backbone
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"truncated or not|cannot be read"):
        imported(path, backbone)
    with pytest.raises(UserError, match="cannot be read"):
        imported(tmp_path / f"none{suffix}", backbone)


def test_a_prompt_of_hgedge_is_not_imported(tmp_path: Path, backbone: Backbone) -> None:
    prompt = imported(saved(tmp_path / "a.pth", vpt()), backbone)
    write_prompt(tmp_path / "pets.safetensors", prompt)
    with pytest.raises(UserError, match=r"already a prompt of hgedge \(hgprompt.prompt/1\)"):
        imported(tmp_path / "pets.safetensors", backbone)
