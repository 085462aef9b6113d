"""The plain path: the best head on frozen features, for a backbone without prompts."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import Pooling, choose_pooling
from hgprompt_edge.fit.algorithm import Progress
from hgprompt_edge.fit.assemble import make_bundle
from hgprompt_edge.fit.checks import check_validation
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.heads.best_head import HeadKind


def fit_head(
    backbone: Backbone,
    task: Task,
    *,
    head: HeadKind = "lda",
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> tuple[Bundle, Pooling]:
    """Fit the head that holds out best on a backbone's own features; the bundle has no prompt.

    In float32, whatever the backbone computes in. The bundle holds the statistics of clean
    features, by which a device judges what it sees.

    Parameters
    ----------
    head
        As of `HGPrompt`.
    seed
        Of folds and of the probe images.
    cache
        Keep features on disk.

    Raises
    ------
    UserError
        The task has no validation images.
    """
    check_validation(task)
    store = FeatureStore(backbone.in_precision("float32"), enabled=cache)
    pooling = choose_pooling(store, task, seed)
    store = store.with_pooling(pooling.name)
    parts = (task.train, task.validation, task.test)
    for done, part in enumerate(parts):
        if progress:
            progress("features", done, len(parts))
        store.features(part.pixels, None)
    if progress:
        progress("features", len(parts), len(parts))
    none = Candidate("none", None, np.zeros(0))
    judge = Judge(store, task, head, seed)
    row = judge.measure(none)
    final = judge.final_heads(none)
    row = judge.on_test(row, none, final)
    bundle = make_bundle(
        store.backbone,
        task,
        None,
        none,
        np.zeros(0),
        final,
        (row,),
        {"head": head, "pooling": asdict(pooling)},
        seed,
        keep_sources=False,
        clean=judge.clean(none),
        reference=judge.reference(none),
    )
    return bundle, pooling
