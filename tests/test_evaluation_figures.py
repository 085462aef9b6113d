"""The figures of a model are those of scikit-learn, and calibration is what its name says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hgprompt_edge.evaluate.calibration import calibration
from hgprompt_edge.evaluate.figures import measure

metrics = pytest.importorskip("sklearn.metrics")
CLASSES = tuple("abcdef")
PLACES = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(hnp.arrays(np.int64, n, elements=st.integers(0, 5)),) * 2)
)


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::sklearn.exceptions.UndefinedMetricWarning"
)
@given(PLACES)
def test_figures_are_those_of_scikit_learn(
    both: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
) -> None:
    labels, predicted = both
    found = measure(labels, predicted, np.full(len(labels), 0.5), CLASSES)
    assert found.images == len(labels)
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(labels, predicted))
    balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy.value == pytest.approx(balanced)
    matrix = metrics.confusion_matrix(labels, predicted, labels=range(6))
    np.testing.assert_array_equal(found.confusion, matrix)
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(6), zero_division=np.nan
    )
    for place, each in enumerate(found.classes):
        assert each.name == CLASSES[place]
        assert each.images == images[place]
        assert (each.recall is None) == np.isnan(recall[place])
        assert each.recall is None or each.recall.value == pytest.approx(recall[place])
        assert (each.precision is None) == np.isnan(precision[place])
        assert each.precision is None or each.precision == pytest.approx(precision[place])
        assert (each.f1 is None) == np.isnan(f1[place])
        assert each.f1 is None or each.f1 == pytest.approx(f1[place])


@given(PLACES)
def test_confusions_are_the_mistakes_by_name(
    both: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
) -> None:
    labels, predicted = both
    found = measure(labels, predicted, np.full(len(labels), 0.5), CLASSES).confusions()
    assert sum(each.images for each in found) == (labels != predicted).sum()
    assert [each.images for each in found] == sorted((e.images for e in found), reverse=True)
    pairs = {(CLASSES[a], CLASSES[b]) for a, b in zip(labels, predicted, strict=True) if a != b}
    assert {(each.name, each.predicted) for each in found} == pairs
    assert len(found) == len(pairs)


def test_no_images_have_no_figures() -> None:
    with pytest.raises(ValueError, match="one image at least"):
        measure([], [], np.zeros(0), CLASSES)


def test_the_calibration_error_by_hand() -> None:
    # Two bins: 0.9 and 0.92 with one of two right, 0.3 with one of one.
    found = calibration(np.array([0.9, 0.92, 0.3]), np.array([True, False, True]))
    assert found.error == pytest.approx((2 * abs(0.91 - 0.5) + abs(0.3 - 1)) / 3)
    assert found.confidence == pytest.approx((0.9 + 0.92 + 0.3) / 3)
    filled = [each for each in found.bins if each.images]
    assert [(each.images, each.accuracy) for each in filled] == [(1, 1.0), (2, 0.5)]
    assert all(each.low < each.confidence <= each.high for each in filled)
    assert found.bins[0].low == 0
    assert found.bins[-1].high == 1


@given(
    st.integers(1, 50).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float64, n, elements=st.floats(0, 1)), hnp.arrays(np.bool_, n)
        )
    )
)
def test_the_bins_hold_every_image(
    both: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]],
) -> None:
    confidence, right = both
    found = calibration(confidence, right)
    assert sum(each.images for each in found.bins) == len(confidence)
    total = sum(each.images * abs(each.accuracy - each.confidence) for each in found.bins)
    assert found.error == pytest.approx(total / len(confidence), abs=1e-9)
    # No bins at all would show less: the mean of distances is at least the distance of means.
    assert found.error >= abs(right.mean() - confidence.mean()) - 1e-9


def test_a_calibrated_model_shows_what_chance_gives_and_a_boaster_more() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 1, 400)
    honest = [calibration(confidence, rng.random(400) < confidence) for _ in range(20)]
    errors = [each.error for each in honest]
    assert np.mean(errors) == pytest.approx(honest[0].by_chance, rel=0.1)
    boaster = calibration(confidence, rng.random(400) < confidence - 0.3)
    assert boaster.error == pytest.approx(0.3, abs=0.05)
    assert boaster.error > 3 * boaster.by_chance
