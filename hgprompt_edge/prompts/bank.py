"""A bank: a folder of prompt files that fit each other, with the prompt that they started from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge import models
from hgprompt_edge.errors import FileError, MismatchError
from hgprompt_edge.images.listing import files_in
from hgprompt_edge.paths import why_not
from hgprompt_edge.prompts.matching import match_tokens
from hgprompt_edge.prompts.prompt import (
    SOURCE,
    START,
    Normalization,
    Prompt,
    read_prompt,
    write_prompt,
)

START_NAME = "untrained"
"""Name of the file with the prompt that a bank's sources started from."""

Floats = npt.NDArray[np.float32]


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
        raise FileError(taken, "is the start of the prompts there; give another name")
    for source in _sources_in(folder):
        misfit = _misfit(prompt, source) if source.name != prompt.name else None
        if misfit:
            size = source.image_size
            other_size = f"give `image_size={size}`, or " if prompt.image_size != size else ""
            advice = f"{other_size}name another folder with `folder`"
            raise MismatchError(taken, f"{source.name}.safetensors", misfit, advice)


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
        raise FileError(source, f"{why_not(folder, 'folder')}; name one that holds prompt files")
    paths = files_in(folder, ".safetensors")
    if not paths:
        raise FileError(
            source,
            "the bank is empty, no *.safetensors in it; train one with `hgedge prompt train` or "
            f"use a bundled one ({', '.join(models.NAMES)})",
        )
    prompts = tuple(read_prompt(path) for path in paths)
    for path, prompt in zip(paths[1:], prompts[1:], strict=True):
        if misfit := _misfit(prompt, prompts[0]):
            raise MismatchError(path, paths[0].name, misfit, "keep it in a bank of its own")
    sources = tuple(prompt for prompt in prompts if prompt.role == SOURCE)
    if not sources:
        raise FileError(
            source,
            f"holds {paths[0].name} only, the start of prompts; train one with `hgedge prompt "
            "train`",
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


def _sources_in(folder: Path) -> list[Prompt]:
    prompts = (read_prompt(path) for path in files_in(folder, ".safetensors"))
    return [prompt for prompt in prompts if prompt.role == SOURCE]


def _begins(start: Prompt, source: Prompt) -> bool:
    """Whether a source may have been this start before training."""
    return start.init_seed == source.init_seed and _misfit(start, source) is None


def _misfit(prompt: Prompt, first: Prompt) -> str | None:
    """Say why a prompt cannot be in one bank with `first`; None where it can."""
    if prompt.backbone_sha256 != first.backbone_sha256:
        own, others = (f"{p.backbone_sha256[:12]} of {p.backbone}" for p in (prompt, first))
        return f"it is for the weights {own}, not {others}"
    if prompt.image_size != first.image_size:
        return f"it is for images of {prompt.image_size} px, not {first.image_size}"
    if prompt.normalization != first.normalization:
        mine, theirs = (p.normalization or "the backbone's own" for p in (prompt, first))
        return f"its pixels were normalised by {mine}, not by {theirs}"
    for axis, what in enumerate(("layers", "tokens", "width")):
        here, there = prompt.tokens.shape[axis], first.tokens.shape[axis]
        if here != there:
            has = f"a {what} of {here}" if what == "width" else f"{here} {what}"
            return f"it has {has}, not {there}"
    return None
