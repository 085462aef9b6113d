"""Baselines, the comparison and tune: against what each method is by definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_vits import make_backbone
from toys import make_bank, make_task, noise_tokens

from hgprompt_edge.bundle import Bundle, bank_entries, factory_mix, read_bundle, write_bundle
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts import PromptBank, mix
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.baselines import METHODS, Budget, Contest
from hgprompt_edge.transfer.compare import Result, bootstrap, compare
from hgprompt_edge.transfer.compare_figure import TITLES, draw_comparison
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.fit import HGPrompt
from hgprompt_edge.transfer.learn import uniform_weights
from hgprompt_edge.transfer.tune import TUNED, epochs_for, starting_prompt, tune
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.train import Recipe

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
        patch.setattr("hgprompt_edge.vit.start.NEUTRAL_STEPS", 2)
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
        logits = head.logits(contest.store.features(task.test.pixels, candidate.tokens)).numpy()
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
    assert passes["tune"] == passes["hgprompt"] + 3 * epochs_for(3, train, 75) * train
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
    with pytest.raises(UserError, match="--task toy: no validation images to choose by"):
        compare(bank, backbone, task, methods=("none",), cache=False)


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        mean, low, high = bootstrap(rng.random(150) < 0.7, seed)
        assert mean is not None
        assert low is not None
        assert high is not None
        inside += low <= 0.7 <= high
    assert 0.9 <= inside / 200 <= 0.99
    assert bootstrap(np.zeros(0, dtype=bool)) == (None, None, None)


def test_the_figure_is_drawn(compared: tuple[Contest, dict[str, Result]], tmp_path: Path) -> None:
    contest, results = compared
    path = tmp_path / "comparison.png"
    draw_comparison("toy", contest.bank.names, tuple(results.values()), [], path)
    assert path.read_bytes().startswith(b"\x89PNG")


# Tune


@pytest.fixture(scope="module")
def fitted(backbone: Backbone, bank: PromptBank, task: Task) -> HGPrompt:
    return HGPrompt(steps=0, cache=False).fit(bank, backbone, task)


def test_tune_starts_at_the_folded_prompt_and_keeps_the_better(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=3, batch_size=75, validate_every=1, learning_rate=1e-3)
    bundle, trained = tune(fitted.bundle_, backbone, task, recipe)
    row = bundle.table[-1]
    before = next(r for r in bundle.table if r.method == fitted.choice_)
    assert row.method == TUNED
    assert trained.history[0]["val_log_loss"] == pytest.approx(before.val_log_loss, abs=1e-3)
    if row.val_log_loss < min(r.val_log_loss for r in bundle.table[:-1]):
        assert bundle.choice == TUNED
        np.testing.assert_array_equal(bundle.prompt, trained.tokens)
    else:
        assert bundle.choice == fitted.choice_
    again, _ = tune(bundle, backbone, task, recipe)
    assert [r.method for r in again.table].count(TUNED) == 1


def test_a_prompt_that_gets_worse_is_not_chosen(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=2, batch_size=75, learning_rate=30.0, keep_last=True, average=0.0)
    bundle, _ = tune(fitted.bundle_, backbone, task, recipe)
    assert bundle.choice == fitted.choice_
    np.testing.assert_array_equal(bundle.prompt, fitted.bundle_.prompt)
    np.testing.assert_array_equal(bundle.head_weight, fitted.bundle_.head_weight)


def judged_at(bundle: Bundle, log_loss: float) -> Bundle:
    """Give every row this log-loss, so that a test says which prompt wins."""
    rows = tuple(replace(row, val_log_loss=log_loss) for row in bundle.table)
    return replace(bundle, table=rows)


def prepared(bundle: Bundle) -> Bundle:
    """Give a bundle a condition prompt, clean statistics and what devices learned over them."""
    assert bundle.source_tokens is not None
    names, moment = ({"name": "dark"},), np.ones(bundle.head_weight.shape[1], np.float32)
    with_conditions = replace(bundle, conditions=names, condition_tokens=bundle.source_tokens[:1])
    factory = np.full(len(bank_entries(with_conditions)), 0.2, np.float32)
    merged = {**bundle.objective, "merged": {"devices": 3}}
    return replace(
        with_conditions, factory=factory, objective=merged, clean_mean=moment, clean_var=moment
    )


def test_what_was_of_the_old_prompt_goes_with_it_and_stays_with_it(
    backbone: Backbone, task: Task, fitted: HGPrompt, tmp_path: Path
) -> None:
    recipe, path = Recipe(epochs=1, batch_size=75, learning_rate=1e-4), tmp_path / "a.hgbundle"
    bundle = prepared(fitted.bundle_)
    won, _ = tune(judged_at(bundle, 99.0), backbone, task, recipe)
    assert won.choice == TUNED
    assert (won.conditions, won.condition_tokens, won.clean_mean) == ((), None, None)
    assert won.objective == fitted.bundle_.objective
    write_bundle(path, won)
    mix_of_devices = factory_mix(read_bundle(path))
    np.testing.assert_array_equal(mix_of_devices, [1] + [0] * len(fitted.bundle_.sources))

    lost, _ = tune(judged_at(bundle, 0.0), backbone, task, recipe)
    assert lost.choice == fitted.choice_
    assert lost.conditions == bundle.conditions
    assert lost.factory is bundle.factory


def test_the_row_of_the_tuned_prompt_in_force_outlives_a_worse_one(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=1, batch_size=75, learning_rate=1e-4)
    won, _ = tune(judged_at(fitted.bundle_, 99.0), backbone, task, recipe)
    worse = replace(recipe, learning_rate=30.0, keep_last=True, average=0.0)
    again, _ = tune(won, backbone, task, worse)
    assert again.table == won.table
    np.testing.assert_array_equal(again.prompt, won.prompt)


def test_without_a_chosen_prompt_tune_starts_at_the_learned_mix(fitted: HGPrompt) -> None:
    bundle = replace(fitted.bundle_, prompt=None, choice="none")
    assert bundle.source_tokens is not None
    expected = mix(bundle.source_tokens.astype(np.float32), bundle.learned_weights)
    np.testing.assert_allclose(starting_prompt(bundle), expected, rtol=1e-6)
    with pytest.raises(UserError, match="--keep-sources"):
        starting_prompt(replace(bundle, source_tokens=None))


def test_tune_refuses_other_images_and_other_backbones(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=1)
    with pytest.raises(UserError, match="not the images"):
        tune(fitted.bundle_, backbone, replace(task, digest="other"), recipe)
    with pytest.raises(UserError, match="--checkpoint"):
        tune(replace(fitted.bundle_, backbone_sha256="0" * 64), backbone, task, recipe)
