"""Read a backbone from a checkpoint that others wrote, with what lies beside it.

read_checkpoint -> checkpoint_file  the tensors
                -> translate        timm's names, by the tables in layouts
                -> architecture     from shapes and config.json
                -> beside           preprocessing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hgprompt_edge.backbones.checkpoints.architecture import UnknownError, derive, vision_config
from hgprompt_edge.backbones.checkpoints.beside import (
    CONFIG,
    METADATA,
    DataConfig,
    preprocessing,
    read_config,
    read_json,
)
from hgprompt_edge.backbones.checkpoints.checkpoint_file import TensorFile, read_tensors
from hgprompt_edge.backbones.checkpoints.layouts import TIMM
from hgprompt_edge.backbones.checkpoints.translate import Translated, translate
from hgprompt_edge.errors import ParameterError, first_line


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a backbone, and what its files say about it.

    Attributes
    ----------
    path
        The file.
    name
        Of the model, from its `config.json`, else the file's.
    layout
        Whose names the file has, for messages.
    weights
        float32, in timm's names for `VisionTransformer`, without a head.
    architecture
        Keyword arguments for `VisionTransformer`, or for `timm_id` where that is given; None: see
        `unknown`.
    timm_id
        The architecture by timm's name, where timm's `config.json` lies beside the file.
    unknown
        Why the architecture is not known; else empty.
    image_size
        Side of the input that the file asks for; None: that of its position embeddings.
    stated
        Whether files say the architecture; else heads and activation are assumed.
    data_config
        `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode` and perhaps `input_size`, as in
        timm's configurations; None: nothing says.
    data_stated
        Whether a file says the preprocessing; else it is that of the model's family.
    facts
        Short phrases to print: what was taken and left out.
    architecture_facts, data_facts
        The same: heads and activation, mean and standard deviation, and where they come from.
    """

    path: Path
    name: str
    layout: str
    weights: dict[str, Tensor]
    architecture: dict[str, Any] | None
    timm_id: str | None
    unknown: str
    image_size: int | None
    stated: bool
    data_config: DataConfig | None
    data_stated: bool
    facts: tuple[str, ...]
    architecture_facts: tuple[str, ...]
    data_facts: tuple[str, ...]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.weights["patch_embed.proj.weight"].shape[-1])

    def describe(self, spec: str | None) -> tuple[str, ...]:
        """Return the phrases to print; `spec` is the timm id that the user named, if any."""
        if spec is None:
            return (*self.facts, *self.architecture_facts, *self.data_facts)
        pixels = self.data_facts if self.data_stated else ()
        return (*self.facts, f"architecture {spec} (`backbone`)", *pixels)

    def build(self, image_size: int | None = None) -> VisionTransformer:
        """Build the architecture without a head, on the `meta` device.

        `weights` go in by `load_state_dict(..., assign=True)`, at another size with the position
        embeddings resampled before.

        Parameters
        ----------
        image_size
            Side of the input in pixels; None: the one that the files ask for.

        Raises
        ------
        UserError
            The files do not say which architecture it is, or how pixels are normalised.
        """
        if self.unknown or self.data_config is None:
            why = self.unknown or "no preprocessor_config.json says how pixels are normalised"
            raise ParameterError(
                "checkpoint",
                self.path,
                f"{why}, so that the weights do not say what model they belong to; name its timm "
                "id with `backbone`, or put the model's config.json and preprocessor_config.json "
                "beside the file",
            )
        side = image_size or self.image_size
        model = _build(
            self.timm_id, {**(self.architecture or {}), **({"img_size": side} if side else {})}
        )
        setattr(model, "pretrained_cfg", dict(self.data_config))  # noqa: B010
        return model

    def check_computes_as(self, model: VisionTransformer, spec: str) -> None:
        """Check that `model`, which the user named `spec`, computes what the files say.

        Names and shapes of weights do not show the number of heads and the activation.

        Raises
        ------
        UserError
            They differ, so that the features would be wrong without a word.
        """
        if not self.stated:
            return
        own = _build(self.timm_id, self.architecture or {})
        for what, here, there in zip(
            ("heads", "activation"), _computation(model), _computation(own), strict=True
        ):
            if here != there:
                raise ParameterError(
                    "backbone",
                    spec,
                    f"has {what} {here}, the files at {self.path.parent} say {there}; name "
                    "another timm id, or leave `backbone` out",
                )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file or one of `torch.save` in any of the known layouts.

    Raises
    ------
    UserError
        One sentence: the file cannot be read, its layout is unknown, weights are missing, unknown
        or not finite, or the `config.json` beside it contradicts them.
    """
    file = read_tensors(path)
    found = translate(path, file.tensors)
    config = read_config(path)
    own = _architecture(path, file, found, config)
    if not own.unknown:
        _check_complete(path, found, own)
    data_config, source, data_stated = preprocessing(path, file, found, config)
    return Checkpoint(
        path=path,
        name=own.timm_id or _name(path, config),
        layout=found.layout.name,
        weights=found.weights,
        architecture=own.options,
        timm_id=own.timm_id,
        unknown=own.unknown,
        image_size=int(file.metadata["image_size"]) if "image_size" in file.metadata else None,
        stated=own.stated,
        data_config=data_config,
        data_stated=data_stated,
        facts=(f"layout of {found.layout.name}", *_taken(file, found)),
        architecture_facts=own.facts,
        data_facts=() if data_config is None else (_pixels(data_config, source),),
    )


@dataclass(frozen=True)
class _Own:
    """What the files say about the architecture, and which of them."""

    source: str
    options: dict[str, Any] | None = None
    timm_id: str | None = None
    unknown: str = ""
    stated: bool = True
    facts: tuple[str, ...] = ()


def _architecture(
    path: Path, file: TensorFile, found: Translated, config: Mapping[str, Any]
) -> _Own:
    if {"architecture", "data_config"} <= file.metadata.keys():
        options = read_json(path, file.metadata["architecture"])
        return _Own(METADATA, options, facts=(f"architecture from {METADATA}",))
    timm_id = _timm_id(path, found, config)
    if timm_id is not None:
        facts = (f"architecture {timm_id} ({CONFIG})",)
        return _Own(CONFIG, dict(config.get("model_args") or {}), timm_id, facts=facts)
    try:
        derived = derive(path, found, vision_config(path, found, config))
        return _Own(CONFIG, derived.options, facts=derived.facts, stated=derived.stated)
    except UnknownError as error:
        return _Own(CONFIG, unknown=str(error), stated=False)


def _name(path: Path, config: Mapping[str, Any]) -> str:
    name = str(config.get("_name_or_path") or path.stem)
    return Path(name).name if Path(name).is_absolute() else name


def _computation(model: Any) -> tuple[int, str]:
    """Return what weights do not show: heads and activation."""
    block = model.blocks[0]
    name = type(block.mlp.act).__name__
    return int(block.attn.num_heads), {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}.get(
        name, name.lower()
    )


def _taken(file: TensorFile, found: Translated) -> list[str]:
    facts = []
    if file.beside:
        facts.append(f"'{file.container}' taken, not {', '.join(file.beside)}")
    for what, count in found.left_out.items():
        facts.append(f"without {what} ({count} {'tensor' if count == 1 else 'tensors'})")
    return facts


def _timm_id(path: Path, found: Translated, config: Mapping[str, Any]) -> str | None:
    """Return the architecture that timm's `config.json` names."""
    timm_id = config.get("architecture")
    if not isinstance(timm_id, str):
        return None
    if found.layout is not TIMM or not timm.is_model(timm_id):
        raise ParameterError(
            "checkpoint",
            path,
            f"config.json beside it names the architecture '{timm_id}', the weights have the "
            f"layout of {found.layout.name}; put the right config.json there, or none",
        )
    return timm_id


def _build(timm_id: str | None, options: dict[str, Any]) -> VisionTransformer:
    # timm draws random numbers for weights, on the device `meta`, too: keep the caller's state.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if timm_id is None:
            return VisionTransformer(**{"num_classes": 0, **options})
        return cast("VisionTransformer", timm.create_model(timm_id, num_classes=0, **options))


def _check_complete(path: Path, found: Translated, own: _Own) -> None:
    """Refuse weights of which not every name and shape is that of the architecture."""
    try:
        model = _build(own.timm_id, own.options or {})
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ParameterError(
            "checkpoint",
            path,
            f"the architecture that {own.source} describes cannot be built ({first_line(error)}); "
            "name its timm id with `backbone`",
        ) from error
    expected = model.state_dict()
    missing = sorted(expected.keys() - found.weights.keys())
    extra = sorted(found.weights.keys() - expected.keys())
    for kind, keys in (("misses", missing), ("has an unexpected", extra)):
        if keys:
            name = found.names.get(keys[0], keys[0])
            raise ParameterError(
                "checkpoint", path, f"{kind} '{name}'; {own.source} is of another model"
            )
    for key, tensor in found.weights.items():
        if tensor.shape != expected[key].shape:
            raise ParameterError(
                "checkpoint",
                path,
                f"'{found.names[key]}' has shape {list(tensor.shape)}, the other weights ask for "
                f"{list(expected[key].shape)}; the file is damaged",
            )


def _pixels(config: DataConfig, source: str) -> str:
    mean, std = (" ".join(f"{float(v):.4g}" for v in config[key]) for key in ("mean", "std"))
    return f"mean {mean}, standard deviation {std} ({source})"
