"""A device of the study of adaptation: its model, what it sees, and what it is measured on."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgprompt_edge import export_onnx
from hgprompt_edge.adapt.gradient import AdaptGraph, Floats, Pixels
from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.adapt.proposal import Proposal, Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank, adapt_path
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Images
from hgprompt_edge.runtime.predictor import Predictor
from shared.device_study import in_parts, load_study

Labels = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Device:
    """An exported model with its bank, and images."""

    backbone: Backbone
    bundle: Bundle
    test: Images
    digest: str

    def __post_init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            export_onnx(self.bundle, self.backbone, path, runtime_weights=True, adapt=True)
            self.predictor = Predictor(path, threads=1)
            assert self.predictor.bank is not None
            self.bank: Bank = self.predictor.bank
            self.graph = AdaptGraph(adapt_path(path), self.bank, threads=1, micro_batch=4)
        self.head = self.bank.head
        self.initial = Weights(self.bank.initial.astype(np.float64), self.head)

    @classmethod
    def load(cls, name: str, backbone: Backbone, options: argparse.Namespace) -> Device:
        """Make the device of a task."""
        bundle, fitted, task = load_study(name, backbone, options)
        content = (options.bundles / f"{name}.hgbundle").read_bytes()
        return cls(fitted, bundle, task.test, hashlib.sha256(content).hexdigest()[:12])

    @cached_property
    def without_conditions(self) -> Device:
        """The same model with a bank of the sources alone."""
        bundle = replace(self.bundle, conditions=(), condition_tokens=None)
        return replace(self, bundle=bundle)

    def logits(self, pixels: Pixels, weights: Weights) -> Floats:
        """Logits of the exported model."""
        self.predictor.set_weights(weights.mix, (weights.head.weight, weights.head.bias))
        return in_parts(self.predictor.logits, pixels)

    def features(self, pixels: Pixels) -> Floats:
        """Features under the initial mix."""
        self.predictor.set_weights(self.initial.mix)
        return in_parts(self.predictor.features, pixels)


@dataclass
class Memory:
    """Results by key, and the seconds that were not spent on them again."""

    results: dict[bytes, tuple[Any, float]] = field(default_factory=dict)
    saved: float = 0.0

    def once(self, key: bytes, compute: Callable[[], Any]) -> Any:
        """Compute what is not remembered."""
        if key in self.results:
            value, seconds = self.results[key]
            self.saved += seconds
            return value
        began = time.perf_counter()
        value = compute()
        self.results[key] = value, time.perf_counter() - began
        return value

    def take_saved(self) -> float:
        """Seconds saved since the last call."""
        saved, self.saved = self.saved, 0.0
        return saved


@dataclass(frozen=True)
class Outcome:
    """Accuracy under what was learned; whether the guard took it, and the figures that it saw."""

    after: float
    taken: bool
    steps: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What the device sees, with labels and without, and what it is measured on."""

    device: Device
    images: Pixels
    labels: Labels
    unlabelled: Pixels
    test: Pixels
    test_labels: Labels
    seed: int
    memory: Memory = field(default_factory=Memory)

    def measure(self, weights: Weights) -> float:
        """Accuracy on the share of the test part that the device has not seen."""
        return accuracy(self.device.logits(self.test, weights), self.test_labels)

    def outcome(self, proposal: Proposal) -> Outcome:
        """Measure what was learned, whatever the guard says of it."""
        verdict = proposal.verdict
        return Outcome(
            self.measure(proposal.weights), verdict.taken, proposal.steps, verdict.figures
        )
