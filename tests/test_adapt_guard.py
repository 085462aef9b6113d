"""When new weights are taken over, and when the old ones stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.adapt.guard.labelled import MIN_ERRORS, errors_asked, fold_of, judge_labelled
from hgprompt_edge.adapt.guard.unlabelled import judge_clean, judge_unlabelled
from hgprompt_edge.maths.paired import score_interval


class TestGuard:
    labels = np.arange(40) % 4

    def logits(self, strength: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return strength * np.eye(4)[self.labels] + noise * rng.normal(size=(40, 4))

    def test_clear_gain_is_taken(self) -> None:
        verdict = judge_labelled(self.logits(0.5), self.logits(2.0), self.labels)
        assert verdict.taken
        assert "falls by" in verdict.reason

    def test_accuracy_comes_with_its_interval(self) -> None:
        old, new = self.logits(1.0), self.logits(2.0)
        old[:10] = -old[:10]
        figures = judge_labelled(old, new, self.labels).figures
        low, high = score_interval(40, 10, 0)
        assert (figures["change_low"], figures["change_high"]) == pytest.approx((low, high))
        assert figures["accuracy_after"] - figures["accuracy_before"] == 0.25
        refused = judge_labelled(new, old, self.labels)
        assert not refused.taken
        same = judge_labelled(new, new, self.labels).figures
        assert same["change_low"] < 0 < same["change_high"], "forty images do not prove it"

    def test_gain_within_its_uncertainty_is_not(self) -> None:
        old = self.logits(1.0)
        up_and_down = np.where(np.arange(40) % 2, 1.2, 0.85)[:, None]  # better on average, barely
        verdict = judge_labelled(old, old * up_and_down, self.labels)
        assert verdict.figures["log_loss_before"] - verdict.figures["log_loss_after"] > 0
        assert not verdict.taken
        assert "uncertainty" in verdict.reason
        assert not judge_labelled(old, old, self.labels).taken, "nothing is no gain"

    def test_statistics_that_come_back_need_less_of_the_labels(self) -> None:
        old = self.logits(1.0)
        better, worse = (
            old * np.where(np.arange(40) % 2, *scales)[:, None]
            for scales in ((1.2, 0.85), (1.15, 0.8))
        )
        verdict = judge_labelled(old, better, self.labels, (1.0, 0.5))
        assert verdict.taken
        assert "come nearer to those of clean images (distance 1.00 to 0.50)" in verdict.reason
        clear = judge_labelled(self.logits(0.5), self.logits(2.0), self.labels, (1.0, 0.5))
        assert "come nearer" not in clear.reason
        for before, after in ((1.0, 0.95), (1.0, 1.2), (0.09, 0.01), (1.0, float("nan"))):
            assert not judge_labelled(old, better, self.labels, (before, after)).taken
        for new in (worse, old):
            assert not judge_labelled(old, new, self.labels, (1.0, 0.5)).taken

    @given(st.floats(0.1, 50), st.floats(0, 50), st.floats(0, 50))
    def test_the_nearer_the_statistics_come_the_less_is_asked(
        self, before: float, one: float, other: float
    ) -> None:
        near, far = sorted((one, other))
        asked = errors_asked((before, near)), errors_asked((before, far))
        assert 0 <= asked[0] <= asked[1] <= MIN_ERRORS == errors_asked((before, before))
        assert errors_asked((before, 0.5 * before)) == 0
        assert errors_asked((before, 0.8 * before)) == pytest.approx(MIN_ERRORS / 2)
        assert errors_asked((0.09, near)) == errors_asked(None) == MIN_ERRORS

    def test_what_is_taken_over_is_better_on_the_images_itself(self) -> None:
        """What was held out speaks of the weights of each part, not of those of all images."""
        old, new = self.logits(1.0), self.logits(2.0)
        assert judge_labelled(old, new, self.labels, None, self.logits(1.1)).taken
        for final in (self.logits(0.9), old, np.full((40, 4), np.nan)):
            verdict = judge_labelled(old, new, self.labels, None, final)
            assert not verdict.taken
            assert "better on all of them" in verdict.reason

    def test_one_image_says_nothing(self) -> None:
        old, new = np.zeros((1, 2)), np.array([[3.0, 0.0]])
        for distances in (None, (1.0, 0.5)):
            assert not judge_labelled(old, new, np.array([0]), distances).taken

    def test_lower_accuracy_is_never_taken(self) -> None:
        old = self.logits(0.2)
        new = self.logits(5.0)
        new[:4] = -new[:4]
        new[:4] += 4.9 * np.eye(4)[self.labels[:4]]  # sure elsewhere, wrong here by a little
        assert not judge_labelled(old, new, self.labels).taken

    def test_collapse_and_confident_disagreement_are_refused(self) -> None:
        initial = self.logits(3.0)
        one = np.tile([5.0, 0, 0, 0], (40, 1))
        collapsed = judge_unlabelled(initial, initial, one, (1.0, 0.5))
        assert not collapsed.taken
        assert "collapse" in collapsed.reason
        three = np.where(np.arange(4) == 3, -9.0, initial)  # of four classes
        assert "collapse" in judge_unlabelled(initial, initial, three, (1.0, 0.5)).reason
        turned = 9 * np.eye(4)[(self.labels + 1) % 4]
        assert not judge_unlabelled(initial, initial, turned, (1.0, 0.5)).taken
        assert judge_unlabelled(initial, initial, self.logits(6.0), (1.0, 0.5)).taken

    def test_what_is_not_known_speaks_for_nothing(self) -> None:
        initial, better = self.logits(3.0), self.logits(6.0)
        assert judge_unlabelled(initial, initial, better, (1.0, 0.5)).taken
        verdict = judge_unlabelled(initial, initial, better, None)
        assert not verdict.taken
        assert "does not know the statistics of clean images" in verdict.reason

    def test_statistics_must_not_go_away(self) -> None:
        old, new = self.logits(1.0), self.logits(2.0)
        for before, after, taken in (
            (1.0, 4.1, True),
            (1.0, 4.2, False),
            (0.1, float("nan"), False),
        ):
            verdict = judge_labelled(old, new, self.labels, (before, after))
            assert verdict.taken is taken, (before, after)
            assert ("go away from those of clean" in verdict.reason) is not taken
            assert verdict.figures["distance_before"] == before

    def test_statistics_must_be_off_and_come_back(self) -> None:
        logits = self.logits(3.0)
        for before, after, taken, reason in (
            (1.0, 0.5, True, "same class"),
            (1.0, 0.6, True, "same class"),
            (1.0, 0.61, False, "little nearer"),
            (1.0, float("nan"), False, "little nearer"),
            (0.09, 0.0, False, "look as clean ones do"),
        ):
            verdict = judge_unlabelled(logits, logits, logits, (before, after))
            assert verdict.taken is taken, (before, after)
            assert reason in verdict.reason
            assert verdict.figures["distance_before"] == before

    def test_a_device_goes_back_to_what_fits_clean_images(self) -> None:
        for in_force, initial, taken in (
            (0.05, 0.03, True),
            (0.049, 0.02, False),
            (0.1, 0.061, False),
            (float("nan"), 0.02, False),
        ):
            verdict = judge_clean(in_force, initial)
            assert verdict is not None
            assert verdict.taken is taken, (in_force, initial)
            assert ("back to the initial weights" in verdict.reason) is taken
        assert judge_clean(0.5, 0.1) is None, "these images do not look clean"

    @given(st.lists(st.integers(0, 3), min_size=3, max_size=60))
    @settings(max_examples=40, deadline=None)
    def test_folds_share_out_every_class(self, labels: list[int]) -> None:
        folds = fold_of(np.array(labels), 3, np.random.default_rng(0))
        assert set(folds) <= {0, 1, 2}
        for label in set(labels):
            counts = np.bincount(folds[np.array(labels) == label], minlength=3)
            assert counts.max() - counts.min() <= 1
