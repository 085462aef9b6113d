"""Adaptation without labels, by the statistics of clean images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import Planted, known_statistics
from small_vits import token_features
from test_adapt_loop import learner_of as learner_of
from test_adapt_loop import planted as planted

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.learner import ForwardLearner, GradientLearner, Learner
from hgprompt_edge.adapt.loop import adapt_unlabelled, learn_unlabelled
from hgprompt_edge.adapt.losses import (
    statistics_distance,
)
from hgprompt_edge.adapt.optimizer import Descent, Settings, start_at
from hgprompt_edge.adapt.proposal import Proposal, Weights
from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.runtime.predictor import Predictor


@pytest.mark.parametrize("kind", ["gradient", "cma"])
def test_the_anchor_keeps_features_on_the_ground(planted: Planted, kind: str) -> None:
    """Labels that say nothing lead far away without it."""
    at_initial = GradientLearner(planted.graph, Settings()).features(
        planted.images, planted.initial.mix
    )
    clean = FeatureStatistics(at_initial.mean(axis=0), at_initial.var(axis=0))
    labels = np.random.default_rng(0).integers(0, 4, 12)
    rows = np.eye(4, dtype=np.float32)[labels]
    start = start_at(planted.initial.mix, planted.initial.head)
    found = {}
    for anchor in (0.0, 3.0):
        settings = Settings(steps=12, proximal=0, anchor=anchor)
        learner = learner_of(kind, planted, settings)
        learner.clean = clean
        point = learner.learn(planted.images[:12], rows, start, None).point
        features = learner.features(planted.images[:12], point.mix)
        found[anchor] = statistics_distance(features, clean)[0]
    assert found[3.0] < found[0.0]


@pytest.mark.parametrize("kind", ["gradient", "cma"])
def test_a_mean_that_no_mix_takes_back_is_not_the_biass_to_take(
    planted: Planted, kind: str
) -> None:
    """As of clean images of a few classes: a bias always takes the mean back, right or wrong."""
    learner = learner_of(kind, planted, Settings(steps=2, head="bias"))
    features = learner.features(planted.images, planted.initial.mix)
    far = features.mean(axis=0) + 5 * features.std(axis=0)
    learner.clean = FeatureStatistics(far, features.var(axis=0))
    found = adapt_unlabelled(learner, planted.images, planted.initial)
    assert np.abs(found.weights.head.bias - planted.initial.head.bias).max() > 0
    assert not found.verdict.taken
    assert "little nearer" in found.verdict.reason


@pytest.mark.parametrize("kind", ["gradient", "cma"])
def test_without_labels_nothing_is_learned_where_clean_images_are_not_known(
    planted: Planted, kind: str
) -> None:
    learner = learner_of(kind, planted, Settings(steps=3))
    assert learner.clean is None
    found = adapt_unlabelled(learner, planted.images, planted.initial)
    assert (found.verdict.taken, found.steps) == (False, 0)
    assert found.weights is planted.initial
    assert "does not know the statistics of clean images" in found.verdict.reason
    assert "run `hgedge fit`" in found.verdict.reason
    start = start_at(planted.initial.mix, planted.initial.head)
    with pytest.raises(ValueError, match="statistics of clean images are needed"):
        learner.learn(planted.images, None, start, None)


def learn_from(learner: Learner, images: np.ndarray, current: Weights) -> Proposal:
    """Learn without labels, whatever the images look like and whatever the guard says."""
    before = learner.features(images, learner.initial), learner.features(images, current.mix)
    return learn_unlabelled(learner, images, current, before)


def test_without_labels_the_statistics_of_clean_images_lead_back(
    planted: Planted, tmp_path: Path
) -> None:
    """Clean images under the first source; the device starts from the condition prompt."""
    tokens = bank_tokens(planted.bundle)[1]
    clean = replace(planted.bundle, prompt=tokens[0], choice="learned")
    features = token_features(clean, planted.backbone, planted.images)
    known = replace(planted.bundle, clean=known_statistics(features.mean(0), features.var(0), 4))
    path = tmp_path / "pets.onnx"
    export_onnx(known, planted.backbone, path, runtime_weights=True, adapt=True)
    predictor = Predictor(path)
    assert predictor.bank is not None
    first = len(predictor.bank.names) - 3  # behind "no prompt", where there is one
    away = Weights(np.eye(len(predictor.bank.names))[first + 2], planted.initial.head)
    graph = AdaptGraph(adapt_path(path), predictor.bank)
    for learner in (
        GradientLearner(graph, Settings(steps=60, proximal=0)),
        ForwardLearner(predictor, Settings(steps=15, proximal=0)),
    ):
        found = learn_from(learner, planted.images, away)

        def distance(mix: np.ndarray) -> float:
            predictor.set_weights(mix)
            seen = predictor.features(planted.images)
            bank = predictor.bank
            return statistics_distance(seen, bank.clean)[0]

        at_source = distance(np.eye(len(predictor.bank.names))[first])
        assert at_source < 1e-6, "the bank's statistics are those of the clean images"
        assert distance(found.weights.mix) < 0.5 * distance(away.mix), learner.method
        assert found.weights.head is away.head
        at_initial = distance(learner.initial)
        assert found.verdict.figures["distance_before"] == pytest.approx(at_initial, rel=1e-3)
        assert found.verdict.figures["distance_after"] == pytest.approx(
            distance(found.weights.mix), rel=1e-3
        )

    begun = learn_from(GradientLearner(graph, Settings(steps=1)), planted.images, away)
    assert begun.weights.mix[first] > 0.85, "begins at the prompt that brings statistics nearest"


def test_a_descent_that_goes_wrong_leaves_its_start_to_judge(planted: Planted) -> None:
    """Clean images under the condition prompt; the descent ends where its loss is worst."""

    class Wandering(GradientLearner):
        def learn(self, *given: Any) -> Descent:
            found = super().learn(*given)
            return replace(found, point=start_at(np.eye(len(self.initial))[0], self.head))

    learner = Wandering(planted.graph, Settings(steps=2))
    corner = np.eye(len(planted.initial.mix))[-1]
    features = learner.features(planted.images, corner)
    learner.clean = FeatureStatistics(features.mean(axis=0), features.var(axis=0))
    found = learn_from(learner, planted.images, planted.initial)
    assert found.verdict.taken, found.verdict.reason
    assert found.weights.mix[-1] > 0.85
    first, second = (found.verdict.figures[f"distance_{when}"] for when in ("before", "after"))
    assert second < 0.6 * first
    learner.clean = FeatureStatistics(features.mean(axis=0) + 100, features.var(axis=0))
    refused = learn_from(learner, planted.images, planted.initial)
    assert not refused.verdict.taken
    assert refused.weights.mix[0] > 0.85, "what the descent found is what is shown"


@pytest.mark.parametrize("kind", ["gradient", "cma"])
def test_images_that_look_clean_teach_nothing(planted: Planted, kind: str) -> None:
    learner = learner_of(kind, planted, Settings(steps=3))
    features = learner.features(planted.images, planted.initial.mix)
    learner.clean = FeatureStatistics(features.mean(axis=0), features.var(axis=0))
    found = adapt_unlabelled(learner, planted.images, planted.initial)
    assert (found.verdict.taken, found.steps) == (False, 0)
    assert "look as clean ones do" in found.verdict.reason
    assert found.weights is planted.initial


def test_when_the_light_comes_back_so_do_the_initial_weights(planted: Planted) -> None:
    """The device has adapted to something that is gone."""
    learner = GradientLearner(planted.graph, Settings(steps=3))
    features = learner.features(planted.images, planted.initial.mix)
    learner.clean = FeatureStatistics(features.mean(axis=0), features.var(axis=0))
    corner = np.eye(len(planted.initial.mix))[-1]
    moved = replace(planted.initial.head, bias=planted.initial.head.bias + 1)
    for share, back in ((1.0, True), (1e-3, False)):
        mix = (1 - share) * planted.initial.mix + share * corner
        found = adapt_unlabelled(learner, planted.images, Weights(mix, moved))
        assert (found.verdict.taken, found.steps) == (back, 0)
        if back:
            assert "back to the initial weights" in found.verdict.reason
            np.testing.assert_array_equal(found.weights.mix, planted.initial.mix)
            np.testing.assert_array_equal(found.weights.head.bias, planted.initial.head.bias)


def test_weights_in_force_stay_where_something_has_changed(planted: Planted) -> None:
    """Labels may have led to a mix that is further from clean images than the initial ones."""
    learner = GradientLearner(planted.graph, Settings(steps=1))
    initial, corner = planted.initial, np.eye(len(planted.initial.mix))[-1]
    at_initial, away = (learner.features(planted.images, mix) for mix in (initial.mix, corner))
    # Beyond the initial features, seen from those of the weights in force.
    mean = at_initial.mean(axis=0) + 0.6 * (at_initial - away).mean(axis=0)
    learner.clean = FeatureStatistics(mean, at_initial.var(axis=0))
    distances = [statistics_distance(x, learner.clean)[0] for x in (at_initial, away)]
    assert distances[0] > 0.1, "not what clean images look like"
    assert distances[0] < 0.6 * distances[1]
    found = adapt_unlabelled(learner, planted.images, Weights(corner, initial.head))
    assert not found.verdict.taken
    assert found.steps == 1


def test_without_labels_the_bias_takes_the_mean_back(planted: Planted) -> None:
    """Mean logits are then what the initial head gives for the mean of clean features."""
    rng = np.random.default_rng(0)
    width = planted.bank.head.weight.shape[1]
    clean = FeatureStatistics(rng.normal(size=width).astype(np.float32), np.ones(width, np.float32))
    learner = GradientLearner(planted.graph, Settings(steps=3, head="bias"))
    learner.clean = clean
    found = adapt_unlabelled(learner, planted.images, planted.initial).weights
    np.testing.assert_array_equal(found.head.weight, planted.bank.head.weight)
    logits = found.head.logits(learner.features(planted.images, found.mix)).mean(axis=0)
    wanted = planted.bank.head.weight @ clean.mean + planted.bank.head.bias
    np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())
