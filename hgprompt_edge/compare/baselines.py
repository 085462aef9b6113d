"""What a user would do otherwise: one function a method, all on the same data, head and cache.

Each function takes a `Contest` and returns a `Plan`: which prompts run at inference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from cmaes import CMA
from torch.nn import functional

from hgprompt_edge.compare.contest import Contest, Plan
from hgprompt_edge.fit.algorithm import (
    Learned,
    align,
    basis_features,
    learn_weights,
    uniform_weights,
)
from hgprompt_edge.fit.choice import (
    Decision,
    choose,
    decide,
    prove,
    source_candidates,
)
from hgprompt_edge.fit.choice import best_source as best_of
from hgprompt_edge.fit.judge import Candidate
from hgprompt_edge.heads.heads import cross_fitted_log_loss
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.training.tune import epochs_for

Weights = npt.NDArray[np.float64]

LORAHUB_BOUND, LORAHUB_L1 = 1.5, 0.05
DESCENT_STEPS, DESCENT_RATE = 300, 0.1


def none(contest: Contest) -> Plan:
    """Run the frozen backbone without a prompt."""
    return Plan(Candidate("", None, contest.unmixed))


def best_source(contest: Contest) -> Plan:
    """Take the one source that holds out best."""
    best = best_of(contest.judge, contest.bank)
    return Plan(source_candidates(contest.bank)[best])


def uniform(contest: Contest) -> Plan:
    """All sources alike."""
    return Plan(contest.folded(uniform_weights(len(contest.bank.prompts))))


def spot(contest: Contest) -> Plan:
    """Weights by similarity to a short target-trained prompt (Vu et al. 2022, "SPoT").

    Similarity is the cosine of prompts averaged over their tokens; negative ones count as zero.
    """
    images = len(contest.task.train)
    epochs = epochs_for(contest.budget.spot_steps, images, contest.recipe.batch_size)
    recipe = replace(contest.recipe, epochs=epochs)
    target = contest.train(contest.start, recipe).tokens
    pooled = torch.from_numpy(contest.tokens).double().mean(2).flatten(1)  # [N, L D]
    reference = torch.from_numpy(target).double().mean(1).flatten()
    similar = functional.cosine_similarity(pooled, reference[None]).clamp(min=0).numpy()
    weights = similar / similar.sum() if similar.sum() > 0 else uniform_weights(len(similar))
    return Plan(contest.folded(weights), 3 * epochs * images)


def h_only(contest: Contest) -> Plan:
    """Transferability without the conflict: `lambda = 0`."""
    return Plan(contest.folded(learn(contest, lam=0.0).weights))


def alignment_only(contest: Contest) -> Plan:
    """Least conflict, reached from uniform by descent on R.

    R is concave with its zeros at the vertices, so this ends at one source: the most central.
    """
    features = basis_features(contest.store, contest.task, contest.bank)
    features = features[: len(contest.bank.prompts)]
    task = contest.task
    alignment = align(features, task.train.labels, len(task.classes), contest.seed)
    mix_logits = torch.zeros(len(features), dtype=torch.float64)
    for _ in range(DESCENT_STEPS):
        weights = mix_logits.softmax(0)
        slope = alignment.gradient(weights)
        slope = weights * (slope - weights @ slope)
        largest = float(slope.abs().max())
        if largest < 1e-12:
            break
        mix_logits = mix_logits - DESCENT_RATE * slope / largest
    return Plan(contest.folded(mix_logits.softmax(0).numpy()))


def gradient_free(contest: Contest) -> Plan:
    """Signed weights by CMA-ES on the training log-loss plus L1 (Huang et al. 2023, "LoraHub").

    The log-loss is cross-fitted: a head that has seen an image says little about it.
    """
    task, count = contest.task, len(contest.bank.prompts)
    search = CMA(
        mean=uniform_weights(count),
        sigma=0.3,
        bounds=np.tile([-LORAHUB_BOUND, LORAHUB_BOUND], (count, 1)),
        seed=contest.seed,
    )
    best, best_value = uniform_weights(count), np.inf
    left = contest.budget.evaluations
    while left > 0:
        solutions = []
        for _ in range(search.population_size):
            weights = search.ask()
            prompt = mix(contest.tokens, weights)
            features = contest.store.features(task.train.pixels, prompt)
            loss = cross_fitted_log_loss(
                features, task.train.labels, len(task.classes), contest.seed
            )
            value = loss + LORAHUB_L1 * float(np.abs(weights).mean())
            solutions.append((weights, value))
            if value < best_value:
                best, best_value = weights, value
            left -= 1
        search.tell(solutions)
    return Plan(contest.folded(best))


def soup(contest: Contest) -> Plan:
    """Greedy soup: sources by validation, each kept if it helps (Wortsman et al. 2022)."""
    count = len(contest.bank.prompts)
    rows = [contest.judge.on_validation(contest.folded(weights)) for weights in np.eye(count)]
    order = sorted(range(count), key=lambda i: (rows[i].val_log_loss, i))
    taken, row = [order[0]], rows[order[0]]
    for source in order[1:]:
        weights = np.eye(count)[[*taken, source]].mean(0)
        grown = contest.judge.on_validation(contest.folded(weights))
        if choose([row, grown]) == 1:
            taken, row = [*taken, source], grown
    return Plan(contest.folded(np.eye(count)[taken].mean(0)))


def prediction_average(contest: Contest) -> Plan:
    """Mean of the probabilities of all sources: N passes at inference."""
    first, *more = source_candidates(contest.bank)
    return Plan(replace(first, more=tuple(more)))


def two_folded(contest: Contest) -> Plan:
    """Do as `HGPrompt(folded=2)`: what is kept and the prompt that adds most to it."""
    return Plan(decision(contest, 2).chosen)


def three_folded(contest: Contest) -> Plan:
    """Do as `HGPrompt(folded=3)`."""
    return Plan(decision(contest, 3).chosen)


def hgprompt(contest: Contest) -> Plan:
    """Take the learned weights, whatever validation says of them."""
    return Plan(contest.folded(learn(contest).weights))


def hgprompt_guarded(contest: Contest) -> Plan:
    """Do as `fit`: no prompt, best source, uniform or learned, whichever holds out best."""
    return Plan(decision(contest, 1).chosen)


def decision(contest: Contest, folded: int) -> Decision:
    """Make the table of `fit` with at most so many folded prompts, and choose."""
    learned = contest.run("hgprompt").plan.candidate
    return decide(contest.judge, contest.bank, learned.weights, folded)


def tune(contest: Contest) -> Plan:
    """Train the target's own prompt as `fit` with tuning does, whatever validation says of it.

    From what `fit` keeps, or from the learned mix where that is no prompt.
    """
    start = contest.run("hgprompt_guarded").plan.candidate
    if start.tokens is None:
        start = contest.run("hgprompt").plan.candidate
    epochs = epochs_for(
        contest.budget.tune_steps, len(contest.task.train), contest.recipe.batch_size
    )
    recipe = replace(contest.recipe, epochs=epochs)
    trained = contest.train(start.tokens, recipe)
    candidate = replace(start, tokens=trained.tokens)
    return Plan(candidate, 3 * epochs * len(contest.task.train))


def tune_guarded(contest: Contest) -> Plan:
    """Do as `fit` with tuning: the tuned prompt where held-out images speak for it."""
    kept, tuned = (contest.run(name).plan.candidate for name in ("hgprompt_guarded", "tune"))
    return Plan(tuned if prove(contest.judge.exact(), kept, tuned).pays else kept)


def vpt_scratch(contest: Contest) -> Plan:
    """Train the target's own prompt from scratch, for the passes of fit and tune together."""
    images = len(contest.task.train)
    with contest.store.uncounted():
        spent = contest.run("tune").image_passes
    epochs = max(1, round(spent / (3 * images)))
    recipe = replace(contest.recipe, epochs=epochs)
    trained = contest.train(contest.start, recipe)
    return Plan(Candidate("", trained.tokens, contest.unmixed), 3 * epochs * images)


METHODS: dict[str, Callable[[Contest], Plan]] = {
    "none": none,
    "best_source": best_source,
    "uniform": uniform,
    "spot": spot,
    "h_only": h_only,
    "alignment_only": alignment_only,
    "gradient_free": gradient_free,
    "soup": soup,
    "prediction_average": prediction_average,
    "hgprompt": hgprompt,
    "hgprompt_guarded": hgprompt_guarded,
    "two_folded": two_folded,
    "three_folded": three_folded,
    "tune": tune,
    "tune_guarded": tune_guarded,
    "vpt_scratch": vpt_scratch,
}


def learn(contest: Contest, lam: float | None = None) -> Learned:
    """Learn weights for the contest's task, as `fit` does; `lam` in place of the budget's."""
    budget = contest.budget
    return learn_weights(
        contest.store,
        contest.task,
        contest.bank,
        best_of(contest.judge, contest.bank),
        lam=budget.lam if lam is None else lam,
        steps=budget.steps,
        seed=contest.seed,
        report=_silent,
    )


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Report to nobody."""
