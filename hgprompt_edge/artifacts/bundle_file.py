"""The file of a bundle, `TASK.hgbundle` (safetensors): write, read and check, find.

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

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import bank_entries
from hgprompt_edge.artifacts.bundle import POOLINGS, Bundle, Floats, Row
from hgprompt_edge.artifacts.folded import pack_more, read_more
from hgprompt_edge.artifacts.training_images import read_training_images
from hgprompt_edge.errors import FileError, UserError, brief
from hgprompt_edge.files import DAMAGE, check_format, read_safetensors, write_safetensors
from hgprompt_edge.images.listing import files_in
from hgprompt_edge.images.preprocess import Preprocessing, UnknownRuleError
from hgprompt_edge.maths.feature_statistics import read_statistics
from hgprompt_edge.maths.head import read_head
from hgprompt_edge.maths.reference import PREFIX
from hgprompt_edge.maths.reference_file import read_reference

FORMAT = "hgprompt.bundle/1"
SUFFIX = ".hgbundle"
MODEL_SUFFIXES = (".onnx", ".xml")


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write a bundle, whole or not at all. Same bundle, same bytes."""
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "weights": bundle.weights.astype(np.float32),
        "learned_weights": bundle.learned_weights.astype(np.float32),
        **bundle.head.tensors(),
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
    if bundle.reference is not None:
        tensors |= bundle.reference.tensors()
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
        raise FileError(path, "a model, not a bundle; name the bundle that it was exported from")
    tensors, metadata = read_safetensors(path)
    found = metadata.get("format", "missing")
    check_format(
        path,
        found,
        FORMAT,
        f"not a bundle that this version reads (format '{brief(found)}', not '{FORMAT}'); run "
        "`hgedge fit` again",
    )
    for name, tensor in tensors.items():
        may = name == f"{PREFIX}means"  # a class without images has none
        if tensor.dtype.kind == "f" and not (may or np.isfinite(tensor).all()):
            raise FileError(path, f"'{brief(name)}' holds NaN or inf; run `hgedge fit` again")
    try:
        _check_weights(tensors, len(json.loads(metadata["sources"])))
        parts = 2 if metadata["pooling"] == "both" else 1
        head = read_head(tensors)
        classes, width = head.weight.shape
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
            head=head,
            sources=tuple(json.loads(metadata["sources"])),
            table=tuple(Row(**row) for row in json.loads(metadata["table"])),
            objective=_named(metadata, "objective"),
            probe_images=cast("npt.NDArray[np.uint8]", tensors["probe.images"]),
            probe_logits=cast("Floats", tensors["probe.logits"]),
            source_tokens=cast("npt.NDArray[np.float16] | None", tensors.get("sources")),
            initial=cast("Floats | None", tensors.get("initial")),
            split_digest=metadata["split_digest"],
            seed=int(metadata["seed"]),
            versions=_named(metadata, "versions"),
            conditions=tuple(json.loads(metadata.get("conditions", "[]"))),
            condition_tokens=cast("npt.NDArray[np.float16] | None", tensors.get("conditions")),
            clean=read_statistics(tensors, classes, clean),
            more=read_more(tensors, metadata),
            reference=read_reference(tensors, classes, width),
        )
        _check_initial(bundle)
        return bundle
    except UnknownRuleError as error:
        raise FileError(
            path, f"{error}; upgrade hgprompt-edge or run `hgedge fit` again"
        ) from error
    except DAMAGE as error:
        raise FileError(path, f"damaged bundle ({brief(error)}); run `hgedge fit` again") from error


def _named(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Read a JSON object; refuse JSON of another kind, which would be read as no evidence."""
    found = json.loads(metadata[key])
    if not isinstance(found, dict):
        raise ValueError(f"'{key}' is no JSON object")
    return found


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
