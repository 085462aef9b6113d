"""What all methods of a comparison run on: a task, the sources, a budget, and what was done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore, digest
from hgprompt_edge.files import cache_folder
from hgprompt_edge.fit.algorithm import LAMBDA, STEPS
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix, on_basis
from hgprompt_edge.prompts.prompt import Floats
from hgprompt_edge.training.prompt_tuning import Recipe, Trained
from hgprompt_edge.training.tune import BATCH_SIZE, LEARNING_RATE, train_from, usual_batch
from hgprompt_edge.training.tune import STEPS as TUNE_STEPS

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """What the methods may spend; one for all tasks of a comparison.

    Attributes
    ----------
    lam, steps
        As in `HGPrompt`.
    evaluations
        Mixes that the gradient-free search may try, a pass over the training images each.
    spot_steps
        Steps of the short target-trained prompt that SPoT compares the sources with.
    tune_steps
        Steps of tune.
    """

    lam: float = LAMBDA
    steps: int = STEPS
    evaluations: int = 40
    spot_steps: int = 10
    tune_steps: int = TUNE_STEPS
    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class Plan:
    """What a method came up with.

    Attributes
    ----------
    candidate
        What runs at inference.
    trained_passes
        Image passes of training, beside what the feature store was asked for; one forward and
        two back for each image of a step.
    """

    candidate: Candidate
    trained_passes: int = 0


@dataclass(frozen=True)
class Done:
    """A plan and what it cost.

    Attributes
    ----------
    asked
        What the feature store was asked for, as `FeatureStore.counting` notes it.
    seconds
        Wall time, without what the cache held already.
    """

    plan: Plan
    asked: dict[str, int]
    seconds: float

    @property
    def image_passes(self) -> int:
        """Forward passes of single images, a backward pass counting as two."""
        return sum(self.asked.values()) + self.plan.trained_passes


@dataclass(frozen=True)
class Contest:
    """A task, the sources (none of its family), the budget and the methods by their names."""

    store: FeatureStore
    task: Task
    bank: PromptBank
    judge: Judge
    budget: Budget
    methods: Mapping[str, Callable[[Contest], Plan]]
    seed: int = 0
    done: dict[str, Done] = field(default_factory=dict)

    def run(self, method: str) -> Done:
        """Plan of one of the `methods`, made once; its passes count wherever it is used."""
        if method not in self.done:
            began = time.perf_counter()
            with self.store.counting() as asked:
                plan = self.methods[method](self)
            self.done[method] = Done(plan, asked, time.perf_counter() - began)
        else:
            self.store.note(self.done[method].asked)
        return self.done[method]

    @property
    def tokens(self) -> Floats:
        """The sources, `[N, L, T, D]`."""
        return self.bank.tokens

    @property
    def recipe(self) -> Recipe:
        """How prompts of the target are trained; `epochs` is up to the method."""
        budget = self.budget
        return Recipe(
            batch_size=usual_batch(len(self.task.classes), budget.batch_size),
            learning_rate=budget.learning_rate,
            init_seed=self.bank.prompts[0].init_seed or 0,
            tokens=self.bank.tokens.shape[2],
            mode=self.bank.mode,
            validate_every=1,  # how often the state is kept, too
            seed=self.seed,
            keep_last=True,  # validation judges, so it does not choose
        )

    def folded(self, weights: Weights) -> Candidate:
        """One prompt: the mix with these weights, which need not sum to 1.

        Of the sources `[N]`, or of the bank's basis `[M]` or `[M, L]`.
        """
        basis = self.bank.basis_tokens
        weights = on_basis(weights, len(basis))
        return Candidate("", mix(basis, weights), weights)

    @property
    def unmixed(self) -> Weights:
        """Weights `[M]` where no source is used."""
        return np.zeros(len(self.bank.basis))

    @property
    def start(self) -> Floats | None:
        """What prompts of the target are trained from; None: it has to be computed."""
        return self.bank.start.tokens if self.bank.start else None

    def train(self, start: Floats | None, recipe: Recipe) -> Trained:
        """Train a prompt of the target; interrupted, the next one goes on from its state."""
        state = None
        if self.store.enabled:
            backbone = self.store.backbone
            rule = backbone.preprocessing.to_json()
            of = (backbone.sha256, backbone.pooling, rule, self.task.digest, recipe, digest(start))
            name = hashlib.sha256(repr(of).encode()).hexdigest()
            state = cache_folder() / "trainings" / f"{name}.state"
            state.parent.mkdir(parents=True, exist_ok=True)
        return train_from(start, self.store.backbone, self.task, recipe, state=state)
