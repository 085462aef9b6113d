"""Statistics of clean images, of all classes and of those that are expected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.adapt.guard.evidence import (
    expect,
    judge_known,
    judge_labels,
    judge_shown,
    least_shown,
)
from hgprompt_edge.errors import UserError
from hgprompt_edge.maths.feature_statistics import (
    FeatureStatistics,
    measure_statistics,
    places_of,
    read_statistics,
)


def drawn(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes with means of their own and one deviation, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = 3 * rng.normal(size=(len(counts), 5))
    scale = rng.uniform(0.5, 2, 5)
    return (means[labels] + scale * rng.normal(size=(len(labels), 5))).astype(np.float32), labels


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.data())
@settings(max_examples=40, deadline=None)
def test_statistics_of_some_classes_are_pooled_from_what_is_stored(
    counts: list[int], data: st.DataObject
) -> None:
    """Against the mean, and the variance by the residuals of all classes, of the images."""
    features, labels = drawn(counts)
    clean = measure_statistics(features, labels, len(counts))
    np.testing.assert_allclose(clean.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    if len(labels) > 1:
        np.testing.assert_allclose(clean.variance, features.var(0, ddof=1), rtol=1e-4)
    places = data.draw(
        st.lists(st.sampled_from(range(len(counts))), min_size=1, unique=True).map(sorted)
    )
    found = clean.of(places)
    if len(places) == len(counts):
        assert found is not None
        np.testing.assert_array_equal(found.mean, clean.mean)
        return
    if len(labels) == len(counts):
        assert found is None, "no class has two images, so none says how they vary"
        return
    own = np.isin(labels, places)
    means = np.stack([features[labels == k].mean(0) for k in range(len(counts))])
    within = np.square(features - means[labels]).sum(0) / (len(labels) - len(counts))
    between = means[labels[own]].var(0)
    assert found is not None
    np.testing.assert_allclose(found.mean, features[own].mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.variance, within + between, rtol=2e-2, atol=1e-4)


def test_a_class_without_images_is_not_known() -> None:
    features, labels = drawn([9, 9])
    clean = measure_statistics(features, labels, 3)
    assert clean.of([2]) is None
    assert clean.of([0, 2]) is None
    assert clean.of([0]) is not None
    assert clean.of([0, 1, 2]) is not None, "all that there is"
    assert FeatureStatistics(clean.mean, clean.variance).of([0]) is None, (
        "a file of an earlier version"
    )


def test_what_a_file_holds_comes_back_and_half_of_it_is_refused() -> None:
    features, labels = drawn([9, 9])
    tensors = measure_statistics(features, labels, 2).tensors()
    back = read_statistics(tensors, 2, 5)
    assert back is not None
    for name, array in back.tensors().items():
        np.testing.assert_array_equal(array, tensors[name])
    assert read_statistics({}, 2, 5) is None
    for missing in tensors:
        with pytest.raises(ValueError, match=r"clean\."):
            read_statistics({name: x for name, x in tensors.items() if name != missing}, 2, 5)
    for name, wrong in (
        ("clean.class_mean", tensors["clean.class_mean"][:1]),
        ("clean.class_count", tensors["clean.class_count"].astype(np.float32)),
        ("clean.class_count", -tensors["clean.class_count"]),
        ("clean.var", -tensors["clean.var"]),
    ):
        with pytest.raises(ValueError, match=name):
            read_statistics({**tensors, name: wrong}, 2, 5)


def test_names_of_classes() -> None:
    assert places_of(["b", "a", "b"], ["a", "b", "c"]) == (0, 1)
    with pytest.raises(UserError, match=r"`expected`: 'x' is not one of the model's 3"):
        places_of(["x"], ["a", "b", "c"])
    with pytest.raises(UserError, match="names no class"):
        places_of([], ["a"])


def known(counts: list[int]) -> FeatureStatistics:
    return measure_statistics(*drawn(counts), len(counts))


class TestEvidence:
    def test_without_statistics_nothing_is_learned(self) -> None:
        moments = np.zeros(5, "f"), np.ones(5, "f")
        for clean, places, words in (
            (None, None, "run `hgedge fit`"),
            (
                FeatureStatistics(*moments),
                [0],
                "each class that is expected",
            ),
            (measure_statistics(*drawn([40, 40]), 3), [0, 2], "each class that is expected"),
        ):
            verdict = judge_known(expect(clean, 3, places), 1000)
            assert verdict is not None
            assert not verdict.taken
            assert words in verdict.reason

    def test_few_images_are_a_change_by_chance(self) -> None:
        """As many as are asked for: clean images are half of the bound away by chance."""
        rng, model = np.random.default_rng(0), expect(known([100] * 4), 4)
        verdict = judge_known(model, 5)
        assert verdict is not None
        needed = next(n for n in range(5, 1000) if judge_known(model, n) is None)
        assert f"5 images are too few to tell a change from chance, {needed} are" in verdict.reason
        off = []
        for _ in range(200):
            clean, seen = rng.normal(size=(400, 50)), rng.normal(size=(needed, 50))
            mean, scale = clean.mean(0), clean.std(0)
            off.append(
                np.square((seen.mean(0) - mean) / scale).mean()
                + np.square(seen.std(0) / scale - 1).mean()
            )
        assert 0.8 * 0.05 < np.mean(off) < 1.2 * 0.05
        few = judge_known(expect(known([3] * 4), 4), 1000)
        assert few is not None
        assert "knows only 12 clean images" in few.reason
        some = judge_known(expect(known([5] * 4), 4), 59)
        assert some is not None
        assert "60 are needed" in some.reason
        unknown = expect(FeatureStatistics(np.zeros(5, "f"), np.ones(5, "f")), 3)
        assert judge_known(unknown, 29) is not None
        assert judge_known(unknown, 30) is None

    def test_images_of_one_class_show_too_few(self) -> None:
        model = expect(known([40] * 10), 10)
        sure = 9 * np.eye(10)
        one = judge_shown(np.tile(sure[3], (40, 1)), model)
        assert one is not None
        assert not one.taken
        assert "show 1.0 of 10 classes in effect, and 5.0 are needed" in one.reason
        assert "`expected`" in one.reason
        assert judge_shown(np.repeat(sure[:6], 9, axis=0), model) is None
        three = judge_shown(np.tile(sure[3], (40, 1)), expect(known([40] * 10), 10, [3]))
        assert three is None, "only this class is expected"
        two = judge_shown(np.tile(sure[3], (40, 1)), expect(known([40] * 10), 10, [3, 4]))
        assert two is not None
        assert "1.0 of 2 expected classes" in two.reason

    @given(st.floats(1, 1000))
    def test_less_is_asked_than_clean_images_show_and_of_several_more_than_one(
        self, shown: float
    ) -> None:
        assert least_shown(shown) <= shown
        assert least_shown(shown) >= shown / 2
        assert least_shown(shown) >= min(1.5, (1 + shown) / 2), "more than one where there are two"

    def test_rare_classes_are_not_asked_for(self) -> None:
        """Where nearly all clean images are of one class, such images show what there is."""
        model = expect(known([190, 2, 2, 2, 2, 2]), 6)
        assert model.shown < 1.4
        logits = 9 * np.eye(6)[np.repeat([0, 1, 2], [95, 2, 3])]
        assert judge_shown(logits, model) is None

    def test_labels_of_few_classes_judge_few(self) -> None:
        model = expect(None, 6)
        verdict = judge_labels(np.array([0, 1, 1, 0] * 3), model)
        assert verdict is not None
        assert "of 2 of 6 classes" in verdict.reason
        assert judge_labels(np.array([0, 1, 2, 0] * 3), model) is None
        assert judge_labels(np.array([0, 1] * 5), expect(None, 6, [0, 1, 2])) is None
        few = judge_labels(np.array([0, 1, 2] * 3), model)
        assert few is not None
        assert not few.taken
        assert "9 labelled images are too few" in few.reason
