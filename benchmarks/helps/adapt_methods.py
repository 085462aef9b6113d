"""The methods of the study of adaptation: ours, and those that we are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cmaes import CMA
from torch import nn

from helps.adapt_cases import Case, Outcome
from hgprompt_edge.adapt.gradient import Pixels
from hgprompt_edge.adapt.guard.measures import accuracy, mean_entropy
from hgprompt_edge.adapt.learner import GradientLearner
from hgprompt_edge.adapt.loop import adapt_labelled, adapt_unlabelled
from hgprompt_edge.adapt.losses import Slope, statistics_distance
from hgprompt_edge.adapt.optimizer import Descent, Point, Settings, descend
from hgprompt_edge.adapt.proposal import Weights
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
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.training.condition_prompts import starting_tokens

FOA_TOKENS, FOA_POPULATION, FOA_GENERATIONS = 3, 28, 8
"""FOA's number of tokens and of candidates a generation; it takes one generation a batch."""


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
    weight, bias = torch.tensor(bundle.head.weight), torch.tensor(bundle.head.bias)
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
        distance, _ = statistics_distance(found.numpy(), bundle.clean)
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
    weight, bias = torch.tensor(bundle.head.weight), torch.tensor(bundle.head.bias)
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


METHODS: dict[str, Callable[[Case], Outcome]] = {
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
