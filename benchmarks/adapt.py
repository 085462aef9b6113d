"""Measure what adapting on the device recovers of the accuracy that a shift costs.

    python benchmarks/adapt.py --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks/adapt_memory.py --bundles DIR                             # peak_rss_mb
    python benchmarks/adapt.py --only-report

`--bundles` holds TASK.hgbundle with condition prompts, a quarter of an hour each on one core:

    hgedge fit --task TASK --data DATA/TASK --output DIR/TASK.hgbundle \
        --conditions dark,blur,noise,cast,jpeg,lowres        # digits needs no --data

The test part is split once: from one share the device sees its images, on the other accuracy is
measured. Everything runs through the product's device code on the exported models; `prompt_full`,
prompt tuning by backpropagation in PyTorch, is the upper bound. A cell is a task, shift, severity
and seed; its rows are appended to the results as soon as it is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapt_report import RESULTS, write_report
from cmaes import CMA
from rows import gather_rows
from targets import load_target
from torch import nn

from hgprompt_edge import export_onnx, load_backbone
from hgprompt_edge.adapt.gradient import AdaptGraph, Head
from hgprompt_edge.adapt.guard.measures import accuracy, mean_entropy
from hgprompt_edge.adapt.learner import GradientLearner
from hgprompt_edge.adapt.loop import adapt_labelled, adapt_unlabelled
from hgprompt_edge.adapt.losses import Slope, statistics_distance
from hgprompt_edge.adapt.optimizer import Descent, Point, Settings, descend
from hgprompt_edge.adapt.proposal import Proposal, Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.artifacts.device_bank import Bank, adapt_path
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.backbones.forward import (
    features_prefix,
    normalize,
    pool,
    prepare_tokens,
    project_prefix,
    run_blocks,
)
from hgprompt_edge.backbones.passes import model_of
from hgprompt_edge.data.conditions import CONDITIONS, SHIFTS, corrupt
from hgprompt_edge.files import write_bytes
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.training.condition_prompts import starting_tokens

KEYS = ("task", "shift", "severity", "images_per_class", "method", "seed")
"""Rows of the same values of these are of the same run."""
TASKS = ("flowers17", "dtd10", "weather4", "digits")
METHODS = (
    "mix",
    "mix_sources",
    "head",
    "feature_mean",
    "mix_unlabelled",
    "mix_unlabelled_bias",
    "forward_only",
    "prompt_full",
)
UNLABELLED = 100
FOA_TOKENS, FOA_POPULATION, FOA_GENERATIONS = 3, 28, 8
"""FOA's number of tokens and of candidates a generation; it takes one generation a batch."""
SEEN_SHARE = 0.4
"""Of the test part: where the device's images come from."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--bundles", type=Path, help="folder of TASK.hgbundle")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--shifts", nargs="*", default=list(SHIFTS))
    parser.add_argument("--severities", type=int, nargs="*", default=[3, 2, 1])
    parser.add_argument("--images", type=int, nargs="*", default=[5], help="a class, with labels")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--part", default="1/1", help="this share of the cells: 1/2, 2/2")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.adapt"))
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    if not options.only_report:
        if options.data is None or options.bundles is None:
            raise SystemExit("name the folders of the data sets and of the bundles")
        run(options)
    gather_rows(RESULTS, options.work, KEYS)
    write_report()


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("tiny")
    options.work.mkdir(parents=True, exist_ok=True)
    part, parts = (int(word) for word in options.part.split("/"))
    devices: dict[str, Device] = {}
    for cell in list(cells(options))[part - 1 :: parts]:
        path = options.work / f"{cell.key}.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        missing = [name for name in options.methods if name not in {r["method"] for r in rows}]
        if not missing:
            continue
        if cell.task not in devices:
            devices[cell.task] = Device(cell.task, backbone, options)
        rows += run_cell(cell, devices[cell.task], missing)
        write_bytes(path, json.dumps(rows).encode())
        shown = ", ".join(f"{row['method']} {100 * row['accuracy_after']:.1f}" for row in rows)
        before = f"{100 * rows[0]['accuracy_clean']:.1f} -> {100 * rows[0]['accuracy_before']:.1f}"
        print(f"{cell.key}: {before}; {shown}", flush=True)


@dataclass(frozen=True)
class Cell:
    """One task under one shift, as a device with so many labelled images a class meets it."""

    task: str
    shift: str
    severity: int
    seed: int
    images_per_class: int

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.task}_{self.shift}_{self.severity}_{self.seed}_{self.images_per_class}"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seeds and severities outermost, so that a run that is cut short is whole up to there."""
    for seed in options.seeds:
        for count in options.images:
            for severity in options.severities:
                for shift in options.shifts:
                    for task in options.tasks:
                        yield Cell(task, shift, severity, seed, count)


@dataclass
class Device:
    """An exported model with its bank, and images."""

    name: str
    backbone: Backbone
    options: argparse.Namespace
    given: Bundle | None = None
    bundle: Bundle = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        path = self.options.bundles / f"{self.name}.hgbundle"
        self.bundle = self.given or read_bundle(path)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        task = load_target(self.name, self.backbone, self.options.data, 0)
        assert task is not None
        assert task.test is not None
        self.test = task.test
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            export_onnx(self.bundle, self.backbone, path, runtime_weights=True, adapt=True)
            self.predictor = Predictor(path, threads=1)
            assert self.predictor.bank is not None
            self.bank: Bank = self.predictor.bank
            self.graph = AdaptGraph(adapt_path(path), self.bank, threads=1, micro_batch=4)
        self.head = Head(self.bank.head_weight, self.bank.head_bias)
        self.initial = Weights(self.bank.initial.astype(np.float64), self.head)

    @cached_property
    def without_conditions(self) -> Device:
        """The same model with a bank of the sources alone."""
        bundle = replace(self.bundle, conditions=(), condition_tokens=None)
        return Device(self.name, self.backbone, self.options, bundle)

    def logits(self, pixels: Pixels, weights: Weights) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits of the exported model."""
        self.predictor.set_weights(weights.mix, (weights.head.weight, weights.head.bias))
        parts = [pixels[i : i + 16] for i in range(0, len(pixels), 16)]
        return np.concatenate([self.predictor.logits(part) for part in parts])

    def features(self, pixels: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Features under the initial mix."""
        self.predictor.set_weights(self.initial.mix)
        parts = [pixels[i : i + 16] for i in range(0, len(pixels), 16)]
        return np.concatenate([self.predictor.features(part) for part in parts])


def run_cell(cell: Cell, device: Device, methods: list[str]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([cell.seed, 1])
    order = rng.permutation(len(device.test))
    cut = int(SEEN_SHARE * len(order))
    seen, measured = order[:cut], order[cut:]
    labels = device.test.labels
    shifted = corrupt(device.test.pixels, cell.shift, cell.severity, cell.seed)
    shots = np.concatenate(
        [seen[labels[seen] == c][: cell.images_per_class] for c in np.unique(labels)]
    )
    case = Case(
        device, shifted[shots], labels[shots], shifted[seen[:UNLABELLED]], shifted[measured],
        labels[measured], cell.seed,
    )  # fmt: skip
    clean = accuracy(device.logits(device.test.pixels[measured], device.initial), labels[measured])
    before = case.measure(device.initial)
    for method in methods:
        began = time.perf_counter()
        outcome = RUNS[method](case)
        yield {
            "task": cell.task,
            "bundle": device.digest,
            "shift": cell.shift,
            "severity": cell.severity,
            "seen": cell.shift in CONDITIONS,
            "images_per_class": None if method in WITHOUT_LABELS else cell.images_per_class,
            "method": method,
            "seed": cell.seed,
            "accuracy_clean": clean,
            "accuracy_before": before,
            "accuracy_after": outcome.after if outcome.taken else before,
            "accuracy_unguarded": outcome.after,
            "taken": outcome.taken,
            "figures": {name: round(value, 4) for name, value in outcome.figures.items()},
            "steps": outcome.steps,
            "seconds": round(time.perf_counter() - began + case.memory.take_saved(), 2),
            "peak_rss_mb": None,  # of a process of its own: adapt_memory.py
        }


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


def run_mix(case: Case) -> Outcome:
    """Ours: sources and condition prompts, with labels."""
    learner = GradientLearner(case.device.graph, Settings())
    current = case.device.initial
    return case.outcome(adapt_labelled(learner, case.images, case.labels, current, seed=case.seed))


def run_mix_sources(case: Case) -> Outcome:
    """Adapt over the sources alone: a bank without condition prompts."""
    sources = case.device.without_conditions
    learner = GradientLearner(sources.graph, Settings())
    proposal = adapt_labelled(learner, case.images, case.labels, sources.initial, seed=case.seed)
    after = accuracy(sources.logits(case.test, proposal.weights), case.test_labels)
    return Outcome(after, proposal.verdict.taken, proposal.steps, proposal.verdict.figures)


def run_head(case: Case) -> Outcome:
    """Adapt the head alone: its weights move, on fixed features."""
    device = case.device

    class HeadLearner:
        initial, head, method = device.initial.mix, device.head, "head"
        settings, clean = Settings(rate=0.0, proximal=0.0, head="weights", steps=60), None

        def check(self, *_: Any) -> None:
            pass

        def features(self, images: Pixels, _: Any) -> Any:
            return device.features(images)

        def learn(
            self, images: Pixels, labels: Any, start: Point, report: Any, deadline: float
        ) -> Descent:
            features = device.features(images).astype(np.float64)

            def judge(_: Any, head: Head) -> Slope:
                log_p = log_softmax(head.logits(features))
                d = (np.exp(log_p) - labels) / len(labels)
                loss = float(-(labels * log_p).sum(axis=1).mean())
                return Slope(loss, np.zeros_like(self.initial), d.T @ features, d.sum(axis=0))

            return descend(judge, start, self.initial, self.settings, report, deadline)

    proposal = adapt_labelled(
        HeadLearner(), case.images, case.labels, device.initial, seed=case.seed
    )
    head, verdict = Weights(device.initial.mix, proposal.weights.head), proposal.verdict
    return Outcome(case.measure(head), verdict.taken, proposal.steps, verdict.figures)


def run_feature_mean(case: Case) -> Outcome:
    """Move the head's bias by what takes the features' mean back to that of clean images."""
    device = case.device
    assert device.bank.clean is not None
    head = device.head.following(device.features(case.unlabelled), device.bank.clean.mean)
    return Outcome(case.measure(Weights(device.initial.mix, head)), True, 1)


class UnlabelledLearner(GradientLearner):
    """Learns once a case: the two ways without labels differ in the head's bias alone."""

    def __init__(self, case: Case, head: str) -> None:
        super().__init__(case.device.graph, Settings(head=head))
        self.memory = case.memory

    def features(self, images: Pixels, mix: Any) -> Any:
        """Features under a mix, once a mix."""
        compute = super().features
        return self.memory.once(np.asarray(mix).tobytes(), lambda: compute(images, mix))

    def learn(self, *given: Any) -> Descent:
        """Descend once."""
        compute = super().learn
        found = self.memory.once(b"descent", lambda: compute(*given))
        assert isinstance(found, Descent)
        return found


def run_mix_unlabelled(case: Case, head: str = "none") -> Outcome:
    """Ours without labels."""
    learner = UnlabelledLearner(case, head)
    return case.outcome(
        adapt_unlabelled(learner, case.unlabelled, case.device.initial, seed=case.seed)
    )


def run_mix_unlabelled_bias(case: Case) -> Outcome:
    """Ours without labels, the head's bias following the features' mean (`--head bias`)."""
    return run_mix_unlabelled(case, "bias")


def run_forward_only(case: Case) -> Outcome:
    """Search three tokens at the input by CMA-ES without labels, as FOA does (Niu et al., 2024).

    Fitness is the mean entropy plus the distance of the features' statistics from clean ones, which
    FOA takes after every block; its shift of the activations is `feature_mean` here. The search
    runs in this CPU's fastest precision, what it found is measured in float32.
    """
    device, bundle = case.device, case.device.bundle
    weight, bias = torch.tensor(bundle.head_weight), torch.tensor(bundle.head_bias)
    embed_dim = int(device.backbone.model.embed_dim)
    assert bundle.clean is not None

    @torch.inference_mode()
    def features(backbone: Backbone, pixels: Pixels, tokens: Any) -> Any:
        model = model_of(backbone)
        dtype, start = model.patch_embed.proj.weight.dtype, int(model.num_prefix_tokens)
        folded = bundle.prompt
        prefix = None if folded is None else project_prefix(model, torch.tensor(folded))
        given = torch.as_tensor(tokens, dtype=dtype).reshape(1, FOA_TOKENS, -1)
        parts = []
        for part in normalize(torch.from_numpy(pixels), bundle.preprocessing).split(64):
            x = prepare_tokens(model, part.to(dtype))
            x = torch.cat([x[:, :start], given.expand(len(x), -1, -1), x[:, start:]], dim=1)
            parts.append(pool(model, run_blocks(model, x, prefix), 0).float())
        return torch.cat(parts)

    fast = device.backbone.in_precision(choose_compute(device.backbone).compute.precision)

    def fitness(tokens: Any) -> float:
        found = features(fast, case.unlabelled, tokens)
        logits = (found @ weight.T + bias).numpy()
        distance, _ = statistics_distance(found.numpy(), *bundle.clean.statistics)
        return mean_entropy(logits) + distance

    rng = np.random.default_rng(case.seed)
    start = rng.uniform(-1, 1, FOA_TOKENS * embed_dim) * np.sqrt(6 / (3 * 64 + embed_dim))
    search = CMA(mean=start, sigma=0.1, seed=case.seed, population_size=FOA_POPULATION)
    best = (np.inf, start)
    for _ in range(FOA_GENERATIONS):
        told = [(x, fitness(x)) for x in (search.ask() for _ in range(FOA_POPULATION))]
        best = min(best, *((value, x) for x, value in told), key=lambda pair: pair[0])
        search.tell(told)
    logits = (features(device.backbone, case.test, best[1]) @ weight.T + bias).numpy()
    return Outcome(accuracy(logits, case.test_labels), True, FOA_GENERATIONS)


def run_prompt_full(case: Case) -> Outcome:
    """All tokens of the prompt by backpropagation in PyTorch: what no device can afford."""
    device = case.device
    backbone, bundle = device.backbone, device.bundle
    tokens = torch.tensor(starting_tokens(bundle, backbone), requires_grad=True)
    optimizer = torch.optim.AdamW([tokens], lr=1e-2, weight_decay=0.0)
    x = normalize(torch.from_numpy(case.images), bundle.preprocessing)
    y = torch.from_numpy(case.labels)
    weight, bias = torch.tensor(bundle.head_weight), torch.tensor(bundle.head_bias)
    for _ in range(30):
        optimizer.zero_grad()
        for rows in torch.arange(len(x)).split(64):
            logits = features_prefix(backbone.model, x[rows], tokens) @ weight.T + bias
            loss = nn.functional.cross_entropy(logits, y[rows], reduction="sum") / len(x)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        parts = normalize(torch.from_numpy(case.test), bundle.preprocessing).split(64)
        found = [features_prefix(backbone.model, part, tokens) @ weight.T + bias for part in parts]
    after = accuracy(torch.cat(found).numpy(), case.test_labels)
    return Outcome(after, True, 30)


RUNS: dict[str, Callable[[Case], Outcome]] = {
    "mix": run_mix,
    "mix_sources": run_mix_sources,
    "head": run_head,
    "feature_mean": run_feature_mean,
    "mix_unlabelled": run_mix_unlabelled,
    "mix_unlabelled_bias": run_mix_unlabelled_bias,
    "forward_only": run_forward_only,
    "prompt_full": run_prompt_full,
}
WITHOUT_LABELS = ("feature_mean", "mix_unlabelled", "mix_unlabelled_bias", "forward_only")


if __name__ == "__main__":
    main()
