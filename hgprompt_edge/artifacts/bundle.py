"""What `fit` produces and everything else consumes: one `TASK.hgbundle` file (safetensors).

Tensors: the folded `prompt [L, T, D]` (absent where no prompt was the best choice), the mix
`weights` and `learned_weights` (`[N]`, or `[N, L]` where each layer has its own), `head.weight [K,
D]`, `head.bias [K]`, `probe.images`, `probe.logits`, and with kept sources `sources [N, L, T, D]`
float16. The statistics of clean features are `clean.mean`, `clean.var` `[D]` and, for each class,
`clean.class_mean [K, D]`, `clean.class_count [K]`; hashes of the training images are
`training.digests [m]`, `training.looks [m, 32]`. Where it was prepared for adapting on a device:
`conditions [C, L, T, D]` float16; where devices were merged `initial [M]`. Where the pooling is
`both`, features, and so head and statistics, have `2 D` numbers. Further folded prompts, whose
probabilities are averaged with those of the first: for each `more.I.prompt` (absent where it is no
prompt), `more.I.weights`, `more.I.head.weight`, `more.I.head.bias`, shaped as those of the first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.folded import FoldedPrompt as FoldedPrompt
from hgprompt_edge.artifacts.folded import pack_more, read_more
from hgprompt_edge.artifacts.training_images import TrainingImages, read_training_images
from hgprompt_edge.errors import UserError, brief
from hgprompt_edge.files import DAMAGE, read_safetensors, sha256_arrays, write_safetensors
from hgprompt_edge.images.listing import files_in
from hgprompt_edge.images.preprocess import Preprocessing, UnknownRuleError
from hgprompt_edge.maths.feature_statistics import Clean, read_clean
from hgprompt_edge.prompts.bank import mix

FORMAT = "hgprompt.bundle/1"
SUFFIX = ".hgbundle"
MODEL_SUFFIXES = (".onnx", ".xml")
POOLINGS = ("token", "avg", "both")
"""What a head may see: the class token, the mean of the patch tokens, or one behind the other."""
NO_PROMPT, TUNED, LEARNED = "no prompt", "tuned", "learned"
"""Entries of a device's bank that are no sources."""
FOLDED = "folded prompts"
"""The only entry of the bank of several folded prompts: their mixing weights are fixed."""
ROW_TITLES = {
    "none": "no prompt",
    "best_source": "best source",
    "uniform": "uniform mix",
    "learned": "learned mix",
    "folded": "folded prompts",
    "tuned": "tuned",
}
"""Ways to use the sources, from the simplest to the most involved, and what users read."""
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Row:
    """One line of the never-worse table: a way to use the sources and what it is worth.

    Attributes
    ----------
    method
        A key of `ROW_TITLES`.
    val_accuracy, val_log_loss
        On validation images, of a head fitted on the training images.
    test_accuracy
        Of a head fitted on both; None where the task has no test part.
    cross_log_loss
        Cross-fitted over training and validation images together; None where the prompt itself
        was trained on them, or no class has two images.
    head
        The row's own best head, such as `LDA 0.10`.
    """

    method: str
    val_accuracy: float
    val_log_loss: float
    test_accuracy: float | None = None
    cross_log_loss: float | None = None
    head: str = ""


@dataclass(frozen=True)
class Bundle:
    """A fitted task: the folded prompt, the head, and where both come from.

    Attributes
    ----------
    prompt
        `[L, T, D]` float32, or None where the frozen backbone alone was the best choice.
    pooling
        What the head sees, of `POOLINGS`.
    choice
        The method of `table` that was chosen on held-out images: `none`, `best_source`, `uniform`,
        `learned`, `tuned`, or `folded` for several prompts.
    weights, learned_weights
        `[N]` or, a weight for each layer, `[N, L]` float32: the chosen mix (all zero for `none`;
        where `tuned` started), and the learned one.
    head_weight, head_bias
        `[K, D]` (for `both` `[K, 2 D]`), `[K]` float32, calibrated: softmax of the logits are
        probabilities.
    sources
        For each source a dict with `name`, `sha256`, `family`; the last may have `role` `start`:
        what the others were before training, which counts among the `N` here.
    source_tokens
        `[N, L, T, D]` float16 for the device's bank, or None.
    probe_images, probe_logits
        Up to 16 validation images `[p, H, W, 3]` uint8 and PyTorch's logits `[p, K]` on them.
    initial
        `[M]` float32 over `bank_entries`: the mix that devices start from; None: what was chosen.
    objective
        `H`, `floor`, `R`, `lambda`, `shrinkage`, `steps`, ... as printed by fit.
    conditions
        For each condition prompt a dict with `name` and what it is worth.
    condition_tokens
        `[C, L, T, D]` float16, or None.
    clean
        Statistics of the features (`D` or `2 D`) of clean training images under the chosen prompt,
        of validation images where it was tuned on those; None: of an earlier version. With several
        folded prompts, of the logarithm of the averaged probabilities of clean images that the
        heads have not seen (`K`).
    checkpoint
        Absolute path of the file with the backbone's weights; empty: bundled, or the hub's.
    data, split_digest
        Of the images that it was fitted on, see `Task`.
    group_by_hash
        Their copies were kept on one side of the split.
    trained
        Hashes of its training and validation images; None: drawn, or of an earlier version.
    more
        Further deep folded prompts, two at most. The bundle's probabilities are the mean of those
        of the first, `prompt` with `head_weight` and `head_bias`, and of these; `probe_logits` are
        the logarithm of that mean. A device cannot mix then, so there are neither conditions nor
        an initial mix.
    """

    task: str
    classes: tuple[str, ...]
    backbone: str
    backbone_sha256: str
    preprocessing: Preprocessing
    mode: str
    pooling: str
    choice: str
    prompt: Floats | None
    weights: Floats
    learned_weights: Floats
    head_weight: Floats
    head_bias: Floats
    sources: tuple[dict[str, str], ...]
    table: tuple[Row, ...]
    objective: dict[str, Any]
    probe_images: npt.NDArray[np.uint8]
    probe_logits: Floats
    source_tokens: npt.NDArray[np.float16] | None = None
    initial: Floats | None = None
    split_digest: str = ""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    conditions: tuple[dict[str, str], ...] = ()
    condition_tokens: npt.NDArray[np.float16] | None = None
    clean: Clean | None = None
    checkpoint: str = ""
    data: str = ""
    group_by_hash: bool = False
    trained: TrainingImages | None = None
    more: tuple[FoldedPrompt, ...] = ()

    @property
    def folded(self) -> tuple[FoldedPrompt, ...]:
        """All folded prompts, the first one included."""
        first = FoldedPrompt(
            self.prompt, self.weights, self.head_weight, self.head_bias, self.choice
        )
        return (first, *self.more)


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write a bundle, whole or not at all. Same bundle, same bytes."""
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "weights": bundle.weights.astype(np.float32),
        "learned_weights": bundle.learned_weights.astype(np.float32),
        "head.weight": bundle.head_weight.astype(np.float32),
        "head.bias": bundle.head_bias.astype(np.float32),
        "probe.images": bundle.probe_images,
        "probe.logits": bundle.probe_logits.astype(np.float32),
    }
    if bundle.prompt is not None:
        tensors["prompt"] = bundle.prompt.astype(np.float32)
    if bundle.source_tokens is not None:
        tensors["sources"] = bundle.source_tokens.astype(np.float16)
    if bundle.initial is not None:
        tensors["initial"] = bundle.initial.astype(np.float32)
    if bundle.condition_tokens is not None:
        tensors["conditions"] = bundle.condition_tokens.astype(np.float16)
    if bundle.clean is not None:
        tensors |= bundle.clean.tensors()
    if bundle.trained is not None:
        tensors |= bundle.trained.tensors()
    tensors |= pack_more(bundle.more)
    metadata = {
        "format": FORMAT,
        "task": bundle.task,
        "classes": json.dumps(bundle.classes),
        "backbone": bundle.backbone,
        "backbone_sha256": bundle.backbone_sha256,
        "checkpoint": json.dumps(bundle.checkpoint),  # a path need not be UTF-8
        "data": json.dumps(bundle.data),
        "preprocessing": bundle.preprocessing.to_json(),
        "mode": bundle.mode,
        "pooling": bundle.pooling,
        "choice": bundle.choice,
        "sources": json.dumps(bundle.sources),
        "table": json.dumps([vars(row) for row in bundle.table]),
        "objective": json.dumps(bundle.objective, sort_keys=True),
        "split_digest": bundle.split_digest,
        "seed": str(bundle.seed),
        "versions": json.dumps(bundle.versions, sort_keys=True),
    }
    if bundle.trained is not None:
        metadata["training_images"] = json.dumps(bundle.trained.facts)
    if bundle.group_by_hash:
        metadata["group_by_hash"] = "true"
    if bundle.conditions:
        metadata["conditions"] = json.dumps(bundle.conditions)
    if bundle.more:
        metadata["more"] = json.dumps([folded.method for folded in bundle.more])
    write_safetensors(path, tensors, metadata)


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle.

    Raises
    ------
    UserError
        Missing, damaged, another format, or numbers that are not finite.
    """
    if path.suffix in MODEL_SUFFIXES and path.exists():
        raise UserError(f"{path}: a model, not a bundle; name the bundle that it was exported from")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "missing")
        raise UserError(
            f"{path}: not a bundle of this version (format '{brief(found)}', not '{FORMAT}')"
        )
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise UserError(f"{path}: '{brief(name)}' holds NaN or inf; run `hgedge fit` again")
    try:
        _check_weights(tensors, len(json.loads(metadata["sources"])))
        parts = 2 if metadata["pooling"] == "both" else 1
        classes, width = tensors["head.weight"].shape
        clean = classes if "more" in metadata else width
        _check_prepared(tensors, json.loads(metadata.get("conditions", "[]")), parts)
        bundle = Bundle(
            task=metadata["task"],
            classes=tuple(json.loads(metadata["classes"])),
            backbone=metadata["backbone"],
            backbone_sha256=metadata["backbone_sha256"],
            checkpoint=json.loads(metadata["checkpoint"]),
            data=json.loads(metadata["data"]),
            group_by_hash=metadata.get("group_by_hash") == "true",
            trained=read_training_images(tensors, metadata.get("training_images", "")),
            preprocessing=Preprocessing.from_json(metadata["preprocessing"]),
            mode=metadata["mode"],
            pooling=_known_pooling(metadata["pooling"]),
            choice=metadata["choice"],
            prompt=cast("Floats | None", tensors.get("prompt")),
            weights=cast("Floats", tensors["weights"]),
            learned_weights=cast("Floats", tensors["learned_weights"]),
            head_weight=cast("Floats", tensors["head.weight"]),
            head_bias=cast("Floats", tensors["head.bias"]),
            sources=tuple(json.loads(metadata["sources"])),
            table=tuple(Row(**row) for row in json.loads(metadata["table"])),
            objective=json.loads(metadata["objective"]),
            probe_images=cast("npt.NDArray[np.uint8]", tensors["probe.images"]),
            probe_logits=cast("Floats", tensors["probe.logits"]),
            source_tokens=cast("npt.NDArray[np.float16] | None", tensors.get("sources")),
            initial=cast("Floats | None", tensors.get("initial")),
            split_digest=metadata["split_digest"],
            seed=int(metadata["seed"]),
            versions=json.loads(metadata["versions"]),
            conditions=tuple(json.loads(metadata.get("conditions", "[]"))),
            condition_tokens=cast("npt.NDArray[np.float16] | None", tensors.get("conditions")),
            clean=read_clean(tensors, classes, clean),
            more=read_more(tensors, metadata),
        )
        _check_initial(bundle)
        return bundle
    except UnknownRuleError as error:
        raise UserError(
            f"{path}: {error}; upgrade hgprompt-edge or run `hgedge fit` again"
        ) from error
    except DAMAGE as error:
        raise UserError(
            f"{path}: damaged bundle ({brief(error)}); run `hgedge fit` again"
        ) from error


def _known_pooling(name: str) -> str:
    if name not in POOLINGS:
        raise ValueError(f"'pooling' is '{name}', none of {', '.join(POOLINGS)}")
    return name


def _check_weights(tensors: dict[str, npt.NDArray[np.generic]], sources: int) -> None:
    """Refuse weights that are neither one a source nor one for each source and layer."""
    like = tensors.get("sources", tensors.get("prompt"))
    for name in ("weights", "learned_weights"):
        shape = tensors[name].shape
        layers = shape[1:] if like is None else like.shape[-3:-2]
        if shape != (sources,) and (len(shape) != 2 or shape != (sources, *layers)):
            raise ValueError(f"'{name}' is {list(shape)} for {sources} sources")


def _check_prepared(
    tensors: dict[str, npt.NDArray[np.generic]],
    conditions: list[dict[str, str]],
    parts: int,
) -> None:
    """Refuse condition prompts that do not fit the rest of the bundle.

    `parts` is how many tokens' widths the features have.
    """
    tokens, width = tensors.get("conditions"), tensors["head.weight"].shape[-1]
    if (0 if tokens is None else len(tokens)) != len(conditions):
        raise ValueError("'conditions' are not as many as their names")
    if not all(isinstance(about.get("name"), str) for about in conditions):
        raise ValueError("a condition has no name")
    if tokens is not None:
        like = tensors.get("sources", tensors.get("prompt"))
        shape = tokens.shape[1:] if like is None else like.shape[-3:]
        fits = tokens.shape[1:] == shape and parts * tokens.shape[-1] == width
        if tokens.dtype != np.float16 or not fits:
            raise ValueError(f"'conditions' are {tokens.dtype} {list(tokens.shape)}")


def _check_initial(bundle: Bundle) -> None:
    """Refuse a mix of devices that is not over the bundle's own bank."""
    if bundle.initial is None:
        return
    if bundle.source_tokens is None:
        raise ValueError("'initial' without the sources that it mixes")
    entries = len(bank_entries(bundle))
    if bundle.initial.shape != (entries,):
        raise ValueError(f"'initial' is {list(bundle.initial.shape)} for {entries} entries")


def has_prompts(bundle: Bundle) -> bool:
    """Whether a device can mix anything: prompts that it was fitted with, or condition prompts.

    Several folded prompts it cannot: their mixing weights are fixed.
    """
    return not bundle.more and bool(bundle.sources or bundle.conditions or bundle.choice == TUNED)


class Entry(NamedTuple):
    """One of the prompts that a device mixes: `tokens [L, T, D]`, None for no prompt at all."""

    name: str
    tokens: Halves | None


def bank_entries(bundle: Bundle) -> tuple[Entry, ...]:
    """List what a device mixes, in the order of its weights `[M]`.

    First what was chosen, where it is no mix with one weight a source (`no prompt`, `tuned`, or
    `learned` with a weight for each layer), then the sources, then the condition prompts. Of
    several folded prompts there is the one entry `FOLDED`.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    if bundle.more:
        return (Entry(FOLDED, None),)
    sources = _kept_sources(bundle) if bundle.sources else None
    chosen = chosen_entry(bundle)
    entries = [] if chosen is None else [chosen]
    named = (
        (bundle.sources, sources),
        (bundle.conditions, bundle.condition_tokens),
    )
    for about, tokens in named:
        if tokens is not None:
            names = (source["name"] for source in about)
            entries += [Entry(name, prompt) for name, prompt in zip(names, tokens, strict=True)]
    return tuple(entries)


def chosen_entry(bundle: Bundle) -> Entry | None:
    """Return what was chosen as an entry of its own; None where its weights are over the sources.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    if bundle.more:
        return Entry(FOLDED, None)
    if bundle.choice == "none":
        return Entry(NO_PROMPT, None)
    if bundle.choice == "tuned" and bundle.prompt is not None:
        return Entry(TUNED, bundle.prompt.astype(np.float16))
    if bundle.choice == "learned" and bundle.learned_weights.ndim == 2:
        # From what was learned, since `prompt` moves on when devices are merged.
        learned = mix(_kept_sources(bundle).astype(np.float32), bundle.learned_weights)
        return Entry(LEARNED, learned.astype(np.float16))
    return None


def _kept_sources(bundle: Bundle) -> Halves:
    if bundle.source_tokens is None:
        raise UserError(
            f"the bundle of {bundle.task} does not hold its sources, so there is nothing for a "
            "device to mix; run `hgedge fit` with --keep-sources"
        )
    return bundle.source_tokens


def bank_sha256(bundle: Bundle) -> str:
    """Hexadecimal sha256 over names, shapes and float16 tokens of the bank, in its order.

    What a device learned is weights over this bank, and means nothing over another one. Of several
    folded prompts it is over all of them and their heads.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    digest = hashlib.sha256()
    for name, tokens in bank_entries(bundle):
        shape = None if tokens is None else list(tokens.shape)
        digest.update(json.dumps([name, shape]).encode())
        if tokens is not None:
            digest.update(np.ascontiguousarray(tokens, "<f2").tobytes())
    if bundle.more:
        digest.update(sha256_arrays(pack_more(bundle.folded)).encode())
    return digest.hexdigest()


def check_one_prompt(bundle: Bundle, what: str) -> None:
    """Refuse a bundle of several folded prompts, for `what` works on one alone.

    Raises
    ------
    UserError
        The bundle holds several.
    """
    if bundle.more:
        raise UserError(
            f"{what}: the bundle of {bundle.task} averages {len(bundle.folded)} folded prompts, "
            "and this works on one; run `hgedge fit` with `--folded 1` first"
        )


def newest_bundle(folder: Path) -> Path:
    """Return the most recently written bundle in `folder`.

    Raises
    ------
    UserError
        There is none.
    """
    paths = sorted(files_in(folder, SUFFIX), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise UserError(f"no *{SUFFIX} file in {folder}; run `hgedge fit` first or name a bundle")
    return paths[-1]


def bank_tokens(bundle: Bundle) -> tuple[tuple[str, ...], Floats]:
    """Names `[M]` of `bank_entries`, and tokens `[P, L, T, D]` of those that have any.

    Raises
    ------
    UserError
        The bundle does not hold its sources, or its prompts are shallow.
    """
    if bundle.mode == "shallow":
        raise UserError(
            f"the bundle of {bundle.task} holds shallow prompts, whose tokens every image "
            "transforms; only deep prompts can be mixed on a device"
        )
    entries = bank_entries(bundle)
    tokens = [entry.tokens for entry in entries if entry.tokens is not None]
    names = tuple(entry.name for entry in entries)
    return names, np.stack(tokens).astype(np.float32) if tokens else np.zeros(
        (0, 0, 0, 0), np.float32
    )


def initial_mix(bundle: Bundle) -> Floats:
    """Weights `[M]` over `bank_entries` that a device starts from.

    What many devices came to, where they have been asked, else what fit chose.
    """
    if bundle.initial is not None:
        return bundle.initial
    names, _ = bank_tokens(bundle)
    initial = np.zeros(len(names), np.float32)
    if chosen_entry(bundle) is not None:
        initial[0] = 1
    else:
        initial[: len(bundle.weights)] = bundle.weights / bundle.weights.sum()
    return initial
