"""From what fit found to the bundle that everything else consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge.artifacts.bundle import Bundle, Row
from hgprompt_edge.artifacts.folded import FoldedPrompt
from hgprompt_edge.artifacts.training_images import remember
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.data import Task
from hgprompt_edge.fit.judge import Candidate
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.maths.softmax import log_mean_softmax
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.prompt import DEEP, SOURCE, Floats, Prompt

PROBE_IMAGES = 16
PACKAGES = ("torch", "timm", "numpy", "hgprompt-edge")


def make_bundle(
    backbone: Backbone,
    task: Task,
    bank: PromptBank | None,
    chosen: Candidate,
    learned_weights: npt.NDArray[np.float64],
    heads: Sequence[Head],
    table: tuple[Row, ...],
    objective: dict[str, Any],
    seed: int,
    keep_sources: bool,
    clean: FeatureStatistics | None = None,
    reference: Reference | None = None,
) -> Bundle:
    """Assemble a bundle: float32 numbers, a probe, provenance. Without a bank no prompt is in it.

    The probe's logits come from the token form, the definition, so that the exported graph is
    checked against that. The kept sources are float16.

    Parameters
    ----------
    heads
        One for each of the chosen candidate's parts.
    clean
        Statistics of the features of clean images under the chosen prompt, as `Bundle.clean` says.
    reference
        As of `Bundle`.
    """
    first, *more = (
        _folded(part, head, bank) for part, head in zip(chosen.parts, heads, strict=True)
    )
    rows = np.random.default_rng(seed).permutation(len(task.validation))[:PROBE_IMAGES]
    images = task.validation.pixels[np.sort(rows)]
    bundle = Bundle(
        task=task.name,
        classes=task.classes,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        checkpoint="" if backbone.checkpoint is None else str(backbone.checkpoint.resolve()),
        preprocessing=backbone.preprocessing,
        mode=bank.mode if bank else DEEP,
        pooling=backbone.pooling,
        choice=chosen.method,
        prompt=first.prompt,
        weights=first.weights,
        learned_weights=learned_weights.astype(np.float32),
        head=first.head,
        sources=tuple(_about(prompt) for prompt in bank.basis) if bank else (),
        table=table,
        objective=objective,
        probe_images=images,
        probe_logits=np.zeros((len(images), len(task.classes)), np.float32),
        source_tokens=bank.basis_tokens.astype(np.float16) if bank and keep_sources else None,
        clean=clean,
        reference=reference,
        data=task.data,
        group_by_hash=task.grouped,
        trained=remember(task.train.hashes, task.validation.hashes),
        split_digest=task.digest,
        seed=seed,
        versions={name: _version(name) for name in PACKAGES},
        more=tuple(more),
    )
    return replace(bundle, probe_logits=bundle_logits(backbone, images, bundle.folded))


def _folded(part: Candidate, head: Head, bank: PromptBank | None) -> FoldedPrompt:
    """One folded prompt with its head; a source that is used by itself is called by its name."""
    name, weights = part.method, part.weights.astype(np.float32)
    if bank and weights.ndim == 1 and weights.max() == 1:
        name = bank.basis[int(weights.argmax())].name
    return FoldedPrompt(part.tokens, weights, head.as_float32(), name)


def bundle_logits(
    backbone: Backbone, images: npt.NDArray[np.uint8], folded: Sequence[FoldedPrompt]
) -> Floats:
    """Logits `[n, K]` of images under folded prompts, by the token form.

    Of several, the logarithm of the mean of their probabilities.
    """
    logits = [token_logits(backbone, images, one.prompt, one.head) for one in folded]
    return log_mean_softmax(logits) if len(logits) > 1 else logits[0]


def token_logits(
    backbone: Backbone,
    images: npt.NDArray[np.uint8],
    tokens: Floats | None,
    head: Head,
) -> Floats:
    """Logits `[n, K]` of images under a head, by the token form."""
    with torch.inference_mode():
        x = normalize(torch.from_numpy(images), backbone.preprocessing)
        prompt = None if tokens is None else torch.from_numpy(tokens)
        features: Floats = features_token(backbone.model, x, prompt).numpy()
    return head.logits(features)


def _about(prompt: Prompt) -> dict[str, str]:
    about = {"name": prompt.name, "sha256": prompt.sha256, "family": prompt.family}
    return about if prompt.role == SOURCE else {**about, "role": prompt.role}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
