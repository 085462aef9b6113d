"""Adam on the logits of the mix, and the losses and gradients that it goes by."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.adapt.losses import Judge, Slope, statistics_distance
from hgprompt_edge.adapt.optimizer import Point, Settings, deadline_of, descend, start_at
from hgprompt_edge.errors import UserError
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.simplex import through_softmax
from hgprompt_edge.maths.softmax import softmax


class TestDescend:
    def judge(self, mix: np.ndarray, head: Head) -> Slope:
        """Cross-entropy of the mix with a target distribution: its minimum is the target."""
        target = np.array([0.7, 0.2, 0.1])
        return Slope(
            float(-(target * np.log(mix)).sum()), -target / mix, np.zeros((2, 2)), np.zeros(2)
        )

    head = Head(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))

    def test_finds_the_minimum(self) -> None:
        start = start_at(np.array([0, 0, 1.0]), self.head)
        found = descend(
            self.judge, start, np.full(3, 1 / 3), Settings(steps=300, rate=0.1, proximal=0)
        )
        np.testing.assert_allclose(found.point.mix, [0.7, 0.2, 0.1], atol=0.05)

    def test_proximal_term_keeps_near_the_initial(self) -> None:
        initial = np.array([0, 0, 1.0])
        start = start_at(initial, self.head)
        near, far = (
            descend(self.judge, start, initial, Settings(steps=200, proximal=tau)).point.mix[2]
            for tau in (10.0, 0.0)
        )
        assert near > 0.8 > far

    def nan_at(self, calls: Container[int]) -> Judge:
        """Judge as before, but with no number at some of the calls."""
        count = 0

        def judge(mix: np.ndarray, head: Head) -> Slope:
            nonlocal count
            count += 1
            slope = self.judge(mix, head)
            return replace(slope, loss=float("nan")) if count in calls else slope

        return judge

    def test_nan_is_undone_then_given_up(self) -> None:
        start = Point(np.zeros(3), self.head)
        with pytest.raises(
            UserError, match="loss or its gradient became NaN or infinite, even after 5 halv"
        ):
            descend(self.nan_at(range(2, 99)), start, np.full(3, 1 / 3), Settings())

    def test_one_nan_does_no_harm(self) -> None:
        start = Point(np.zeros(3), self.head)
        found = descend(self.nan_at({3}), start, np.full(3, 1 / 3), Settings(steps=60))
        assert found.point.mix[0] > 0.6

    def test_a_deadline_ends_it(self) -> None:
        start, endless = Point(np.zeros(3), self.head), Settings(steps=10**9)
        end = deadline_of(1e-9)
        found = descend(self.judge, start, np.full(3, 1 / 3), endless, deadline=end)
        assert found.steps == 0
        np.testing.assert_array_equal(found.point.mix, start.mix)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=6))
@settings(max_examples=30, deadline=None)
def test_gradient_through_the_softmax(mix_logits: list[float]) -> None:
    point, rng = np.array(mix_logits), np.random.default_rng(0)
    d = rng.normal(size=len(point))
    analytic = through_softmax(d, softmax(point))
    for i in range(len(point)):
        e = np.eye(len(point))[i] * 1e-5
        numeric = (softmax(point + e) @ d - softmax(point - e) @ d) / 2e-5
        assert analytic[i] == pytest.approx(numeric, abs=1e-6)


def numeric_gradient(f: Any, x: np.ndarray, step: float) -> np.ndarray:
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step
        gradient[index] = (f(x + e) - f(x - e)) / (2 * step)
    return gradient


def test_gradient_of_the_loss_without_labels() -> None:
    rng = np.random.default_rng(0)
    known = FeatureStatistics(rng.normal(size=4), rng.uniform(0.5, 2, 4))
    features = rng.normal(size=(6, 4))

    def distance(x: np.ndarray) -> float:
        return statistics_distance(x, known)[0]

    numeric = numeric_gradient(distance, features, 1e-4)
    np.testing.assert_allclose(statistics_distance(features, known)[1], numeric, atol=1e-5)
