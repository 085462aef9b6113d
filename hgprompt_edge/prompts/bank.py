"""Source prompts and banks of them: read, check, match, mix, write.

A prompt file is a safetensors file: tensor `prompt [L, T, D]` float32, optionally `head.weight
[K, D]` and `head.bias [K]`, and flat string metadata (`format`, `backbone`, ...). A bank is a
folder of prompt files that fit each other, with the untrained prompt that they started from.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge import models
from hgprompt_edge.errors import UserError, brief
from hgprompt_edge.files import (
    DAMAGE,
    check_storable,
    read_safetensors,
    sha256_file,
    why_not,
    write_safetensors,
)
from hgprompt_edge.images.listing import files_in

FORMAT = "hgprompt.prompt/1"
SOURCE, START = "source", "start"
"""Roles of a prompt in its bank."""
START_NAME = "untrained"
"""Name of the file with the prompt that a bank's sources started from."""
DEEP, SHALLOW = "deep", "shallow"
Floats = npt.NDArray[np.float32]
Triple = tuple[float, float, float]


class Normalization(NamedTuple):
    """What is subtracted from pixels in [0, 1] and what they are divided by, per channel."""

    mean: Triple
    std: Triple

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.3g}" for value in triple) for triple in self)
        return f"mean {mean}, std {std}"


@dataclass(frozen=True)
class Prompt:
    """One source prompt and what is known about it.

    Attributes
    ----------
    tokens
        `[L, T, D]` float32; `L` is the backbone's depth (deep) or 1 (shallow).
    backbone, backbone_sha256
        name of the backbone, and the fingerprint of the weights that the prompt was trained on.
    init_seed
        Seed of the initialisation, None where nobody knows it. Only tokens that started alike
        correspond token by token.
    test_accuracy, test_accuracy_unprompted
        On the source's own test part with the same closed-form head, in [0, 1].
    recipe
        How it was trained, for people.
    normalization
        Of the pixels that it was trained on; None: the backbone's own.
    role
        `source`, or `start`: what the sources of its `init_seed` were before training.
    sha256
        Of the file it was read from, else empty.
    """

    tokens: Floats
    name: str
    backbone: str
    backbone_sha256: str
    image_size: int
    mode: str = DEEP
    init_seed: int | None = 0
    task: str = ""
    family: str = ""
    classes: tuple[str, ...] = ()
    test_accuracy: float | None = None
    test_accuracy_unprompted: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    head_weight: Floats | None = None
    head_bias: Floats | None = None
    normalization: Normalization | None = None
    role: str = SOURCE
    sha256: str = ""


@dataclass(frozen=True)
class PromptBank:
    """Prompts that fit each other: same backbone, shape, mode and normalisation.

    Attributes
    ----------
    prompts
        The sources, in the order of their file names.
    matched
        Names of the prompts whose tokens were reordered to correspond to the first prompt's.
    start
        What the first prompt was before it was trained, where the bank holds it. A share of it
        takes a mix back towards no prompt.
    ignored
        Names of starts that are not the first prompt's, as of another seed: no mix takes them in.
    """

    prompts: tuple[Prompt, ...]
    matched: tuple[str, ...] = ()
    start: Prompt | None = None
    ignored: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, `N` of them."""
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def tokens(self) -> Floats:
        """The sources, `[N, L, T, D]` float32."""
        return np.stack([prompt.tokens for prompt in self.prompts])

    @property
    def basis(self) -> tuple[Prompt, ...]:
        """What weights are over: the sources, then the start where there is one; `M` of them."""
        return self.prompts if self.start is None else (*self.prompts, self.start)

    @property
    def basis_tokens(self) -> Floats:
        """The basis, `[M, L, T, D]` float32."""
        return np.stack([prompt.tokens for prompt in self.basis])

    @property
    def backbone(self) -> str:
        """Name of the backbone that every prompt was trained on."""
        return self.prompts[0].backbone

    @property
    def backbone_sha256(self) -> str:
        """Fingerprint of that backbone's weights."""
        return self.prompts[0].backbone_sha256

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.prompts[0].image_size

    @property
    def mode(self) -> str:
        """`deep` or `shallow`."""
        return self.prompts[0].mode

    @property
    def normalization(self) -> Normalization | None:
        """Of the pixels that every prompt was trained on; None: the backbone's own."""
        return self.prompts[0].normalization

    def without_family(self, family: str) -> PromptBank:
        """Leave out the sources of a target's own family, so that a comparison is honest."""
        kept = tuple(p for p in self.prompts if not family or p.family != family)
        return replace(self, prompts=kept)


def read_prompt(path: Path) -> Prompt:
    """Read and check one prompt file.

    Raises
    ------
    UserError
        Damaged file, other format or version, wrong shape or dtype, NaN or inf.
    """
    check_storable(path.stem, f"{path.parent}: the prompt")
    tensors, metadata = read_safetensors(path)
    version = metadata.get("format", "")
    if not version.startswith("hgprompt.prompt/"):
        raise UserError(
            f"{path}: not a prompt file (its format is '{brief(version or 'missing')}')"
        )
    if version != FORMAT:
        raise UserError(
            f"{path}: format {brief(version)} is newer than this hgedge reads ({FORMAT})"
        )
    _check_tensors(path, tensors)
    try:
        prompt = _from_metadata(path, tensors, metadata)
    except DAMAGE as error:
        raise UserError(f"{path}: metadata is missing or malformed ({brief(error)})") from error
    if (prompt.mode == SHALLOW) != (len(prompt.tokens) == 1):
        raise UserError(
            f"{path}: mode '{prompt.mode}' does not fit {len(prompt.tokens)} layers of tokens"
        )
    return prompt


def write_prompt(path: Path, prompt: Prompt) -> None:
    """Write one prompt file, whole or not at all."""
    tensors = {"prompt": prompt.tokens.astype(np.float32)}
    if prompt.head_weight is not None and prompt.head_bias is not None:
        tensors["head.weight"] = prompt.head_weight.astype(np.float32)
        tensors["head.bias"] = prompt.head_bias.astype(np.float32)
    metadata = {
        "format": FORMAT,
        "backbone": prompt.backbone,
        "backbone_sha256": prompt.backbone_sha256,
        "image_size": str(prompt.image_size),
        "mode": prompt.mode,
        "init_seed": json.dumps(prompt.init_seed),
        "task": prompt.task,
        "family": prompt.family,
        "classes": json.dumps(prompt.classes),
        "test_accuracy": json.dumps(prompt.test_accuracy),
        "test_accuracy_unprompted": json.dumps(prompt.test_accuracy_unprompted),
        "recipe": json.dumps(prompt.recipe, sort_keys=True),
    }
    if prompt.role != SOURCE:
        metadata["role"] = prompt.role
    if prompt.normalization is not None:
        metadata["normalization"] = json.dumps(prompt.normalization._asdict())
    write_safetensors(path, tensors, metadata)


def write_start(folder: Path, trained: Prompt, tokens: Floats) -> None:
    """Keep what `trained` started from, `[L, T, D]`, in its bank.

    A start that any source there may have started from stays, and so does a source of that name.
    Another one is left from prompts that were trained anew, with another seed or shape.
    """
    path = folder / f"{START_NAME}.safetensors"
    if path.exists():
        found = read_prompt(path)
        others = (source for source in _sources_in(folder) if source.name != trained.name)
        if found.role == SOURCE or any(_begins(found, one) for one in (trained, *others)):
            return
    start = Prompt(
        tokens=tokens,
        name=START_NAME,
        backbone=trained.backbone,
        backbone_sha256=trained.backbone_sha256,
        image_size=trained.image_size,
        mode=trained.mode,
        init_seed=trained.init_seed,
        normalization=trained.normalization,
        role=START,
    )
    write_prompt(path, start)


def check_joins(folder: Path, prompt: Prompt) -> None:
    """Refuse a prompt that would keep the bank in `folder` from being read.

    The prompt whose name it has does not count, since it takes that one's place.

    Raises
    ------
    UserError
        It does not fit another prompt there, that one is damaged, or it would take the place of the
        start.
    """
    taken = folder / f"{prompt.name}.safetensors"
    if taken.exists() and read_prompt(taken).role != prompt.role:
        raise UserError(f"{taken}: is what the prompts there started from; give another name")
    for source in _sources_in(folder):
        misfit = _misfit(prompt, source) if source.name != prompt.name else None
        if misfit:
            size = source.image_size
            other_size = f"give --image-size {size}, or " if prompt.image_size != size else ""
            raise UserError(f"{taken}: {misfit}; {other_size}name another folder with --output")


def read_bank(source: str | Path = models.DEFAULT, *, match: bool = True) -> PromptBank:
    """Read a folder of prompt files, check that they fit, match their tokens.

    A bundled backbone's name stands for the bank that comes with it.

    Without `match` they stay in their own order, in which not all of them may be mixed.

    Raises
    ------
    UserError
        No folder, no prompt in it, a damaged prompt, or prompts that do not fit each other.
    """
    folder = models.bank_folder(str(source)) if source in models.NAMES else Path(source)
    if not folder.is_dir():
        raise UserError(
            f"--sources {source}: {why_not(folder, 'folder')}; name one that holds prompt files"
        )
    paths = files_in(folder, ".safetensors")
    if not paths:
        raise UserError(
            f"--sources {source}: the bank is empty, no *.safetensors in it; "
            f"train one with `hgedge prompt train` or use `--sources {models.DEFAULT}`"
        )
    prompts = tuple(read_prompt(path) for path in paths)
    for path, prompt in zip(paths[1:], prompts[1:], strict=True):
        if misfit := _misfit(prompt, prompts[0]):
            raise UserError(f"{path}: {misfit}")
    sources = tuple(prompt for prompt in prompts if prompt.role == SOURCE)
    if not sources:
        raise UserError(
            f"--sources {source}: holds {paths[0].name} alone, which is what prompts start from; "
            "train one with `hgedge prompt train`"
        )
    starts = [prompt for prompt in prompts if prompt.role == START]
    own = next((start for start in starts if _begins(start, sources[0])), None)
    ignored = tuple(start.name for start in starts if start is not own)
    bank = PromptBank(sources, start=own, ignored=ignored)
    return match_prompts(bank) if match else bank


def match_prompts(bank: PromptBank) -> PromptBank:
    """Reorder the tokens of prompts that are not known to have the first one's `init_seed`.

    Per layer, the assignment that maximises the summed cosine of LayerNorm-centred tokens
    (METHOD 1). A shallow prompt has one layer, so one permutation.
    """
    reference, *others = bank.prompts
    prompts, names = [reference], []
    for prompt in others:
        if prompt.init_seed is None or prompt.init_seed != reference.init_seed:
            names.append(prompt.name)
            prompt = replace(prompt, tokens=match_tokens(reference.tokens, prompt.tokens))
        prompts.append(prompt)
    return replace(bank, prompts=tuple(prompts), matched=tuple(names))


def match_tokens(reference: Floats, tokens: Floats) -> Floats:
    """Permute `tokens [L, T, D]`, layer by layer, to correspond to `reference [L, T, D]`."""
    # scipy comes with the server extra; a device never matches.
    from scipy.optimize import linear_sum_assignment

    result = np.empty_like(tokens)
    for layer, (target, moving) in enumerate(zip(reference, tokens, strict=True)):
        cosine = _centred_directions(target) @ _centred_directions(moving).T  # [T, T]
        _, columns = linear_sum_assignment(cosine, maximize=True)
        result[layer] = moving[columns]
    return result


def mix(tokens: Floats, weights: npt.ArrayLike) -> Floats:
    """Fold `tokens [N, L, T, D]` into one prompt `[L, T, D]` (METHOD eq. 1).

    `weights` are `[N]`, or `[N, L]` where each layer has its own.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim == 1:
        return np.tensordot(weights, tokens.astype(np.float64), axes=1).astype(np.float32)
    mixed: Floats = np.einsum("nl,nltd->ltd", weights, tokens, dtype=np.float64).astype(np.float32)
    return mixed


def on_basis(weights: npt.ArrayLike, size: int) -> npt.NDArray[np.float64]:
    """Weights `[N]` or `[N, L]` of the sources as weights of a basis of so many prompts."""
    weights = np.asarray(weights, dtype=np.float64)
    return np.concatenate([weights, np.zeros((size - len(weights), *weights.shape[1:]))])


def source_shares(weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Share `[N]` of each source: its weight, of weights `[N, L]` the mean over the layers."""
    weights = np.asarray(weights, dtype=np.float64)
    return weights if weights.ndim == 1 else weights.mean(1)


def effective_sources(weights: npt.ArrayLike) -> float:
    """Effective number of sources: the exponential of the entropy of their shares.

    `weights` are those of the sources, `[N]` or `[N, L]`; they need not sum to 1.
    """
    weights = source_shares(weights)
    positive = weights[weights > 0]
    positive = positive / positive.sum()
    return float(np.exp(-np.sum(positive * np.log(positive))))


def _centred_directions(tokens: Floats) -> npt.NDArray[np.float64]:
    centred = tokens.astype(np.float64) - tokens.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(centred, axis=-1, keepdims=True)
    return cast("npt.NDArray[np.float64]", centred / np.maximum(norms, 1e-12))


def _check_tensors(path: Path, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
    if "prompt" not in tensors:
        raise UserError(f"{path}: has no tensor named 'prompt'")
    unknown = sorted(set(tensors) - {"prompt", "head.weight", "head.bias"})
    if unknown:
        raise UserError(
            f"{path}: unknown tensor '{brief(unknown[0])}'; a prompt file holds one prompt"
        )
    if tensors["prompt"].ndim != 3 or 0 in tensors["prompt"].shape:
        shape = list(tensors["prompt"].shape)
        raise UserError(f"{path}: 'prompt' must be [layers, tokens, width], got {shape}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise UserError(
                f"{path}: '{name}' must be float32, got {tensor.dtype}; save it in float32"
            )
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: '{name}' holds NaN or inf; train the prompt again")


def _from_metadata(
    path: Path, tensors: dict[str, npt.NDArray[np.generic]], metadata: dict[str, str]
) -> Prompt:
    mode = metadata["mode"]
    if mode not in (DEEP, SHALLOW):
        raise ValueError(f"mode is '{mode}'")
    return Prompt(
        tokens=cast("Floats", tensors["prompt"]),
        name=path.stem,
        backbone=metadata["backbone"],
        backbone_sha256=metadata["backbone_sha256"],
        image_size=int(metadata["image_size"]),
        mode=mode,
        init_seed=None if metadata["init_seed"] == "null" else int(metadata["init_seed"]),
        task=metadata.get("task", ""),
        family=metadata.get("family", ""),
        classes=tuple(json.loads(metadata.get("classes", "[]"))),
        test_accuracy=json.loads(metadata.get("test_accuracy", "null")),
        test_accuracy_unprompted=json.loads(metadata.get("test_accuracy_unprompted", "null")),
        recipe=json.loads(metadata.get("recipe", "{}")),
        head_weight=cast("Floats | None", tensors.get("head.weight")),
        head_bias=cast("Floats | None", tensors.get("head.bias")),
        normalization=_normalization(metadata.get("normalization", "null")),
        role=_role(metadata.get("role", SOURCE)),
        sha256=sha256_file(path),
    )


def _role(text: str) -> str:
    if text not in (SOURCE, START):
        raise ValueError(f"role is '{text}'")
    return text


def _normalization(text: str) -> Normalization | None:
    fields = json.loads(text)
    if fields is None:
        return None
    mean, std = ([float(value) for value in fields[name]] for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"normalization is {text}")
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _sources_in(folder: Path) -> list[Prompt]:
    prompts = (read_prompt(path) for path in files_in(folder, ".safetensors"))
    return [prompt for prompt in prompts if prompt.role == SOURCE]


def _begins(start: Prompt, source: Prompt) -> bool:
    """Whether a source may have been this start before training."""
    return start.init_seed == source.init_seed and _misfit(start, source) is None


def _misfit(prompt: Prompt, first: Prompt) -> str | None:
    """Say why a prompt cannot be in one bank with `first`; None where it can."""
    file = f"{first.name}.safetensors"
    if prompt.backbone_sha256 != first.backbone_sha256:
        return (
            f"made for another backbone ({prompt.backbone}) than {file} ({first.backbone}); keep "
            "one bank a backbone"
        )
    if prompt.image_size != first.image_size:
        return (
            f"made for images of {prompt.image_size} pixels, {file} for {first.image_size} pixels"
        )
    if prompt.normalization != first.normalization:
        mine, theirs = (p.normalization or "the backbone's own" for p in (prompt, first))
        return (
            f"trained on pixels normalised by {mine}, {file} by {theirs}; keep one bank a "
            "normalisation"
        )
    for axis, what in enumerate(("layers", "tokens", "width")):
        own, other = prompt.tokens.shape[axis], first.tokens.shape[axis]
        if own != other:
            return f"{what} {own} differs from {file}'s {other}; prompts of one bank have one shape"
    return None
