"""The model in float32 that int8 is held against, and the images that do so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data.task import Task
from hgprompt_edge.export.graph.head import head_logits
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.int8.held_out import (
    Features,
    Floats,
    HeldOut,
    features_of,
    graph_heads,
    hold_out,
)
from hgprompt_edge.export.int8.measure import Pixels, open_body
from hgprompt_edge.export.int8.schemes import Control, Given
from hgprompt_edge.export.verify import at_initial
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.maths.softmax import softmax


@dataclass(frozen=True)
class FloatModel:
    """The model in float32 that int8 is held against.

    Attributes
    ----------
    bundle
        At the mix where a device starts.
    bank
        Where the weights come at run time.
    """

    bundle: Bundle
    backbone: Backbone
    task: Task
    bank: Bank | None
    on: Rewrites
    features: Features
    held: HeldOut

    @property
    def given(self) -> Given:
        """What the graph takes beside the images."""
        return self.bank.inputs(self.bank.initial) if self.bank else {}

    def run(self, body: Path) -> Callable[[Pixels], Floats]:
        """Return what gives the features `[n, D]` of a quantized body for pixels."""
        return functools.partial(open_body(body).run, given=self.given)


def in_float(
    bundle: Bundle, backbone: Backbone, task: Task, bank: Bank | None, is_ir: bool
) -> FloatModel:
    """Measure float32 on the images that judge, under heads that have not seen them."""
    # Quantized, too, each runtime is fastest with its own way to take the prefix.
    on = Rewrites(attention=Attention.PAST if is_ir else Attention.STANDARD)
    start = at_initial(bundle, backbone, bank) if bank else bundle
    features = features_of(start, backbone, bank.share(bank.initial) if bank else 1.0)
    held = hold_out(start, backbone, task, features, on)
    return FloatModel(start, backbone, task, bank, on, features, held)


def search_control(floating: FloatModel, max_drop: float) -> Control:
    """Give NNCF's search the validation images, and heads that were fitted on the others."""
    bundle, task = floating.bundle, floating.task
    kind, classes = bundle.objective.get("head", "lda"), len(task.classes)
    fitted = [
        fit_head(
            floating.features(task.train, one.prompt), task.train.labels, classes, bundle.seed, kind
        )
        for one in bundle.folded
    ]
    judge = graph_heads(bundle, floating.backbone, fitted, floating.on)
    return Control(task.validation, lambda f: softmax(head_logits(f, judge)), max_drop)
