"""Tune: a trained prompt is kept where held-out images say so, and what goes with it goes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import known_statistics
from scipy.stats import ttest_1samp
from test_compare import backbone as backbone
from test_compare import bank as bank
from test_compare import task as task
from toys import make_task

from hgprompt_edge.artifacts.bank_entries import TUNED, bank_entries, initial_mix
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.checks import can_train
from hgprompt_edge.fit.choice import Proof, prove
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.training.prompt_tuning import Recipe
from hgprompt_edge.training.tune import starting_prompt, tune, tuning_recipe


@pytest.fixture(scope="module")
def fitted(backbone: Backbone, bank: PromptBank, task: Task) -> HGPrompt:
    return HGPrompt(steps=0, cache=False).fit(bank, backbone, task)


RECIPE = Recipe(epochs=2, batch_size=150, learning_rate=1e-3, flips=False)


@pytest.fixture(scope="module")
def planted(backbone: Backbone, bank: PromptBank) -> tuple[Bundle, Task]:
    """Return a bundle without a prompt, for a task that its source shows: tuning must pay."""
    task = make_task(backbone, bank.tokens[0], sizes=(300, 150, 60))
    fitted = HGPrompt(steps=0, cache=False).fit(bank, backbone, task).bundle_
    none = Judge(FeatureStore(backbone, enabled=False), task).measure(
        Candidate("none", None, np.zeros(len(fitted.sources)))
    )
    assert fitted.table[0].val_log_loss == pytest.approx(none.val_log_loss, abs=1e-6)
    return replace(fitted, prompt=None, choice="none", weights=0 * fitted.weights), task


def test_tune_keeps_a_prompt_that_held_out_images_prove_better(
    backbone: Backbone, planted: tuple[Bundle, Task]
) -> None:
    bundle, task = planted
    tuning = tune(bundle, backbone, task, RECIPE)
    row, none = tuning.bundle.table[-1], tuning.bundle.table[0]
    assert tuning.proof.holds
    assert tuning.bundle.choice == row.method == TUNED
    assert tuning.proof.gain == pytest.approx(none.val_log_loss - row.val_log_loss)
    assert tuning.proof.accuracy_gain == pytest.approx(row.val_accuracy - none.val_accuracy)
    assert tuning.trained.epoch == RECIPE.epochs  # no held-out image chose it
    np.testing.assert_array_equal(tuning.bundle.prompt, tuning.trained.tokens)
    features = extract_features(backbone, task.validation.pixels, tuning.trained.tokens)
    assert tuning.bundle.clean is not None
    np.testing.assert_allclose(tuning.bundle.clean.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    again = tune(tuning.bundle, backbone, task, RECIPE)
    assert [r.method for r in again.bundle.table].count(TUNED) == 1


def test_a_prompt_that_gets_worse_is_not_kept(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=2, batch_size=75, learning_rate=30.0, average=0.0)
    tuning = tune(fitted.bundle_, backbone, task, recipe)
    assert not tuning.proof.holds
    assert tuning.bundle.table[-1].method == TUNED
    assert tuning.bundle.choice == fitted.choice_
    np.testing.assert_array_equal(tuning.bundle.prompt, fitted.bundle_.prompt)
    np.testing.assert_array_equal(tuning.bundle.head.weight, fitted.bundle_.head.weight)


def test_few_images_do_not_prove_what_many_do() -> None:
    """Against SciPy's one-sided paired test on the same log-losses."""
    rng = np.random.default_rng(0)
    falls = rng.normal(0.1, 0.5, 400)
    verdicts = {}
    for count in (10, 400):
        part = falls[:count]
        proof = Proof(part.mean(), part.std(ddof=1) / count**0.5, 0.0, count)
        expected = ttest_1samp(part, 0, alternative="greater").pvalue < 0.05
        assert proof.holds == expected
        verdicts[count] = proof.holds
    assert verdicts == {10: False, 400: True}
    assert not Proof(0.3, 0.01, -0.01, 400).holds  # accuracy falls
    assert not Proof(0.0, 0.0, 0.0, 400).holds  # the same prompt
    assert not Proof(9.0, math.inf, 1.0, 1).holds


def test_a_fresh_fit_needs_no_proof_but_the_gain_that_any_prompt_needs() -> None:
    better = Proof(0.1, 0.08, 0.0, 80)
    assert better.pays
    assert not better.holds
    assert not replace(better, gain=-0.1).pays
    assert not replace(better, gain=2 / 80).pays
    assert not replace(better, images=20).pays, "as much on a quarter of the images"
    assert not replace(better, accuracy_gain=-1 / 80).pays


@pytest.mark.parametrize(("seen", "covered"), [((0,), False), ((0, 2), True), ((0, 1, 2), True)])
def test_images_of_one_class_prove_nothing(
    backbone: Backbone, task: Task, bank: PromptBank, seen: tuple[int, ...], covered: bool
) -> None:
    """A prompt that says that class more often would always look better."""
    rows = np.flatnonzero(np.isin(task.validation.labels, seen))
    task = replace(task, validation=task.validation.subset(rows))
    none, source = Candidate("none", None, np.zeros(1)), Candidate("", bank.tokens[0], np.ones(1))
    proof = prove(Judge(FeatureStore(backbone, enabled=False), task), none, source)
    assert proof.covered == covered
    better = replace(proof, gain=9.0, error=0.1, accuracy_gain=0.0)
    assert (better.pays, better.holds) == (covered, covered)


def test_a_fresh_fit_keeps_what_a_bundle_in_use_does_not(
    planted: tuple[Bundle, Task], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Proof, "holds", False)
    bundle, task = planted
    assert tune(bundle, backbone, task, RECIPE).bundle.choice == "none"
    fresh = tune(bundle, backbone, task, RECIPE, fresh=True)
    assert fresh.kept
    assert fresh.bundle.choice == TUNED


@pytest.mark.parametrize("seed", range(3))
def test_with_permuted_labels_tune_keeps_nothing(
    backbone: Backbone, planted: tuple[Bundle, Task], seed: int
) -> None:
    bundle, task = planted
    rng = np.random.default_rng(seed)
    parts = [replace(p, labels=rng.permutation(p.labels)) for p in (task.train, task.validation)]
    shuffled = replace(task, train=parts[0], validation=parts[1])
    for fresh in (False, True):
        assert tune(bundle, backbone, shuffled, RECIPE, fresh=fresh).bundle.choice == "none"


def prepared(bundle: Bundle) -> Bundle:
    """Give a bundle a condition prompt, clean statistics and what devices learned over them."""
    assert bundle.source_tokens is not None
    names, moment = ({"name": "dark"},), np.ones(bundle.head.weight.shape[1], np.float32)
    with_conditions = replace(bundle, conditions=names, condition_tokens=bundle.source_tokens[:1])
    initial = np.full(len(bank_entries(with_conditions)), 0.2, np.float32)
    merged = {**bundle.objective, "merged": {"devices": 3}}
    known = known_statistics(moment, moment, len(bundle.classes))
    return replace(with_conditions, initial=initial, objective=merged, clean=known)


def test_what_was_of_the_old_prompt_goes_with_it_and_stays_with_it(
    backbone: Backbone, planted: tuple[Bundle, Task], tmp_path: Path
) -> None:
    plain, task = planted
    bundle, path = prepared(plain), tmp_path / "a.hgbundle"
    won = tune(bundle, backbone, task, RECIPE).bundle
    assert won.choice == TUNED
    assert (won.conditions, won.condition_tokens) == ((), None)
    assert won.prompt is not None
    assert won.clean is not None
    seen = extract_features(backbone, task.validation.pixels, won.prompt)
    np.testing.assert_allclose(won.clean.mean, seen.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(
        won.clean.class_counts, np.bincount(task.validation.labels, minlength=len(task.classes))
    )
    assert won.objective == plain.objective
    write_bundle(path, won)
    mix_of_devices = initial_mix(read_bundle(path))
    np.testing.assert_array_equal(mix_of_devices, [1] + [0] * len(plain.sources))

    worse = replace(RECIPE, epochs=1, learning_rate=30.0, average=0.0)
    lost = tune(bundle, backbone, task, worse).bundle
    assert lost.choice == "none"
    assert lost.conditions == bundle.conditions
    assert lost.initial is bundle.initial
    # The row of the tuned prompt in force outlives a worse one.
    again = tune(won, backbone, task, worse).bundle
    assert again.table == won.table
    np.testing.assert_array_equal(again.prompt, won.prompt)


def test_a_step_of_fewer_images_than_classes_is_refused(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    with pytest.raises(UserError, match="`batch_size=2`: fewer images per step than the 3 classes"):
        tune(fitted.bundle_, backbone, task, Recipe(epochs=1, batch_size=2))
    with pytest.raises(UserError, match="`batch_size=2`"):
        tuning_recipe(task, 0, batch_size=2)
    many = replace(task, classes=tuple(f"class{i}" for i in range(500)))
    assert tuning_recipe(many, 0).batch_size == 2000, "four a class"
    labels = np.arange(len(task.train))
    lonely = replace(task, train=replace(task.train, labels=labels))
    with pytest.raises(UserError, match=r"^toy: no class has two training images"):
        tuning_recipe(lonely, 0, batch_size=200)
    assert (can_train(task), can_train(lonely)) == (True, False), "`fit` recommends no tuning"


def test_without_a_chosen_prompt_tune_starts_at_the_learned_mix(fitted: HGPrompt) -> None:
    bundle = replace(fitted.bundle_, prompt=None, choice="none")
    assert bundle.source_tokens is not None
    expected = mix(bundle.source_tokens.astype(np.float32), bundle.learned_weights)
    np.testing.assert_allclose(starting_prompt(bundle), expected, rtol=1e-6)
    with pytest.raises(UserError, match="`keep_sources=True`"):
        starting_prompt(replace(bundle, source_tokens=None))


def test_tune_refuses_other_images_and_other_backbones(
    backbone: Backbone, task: Task, fitted: HGPrompt
) -> None:
    recipe = Recipe(epochs=1)
    with pytest.raises(UserError, match="of toy does not fit toy: it was fitted on other images"):
        tune(fitted.bundle_, backbone, replace(task, digest="other"), recipe)
    with pytest.raises(UserError, match="`checkpoint`"):
        tune(replace(fitted.bundle_, backbone_sha256="0" * 64), backbone, task, recipe)
