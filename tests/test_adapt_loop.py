"""Adapting on a device: the gradient is checked, the mix is learned, the guard decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted import Planted

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.learner import ForwardLearner, GradientLearner
from hgprompt_edge.adapt.loop import adapt_labelled, adapt_unlabelled
from hgprompt_edge.adapt.losses import (
    anchored_judge,
    statistics_distance,
    statistics_judge,
)
from hgprompt_edge.adapt.optimizer import Settings
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.simplex import smoothed
from hgprompt_edge.maths.softmax import log_softmax


@pytest.fixture(scope="module", params=["learned", "none"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), request.param)


def test_labels_find_the_planted_prompt_and_the_guard_takes_it(planted: Planted) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=25))
    found = adapt_labelled(learner, planted.images, planted.labels, planted.initial)
    assert found.verdict.taken, found.verdict.reason
    assert found.weights.mix[-1] > 0.5
    assert found.weights.mix.sum() == pytest.approx(1)
    figures = found.verdict.figures
    assert figures["log_loss_after"] < figures["log_loss_before"]
    planted.predictor.set_weights(found.weights.mix)
    after = (planted.predictor.logits(planted.images).argmax(1) == planted.labels).mean()
    planted.predictor.set_weights(planted.bank.initial)
    before = (planted.predictor.logits(planted.images).argmax(1) == planted.labels).mean()
    assert after > before


def test_what_is_taken_over_is_judged_not_the_folds_alone(planted: Planted) -> None:
    """The folds find the prompt; what comes of all images predicts one class for everything."""

    class Stray(GradientLearner):
        def learn(self, images: Any, *given: Any) -> Any:
            found = super().learn(images, *given)
            if len(images) < len(planted.images):
                return found
            head = found.point.head
            one = replace(head, bias=head.bias + 99 * np.eye(len(head.bias), dtype=np.float32)[0])
            return replace(found, point=replace(found.point, head=one))

    found = adapt_labelled(
        Stray(planted.graph, Settings(steps=25)), planted.images, planted.labels, planted.initial
    )
    assert found.verdict.figures["log_loss_after"] < found.verdict.figures["log_loss_before"]
    assert not found.verdict.taken


def test_forwards_alone_find_it_too(planted: Planted) -> None:
    learner = ForwardLearner(planted.predictor, Settings(steps=8))
    found = adapt_labelled(learner, planted.images, planted.labels, planted.initial)
    assert found.verdict.taken, found.verdict.reason
    assert found.weights.mix.argmax() == len(found.weights.mix) - 1


@pytest.mark.parametrize("seed", range(4))
def test_where_there_is_nothing_to_gain_nothing_changes(planted: Planted, seed: int) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=10))
    logits = planted.initial.head.logits(learner.features(planted.images, planted.initial.mix))
    # Labels as the initial model itself expects them: no other mix can do better than by chance.
    p = np.exp(log_softmax(logits))
    labels = np.array(
        [np.random.default_rng([seed, i]).choice(4, p=row) for i, row in enumerate(p)]
    )
    found = adapt_labelled(learner, planted.images, labels, planted.initial, seed=seed)
    assert not found.verdict.taken, found.verdict.reason


@pytest.mark.parametrize("labelled", [True, False])
def test_the_distance_is_in_units_of_the_initials(planted: Planted, labelled: bool) -> None:
    """Loss and gradient, with labels at the mix of the step before, whose statistics it takes."""
    rng = np.random.default_rng(0)
    width = planted.bank.head.weight.shape[1]
    clean = FeatureStatistics(rng.normal(size=width).astype(np.float32), np.ones(width, np.float32))
    images, rows = planted.images[:9], np.eye(4, dtype=np.float32)[planted.labels[:9]]
    judge = (
        anchored_judge(planted.graph, images, rows, clean, 0.7)
        if labelled
        else statistics_judge(planted.graph, images, clean, 0.7)
    )
    mix, head = smoothed(rng.dirichlet(np.ones(len(planted.bank.names))), 0.3), planted.initial.head
    if labelled:
        judge(mix, head)
    slope = judge(mix, head)
    direction = rng.normal(size=len(mix))
    direction -= direction.mean()
    direction *= 3e-3 / np.abs(direction).max()

    def loss(point: np.ndarray) -> float:
        step = planted.graph(images, rows, point, head)
        at_initial = planted.graph(images, 0 * rows, planted.bank.initial).features
        far, near = (
            statistics_distance(features, clean)[0] for features in (step.features, at_initial)
        )
        return labelled * float(step.loss.mean()) + 0.7 * far / near

    assert slope.loss == pytest.approx(loss(mix), rel=1e-5)
    difference = (loss(mix + direction) - loss(mix - direction)) / 2
    assert slope.d_mix @ direction == pytest.approx(difference, rel=0.02)


def test_a_step_without_numbers_is_no_step_to_go_on_from(planted: Planted) -> None:
    """The anchor's gradient is that of the features of an earlier step, which must have any."""
    width = planted.bank.head.weight.shape[1]
    clean = FeatureStatistics(np.zeros(width, np.float32), np.ones(width, np.float32))
    images, rows = planted.images[:3], np.eye(4, dtype=np.float32)[planted.labels[:3]]
    judge = anchored_judge(planted.graph, images, rows, clean, 0.7)
    mix, head = smoothed(planted.bank.initial), planted.initial.head
    judge(mix, head)
    sound = judge(mix, head)
    assert np.isnan(judge(np.nan * mix, head).loss)
    after = judge(mix, head)
    assert after.loss == sound.loss
    np.testing.assert_array_equal(after.d_mix, sound.d_mix)


@pytest.mark.parametrize("kind", ["gradient", "cma"])
@pytest.mark.parametrize("labelled", [True, False])
def test_seconds_are_for_all_of_the_learning(
    planted: Planted, kind: str, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock on which each look at images takes a second."""
    clock = 0.0
    looks = ((AdaptGraph, "__call__"), (AdaptGraph, "forward"), (ForwardLearner, "features"))

    def ticking(look: Any) -> Any:
        def timed(*given: Any, **named: Any) -> Any:
            nonlocal clock
            clock += 1
            return look(*given, **named)

        return timed

    for owner, name in looks:
        monkeypatch.setattr(owner, name, ticking(getattr(owner, name)))
    monkeypatch.setattr("time.monotonic", lambda: clock)
    learner = learner_of(kind, planted, Settings(steps=10**6, seconds=40))
    width = planted.bank.head.weight.shape[1]
    learner.clean = FeatureStatistics(np.ones(width, np.float32), np.ones(width, np.float32))
    if labelled:
        adapt_labelled(learner, planted.images, planted.labels, planted.initial)
    else:
        adapt_unlabelled(learner, planted.images, planted.initial)
    assert clock < 40 + 5, "a last look, and what judges it"


def learner_of(kind: str, planted: Planted, settings: Settings) -> GradientLearner | ForwardLearner:
    if kind == "cma":
        return ForwardLearner(planted.predictor, settings)
    return GradientLearner(planted.graph, settings)


def test_same_seed_same_weights(planted: Planted) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=4))
    first, second = (
        adapt_labelled(learner, planted.images, planted.labels, planted.initial).weights.mix
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("moved", ["bias", "weights"])
def test_head_moves_where_asked(planted: Planted, moved: str) -> None:
    settings = Settings(steps=5, head=moved)
    found = adapt_labelled(
        GradientLearner(planted.graph, settings), planted.images, planted.labels, planted.initial
    )
    head = found.weights.head
    assert np.abs(head.bias - planted.initial.head.bias).max() > 0
    assert (np.abs(head.weight - planted.initial.head.weight).max() > 0) == (moved == "weights")


def test_micro_batches_give_the_same_step(planted: Planted) -> None:
    rows = np.eye(4, dtype=np.float32)[planted.labels[:7]]
    mix = smoothed(planted.bank.initial)
    whole = AdaptGraph(adapt_path(planted.path), planted.bank, micro_batch=7)
    parts = AdaptGraph(adapt_path(planted.path), planted.bank, micro_batch=2)
    one, other = (graph(planted.images[:7], rows, mix) for graph in (whole, parts))
    np.testing.assert_allclose(one.d_mix, other.d_mix, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_forward_alone_gives_what_the_whole_step_gives(planted: Planted) -> None:
    images, mix = planted.images[:3], smoothed(planted.bank.initial)
    rows = np.eye(4, dtype=np.float32)[planted.labels[:3]]
    step, look = planted.graph(images, rows, mix), planted.graph.forward(images, mix, rows)
    for name in ("loss", "logits", "features"):
        np.testing.assert_array_equal(getattr(look, name), getattr(step, name))
    assert not planted.graph.forward(images, mix).loss.any(), "no labels"
