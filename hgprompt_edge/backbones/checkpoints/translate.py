"""Translate a checkpoint of others to timm's names, strictly in both directions.

Every tensor of the file is taken, or on its layout's list of what may be left out, or the file is
refused; every weight that the layout has must be there. A wrong name can so never lose a weight
without a word, as happened to LayerScale's `gamma` elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hgprompt_edge.backbones.checkpoints.checkpoint_file import shown
from hgprompt_edge.backbones.checkpoints.layouts import LAYOUTS, NOT_COVERED, Layout, Names
from hgprompt_edge.errors import ParameterError

CHUNK = re.compile(r"^((?:module\.|backbone\.)*blocks\.)(\d+\.)(\d+\.)")
"""DINOv2's training code groups blocks in chunks; the second number counts on over the groups."""

READ = (
    "timm, transformers (ViT, DINOv2, CLIP) and the original code of DINO, DINOv2 and DeiT are read"
)


@dataclass(frozen=True)
class Translated:
    """Weights in timm's names.

    Attributes
    ----------
    layout
        That the file was recognised as.
    weights
        float32, in timm's names.
    names
        Of each weight its name in the file, the first where several were joined.
    left_out
        What else the file holds and is not needed, and how many tensors each.
    """

    layout: Layout
    weights: dict[str, Tensor]
    names: dict[str, str]
    left_out: dict[str, int]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len([name for name in self.weights if name.endswith(".norm1.weight")])


def translate(path: Path, tensors: Mapping[str, Tensor]) -> Translated:
    """Bring the tensors of a file to timm's names and to float32.

    Raises
    ------
    UserError
        The layout is unknown or not covered, a weight is missing, unknown, no float, not finite,
        or of another shape than its neighbours.
    """
    for name in tensors:
        for pattern, sentence in NOT_COVERED.items():
            if re.fullmatch(pattern, name):
                raise ParameterError("checkpoint", path, f"{sentence} ('{name}')")
    tensors = _without_chunks(path, tensors)
    layout, prefix = _recognise(path, tensors)
    wanted = _wanted(layout, prefix, tensors)
    used = {name for names in wanted.values() for name in names}
    missing = [name for names in wanted.values() for name in names if name not in tensors]
    if missing:
        raise ParameterError(
            "checkpoint",
            path,
            f"misses {_first(missing)}, so it is no complete {layout.name} checkpoint; copy or "
            "save it again",
        )
    left_out = _left_out(path, layout, prefix, [name for name in tensors if name not in used])
    weights = {key: _joined(path, names, tensors) for key, names in wanted.items()}
    return Translated(
        layout,
        _in_timms_shape(path, layout, weights),
        {key: names[0] for key, names in wanted.items()},
        left_out,
    )


def _without_chunks(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    matches = {name: CHUNK.match(name) for name in tensors}
    chunk_of_block = {(match[1], match[2], match[3]) for match in matches.values() if match}
    if len(chunk_of_block) != len({(before, block) for before, _, block in chunk_of_block}):
        raise ParameterError(
            "checkpoint", path, "its blocks are in more than one chunk each; save the model again"
        )
    plain = {CHUNK.sub(r"\1\3", name): tensor for name, tensor in tensors.items()}
    # Names of both kinds: a file that nobody wrote. The strict names will refuse it.
    return plain if len(plain) == len(tensors) else dict(tensors)


def _recognise(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Layout, str]:
    for layout in LAYOUTS:
        for prefix in layout.prefixes:
            if all(prefix + mark in tensors for mark in layout.marks):
                return layout, prefix
    raise ParameterError(
        "checkpoint", path, f"unknown layout, its first tensors are {shown(list(tensors))}; {READ}"
    )


def _wanted(layout: Layout, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Names]:
    """Return timm's name of every weight the file should have, and its names there."""
    template = {key: tuple(prefix + name for name in names) for key, names in layout.block.items()}
    depth = _depth(template, tensors)
    outer = {key: tuple(prefix + name for name in names) for key, names in layout.outer.items()}
    blocks = [
        {key: tuple(name.replace("#", str(i)) for name in names) for key, names in template.items()}
        for i in range(depth)
    ]
    for group in layout.optional:
        tables = [outer] if group[0] in outer else blocks
        if not any(n in tensors for table in tables for key in group for n in table[key]):
            for table in tables:
                for key in group:
                    del table[key]
    return outer | {
        f"blocks.{i}.{key}": n for i, table in enumerate(blocks) for key, n in table.items()
    }


def _depth(template: Mapping[str, Names], tensors: Mapping[str, Tensor]) -> int:
    """Count the blocks; what a gap in their numbers leaves over is found by strict names."""
    patterns = [
        re.escape(name).replace(re.escape("#"), "([0-9]+)")
        for names in template.values()
        for name in names
    ]
    matches = [re.fullmatch("|".join(patterns), name) for name in tensors]
    return len({next(filter(None, match.groups())) for match in matches if match})


def _left_out(path: Path, layout: Layout, prefix: str, names: list[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    unknown = []
    for name in names:
        reasons = [
            what for pattern, what in layout.left_out_beside.items() if re.fullmatch(pattern, name)
        ]
        if name.startswith(prefix):
            inner = name[len(prefix) :]
            reasons = [w for p, w in layout.left_out.items() if re.fullmatch(p, inner)] or reasons
        if reasons:
            counts[reasons[0]] += 1
        else:
            unknown.append(name)
    if unknown:
        raise ParameterError(
            "checkpoint",
            path,
            f"has an unexpected {_first(unknown)}, which no {layout.name} model has; give the "
            "weights of an unchanged model",
        )
    return dict(counts)


def _joined(path: Path, names: Names, tensors: Mapping[str, Tensor]) -> Tensor:
    for name in names:
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise ParameterError(
                "checkpoint",
                path,
                f"'{name}' holds {str(tensor.dtype).removeprefix('torch.')}, not floats; give the "
                "weights before quantization",
            )
        if tensor.shape != tensors[names[0]].shape or tensor.ndim == 0:
            raise ParameterError(
                "checkpoint",
                path,
                f"'{name}' has shape {list(tensor.shape)}, '{names[0]}' "
                f"{list(tensors[names[0]].shape)}; the file is damaged",
            )
    # A copy, since the tensors of a safetensors file lie in the file.
    joined = torch.cat([tensors[name].detach() for name in names]).to(torch.float32, copy=True)
    # A sum is finite only if every number is; in float64 those of float32 do not overflow.
    if not torch.isfinite(joined.sum(dtype=torch.float64)):
        bad = next(n for n in names if not torch.isfinite(tensors[n].to(torch.float32)).all())
        raise ParameterError("checkpoint", path, f"'{bad}' holds NaN or inf; use another file")
    return joined


def _in_timms_shape(path: Path, layout: Layout, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if layout.flat_tokens:
        weights["cls_token"] = weights["cls_token"][None, None]
        weights["pos_embed"] = weights["pos_embed"][None]
    if layout.registers_without_position and "reg_token" in weights:
        # timm's models with such registers have positions for the patches only, so that the class
        # token's is added to the token itself.
        token, positions = weights["cls_token"], weights["pos_embed"]
        if token.ndim != 3 or positions.ndim != 3 or token.shape[2] != positions.shape[2]:
            raise ParameterError(
                "checkpoint",
                path,
                f"class token {list(token.shape)} and position embeddings {list(positions.shape)} "
                "do not belong together; the file is damaged",
            )
        weights["cls_token"] = token + positions[:, :1]
        weights["pos_embed"] = positions[:, 1:].contiguous()
    return weights


def _first(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
