"""Baselines and the comparison: against what each method is by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from small_vits import make_backbone
from toys import make_bank, make_task, noise_tokens, shorten_start

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.compare.compare_figure import TITLES, draw_comparison
from hgprompt_edge.compare.contest import Budget, Contest
from hgprompt_edge.compare.run import Result, accuracy_of, compare
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.figures.accuracies import AccuracyRow
from hgprompt_edge.fit.algorithm import uniform_weights
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.training.tune import epochs_for

SOURCES = 4
BUDGET = Budget(steps=2, evaluations=9, spot_steps=2, tune_steps=3, batch_size=75)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def bank(backbone: Backbone) -> PromptBank:
    return make_bank(backbone, noise_tokens(SOURCES))


@pytest.fixture(scope="module")
def task(backbone: Backbone, bank: PromptBank) -> Task:
    """Its labels are visible under the third source alone."""
    return make_task(backbone, bank.tokens[2])


@pytest.fixture(scope="module")
def compared(backbone: Backbone, bank: PromptBank, task: Task) -> tuple[Contest, dict[str, Result]]:
    with pytest.MonkeyPatch.context() as patch:
        shorten_start(patch)
        contest, results = compare(bank, backbone, task, budget=BUDGET, cache=False)
    return contest, {result.method: result for result in results}


def test_every_method_has_a_row_and_a_title(compared: tuple[Contest, dict[str, Result]]) -> None:
    _, results = compared
    assert list(results) == list(METHODS) == list(TITLES)
    for result in results.values():
        assert result.low is not None
        assert result.high is not None
        assert result.accuracy is not None
        assert 0 <= result.low <= result.accuracy <= result.high <= 1
        assert result.accuracy == result.correct.mean()


def test_rows_equal_the_judges_own(
    compared: tuple[Contest, dict[str, Result]], bank: PromptBank
) -> None:
    contest, results = compared
    judge = contest.judge
    for method in METHODS:
        candidate = contest.done[method].plan.candidate
        row = judge.on_test(judge.on_validation(candidate), candidate)
        assert results[method].val_accuracy == row.val_accuracy
        assert results[method].accuracy == row.test_accuracy


def test_the_planted_source_is_found(compared: tuple[Contest, dict[str, Result]]) -> None:
    _, results = compared
    for method in ("best_source", "h_only", "hgprompt"):
        assert results[method].weights.argmax() == 2
    assert results["best_source"].effective_sources == 1
    assert results["uniform"].effective_sources == pytest.approx(SOURCES)


def test_weights_are_what_the_method_says(compared: tuple[Contest, dict[str, Result]]) -> None:
    _, results = compared
    np.testing.assert_allclose(results["uniform"].weights, uniform_weights(SOURCES))
    assert not results["none"].weights.any()
    for method in ("spot", "h_only", "alignment_only", "soup", "hgprompt"):
        assert results[method].weights.min() >= 0
        assert results[method].weights.sum() == pytest.approx(1)
    taken = results["soup"].weights[results["soup"].weights > 0]
    np.testing.assert_allclose(taken, 1 / len(taken))
    # R is concave with its zeros at the vertices.
    assert results["alignment_only"].weights.max() > 0.99
    assert np.abs(results["gradient_free"].weights).max() <= 1.5


def test_prediction_average_averages_probabilities(
    compared: tuple[Contest, dict[str, Result]], bank: PromptBank
) -> None:
    contest, results = compared
    task = contest.task
    total = np.zeros((len(task.test), len(task.classes)))
    for candidate in (contest.folded(weights) for weights in np.eye(SOURCES)):
        (head,) = contest.judge.final_heads(candidate)
        logits = logits_of(head, contest.store.features(task.test.pixels, candidate.tokens)).numpy()
        odds = np.exp(logits - logits.max(1, keepdims=True))
        total += odds / odds.sum(1, keepdims=True)
    np.testing.assert_array_equal(
        results["prediction_average"].correct, total.argmax(1) == task.test.labels
    )
    assert results["prediction_average"].inference_passes == SOURCES
    assert results["hgprompt"].inference_passes == 1


def test_image_passes(compared: tuple[Contest, dict[str, Result]]) -> None:
    contest, results = compared
    train, validation = len(contest.task.train), len(contest.task.validation)
    passes = {method: result.image_passes for method, result in results.items()}
    assert passes["none"] == passes["uniform"] == passes["prediction_average"] == 0
    assert passes["best_source"] == SOURCES * (train + validation)
    assert passes["alignment_only"] == SOURCES * train
    assert passes["spot"] == 3 * train  # two steps are one epoch here
    assert passes["gradient_free"] >= BUDGET.evaluations * train
    # Sources and no prompt; each step forward and back; the end.
    assert passes["h_only"] == (SOURCES + 1 + 3 * BUDGET.steps + 1) * train
    assert passes["tune"] == passes["hgprompt_guarded"] + 3 * epochs_for(3, train, 75) * train
    assert abs(passes["vpt_scratch"] - passes["tune"]) <= 1.5 * train
    assert passes["hgprompt_guarded"] > passes["hgprompt"]


def test_counting_is_of_what_is_asked_for_even_if_cached(backbone: Backbone, task: Task) -> None:
    store = FeatureStore(backbone, enabled=False)
    store.features(task.test.pixels, None)
    with store.counting() as outer:
        with store.counting() as inner:
            store.features(task.test.pixels, None)
            store.features(task.test.pixels, None)
        store.features(task.validation.pixels, None)
    assert sum(inner.values()) == len(task.test)
    assert sum(outer.values()) == len(task.test) + len(task.validation)


def test_sources_of_the_tasks_family_are_left_out(backbone: Backbone, bank: PromptBank) -> None:
    task = make_task(backbone, family="family1")
    contest, (result,) = compare(bank, backbone, task, methods=("uniform",), cache=False)
    assert contest.bank.names == ("source0", "source2", "source3")
    assert len(result.weights) == 3


def test_without_validation_images_nothing_is_compared(
    backbone: Backbone, bank: PromptBank
) -> None:
    task = make_task(backbone, sizes=(30, 0, 30))
    with pytest.raises(UserError, match=r"^toy: no validation images to choose by"):
        compare(bank, backbone, task, methods=("none",), cache=False)


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (150, 150), (105, 150)])
def test_intervals_are_those_of_scipy_also_where_all_or_none_are_right(
    right: int, images: int
) -> None:
    accuracy, low, high = accuracy_of(np.arange(images) < right)
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert accuracy == right / images
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_test_images_there_is_no_accuracy() -> None:
    assert accuracy_of(np.zeros(0, dtype=bool)) == (None, None, None)


def test_the_figure_is_drawn(compared: tuple[Contest, dict[str, Result]], tmp_path: Path) -> None:
    contest, results = compared
    path = tmp_path / "comparison.png"
    draw_comparison("toy", contest.bank.names, tuple(results.values()), [], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bold_in_the_figure_is_only_what_fit_can_write(
    compared: tuple[Contest, dict[str, Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest, results = compared
    drawn: list[AccuracyRow] = []
    monkeypatch.setattr(
        "hgprompt_edge.compare.compare_figure.draw_accuracies", lambda _, rows: drawn.extend(rows)
    )
    draw_comparison("toy", contest.bank.names, tuple(results.values()), [], tmp_path / "a.png")
    assert len(drawn) == len(results)
    bold = {row.title for row in drawn if row.bold}
    assert bold == {
        "kept by fit",
        "two folded prompts",
        "three folded prompts",
        "kept by fit with tuning",
    }
