from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_vits import make_backbone
from toys import CLASSES, make_bank, make_task, noise_tokens, with_labels

from hgprompt_edge.artifacts.bundle import Row
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.choice import (
    choose,
    least_gain,
    never_worse,
)
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.heads.best_head import SHRINKAGES
from hgprompt_edge.heads.heads import (
    calibration_scale,
    cross_fitted_logits,
    log_loss,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def test_choice_by_log_loss_then_accuracy_then_simplicity() -> None:
    rows = [Row("none", 0.5, 1.0), Row("best_source", 0.6, 2.0), Row("uniform", 0.6, 1.5)]
    assert choose(rows) == 0
    assert choose([*rows, Row("learned", 0.6, 0.9)]) == 3
    assert choose([*rows, Row("learned", 0.4, 1.0)]) == 0
    assert choose([Row("none", 0.5, 1.0), Row("learned", 0.6, 1.0)]) == 1
    assert choose([Row("none", 0.5, 1.0), Row("learned", 0.5, 1.0)]) == 0


def test_cross_fitted_log_loss_chooses_where_all_rows_have_it() -> None:
    none, learned = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.5, 0.9)
    assert choose([none, learned]) == 1
    assert choose([none, replace(learned, cross_log_loss=0.85)]) == 0


def test_a_prompt_has_to_gain_two_nats_over_all_images() -> None:
    none, mixed = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.6, 0.9)
    mixed = replace(mixed, cross_log_loss=0.78)
    assert never_worse([none, mixed], 99, 20, 1) == 0
    assert never_worse([none, mixed], 101, 20, 1) == 1
    assert never_worse([none, replace(mixed, cross_log_loss=0.81)], 10**6, 20, 1) == 0


def test_the_best_of_many_sources_has_to_gain_more() -> None:
    none, mixed = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.6, 0.9)
    mixed = replace(mixed, cross_log_loss=0.78)
    assert least_gain(16) == pytest.approx(2 + 3 * np.log(16))
    for sources in (1, 4, 16):
        images = least_gain(sources) / 0.02
        assert never_worse([none, mixed], int(0.99 * images), 20, sources) == 0
        assert never_worse([none, mixed], int(1.01 * images), 20, sources) == 1


def test_without_cross_fitted_losses_validation_must_show_the_same_gain() -> None:
    rows = [Row("none", 0.5, 1.0), Row("learned", 0.6, 0.9)]
    assert never_worse(rows, 1000, 19, 1) == 0, "one image a class and few to validate: no evidence"
    assert never_worse(rows, 1000, 21, 1) == 1


def test_the_cross_fitted_log_loss_is_the_mean_over_divisions(backbone: Backbone) -> None:
    task = make_task(backbone)
    store = FeatureStore(backbone)
    judge = Judge(store, task, "lda", seed=3)
    nothing = Candidate("none", None, np.zeros(1))
    row = judge.measure(nothing)
    parts = (task.train, task.validation)
    features = torch.cat([store.features(part.pixels, None) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    losses = []
    for rho in SHRINKAGES:
        found = [
            cross_fitted_logits(features, labels, len(task.classes), 3 + division, rho)
            for division in range(5)
        ]
        logits, held_out = (torch.cat(part) for part in zip(*found, strict=True))
        losses.append(log_loss(logits * calibration_scale(logits, held_out), held_out))
    assert row.cross_log_loss == pytest.approx(min(losses), rel=1e-9)
    assert row.head == f"LDA {SHRINKAGES[int(np.argmin(losses))]:.2f}"


def test_each_row_has_its_own_best_head_and_the_choice_of_it_sees_no_validation_image(
    backbone: Backbone,
) -> None:
    task = make_task(backbone)
    judge = Judge(FeatureStore(backbone), task)
    nothing = Candidate("none", None, np.zeros(1))
    row, (final,) = judge.measure(nothing), judge.final_heads(nothing)
    assert row.head == final.name
    others = replace(task, validation=replace(task.validation, labels=task.validation.labels * 0))
    same = Judge(FeatureStore(backbone), others).training_head(None)
    assert np.array_equal(judge.training_head(None).weight, same.weight)
    assert not np.array_equal(final.weight, same.weight)


def test_with_permuted_labels_no_prompt_is_kept(backbone: Backbone) -> None:
    tokens = noise_tokens(6)
    task = make_task(backbone)
    kept = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        parts = (task.train, task.validation)
        train, validation = (replace(part, labels=rng.permutation(part.labels)) for part in parts)
        shuffled = replace(task, train=train, validation=validation)
        kept.append(HGPrompt(steps=6).fit(make_bank(backbone, tokens), backbone, shuffled).choice_)
    assert kept == ["none"] * 4


def test_a_bank_of_one_source_and_of_two_equal_ones(backbone: Backbone) -> None:
    tokens = noise_tokens(1)
    task = make_task(backbone, tokens[0])
    one = HGPrompt(steps=2, folded=2).fit(make_bank(backbone, tokens), backbone, task)
    np.testing.assert_array_equal(one.weights_, 1)
    twins = np.repeat(tokens, 2, axis=0)
    two = HGPrompt(steps=2, folded=2).fit(make_bank(backbone, twins), backbone, task)
    assert np.isfinite(two.weights_).all()
    for row, same in zip(two.table_[:4], one.table_[:4], strict=True):
        assert row.val_accuracy == same.val_accuracy


def test_prompts_that_all_hurt_are_not_kept(backbone: Backbone) -> None:
    tokens = 30 * noise_tokens(3)  # they take all attention
    task = make_task(backbone)
    fitted = HGPrompt(steps=2, folded=3).fit(make_bank(backbone, tokens), backbone, task)
    assert fitted.choice_ == "none"
    assert fitted.bundle_.prompt is None


def test_a_class_of_one_image(backbone: Backbone) -> None:
    def change(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lonely = np.flatnonzero(labels == 2)
        labels[lonely[1:]] = 0
        return labels

    tokens = noise_tokens(3)
    task = with_labels(make_task(backbone, tokens[1]), change)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, task)
    assert np.isfinite(fitted.objective_["J"])
    assert all(np.isfinite(row.val_log_loss) for row in fitted.table_)


def test_one_image_of_each_class_is_no_evidence_for_a_prompt(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    task = make_task(backbone, tokens[1])
    first = [int(np.flatnonzero(task.train.labels == label)[0]) for label in range(CLASSES)]
    held = [int(np.flatnonzero(task.validation.labels == label)[0]) for label in range(CLASSES)]
    train, validation = task.train.subset(first), task.validation.subset(held)
    few = replace(task, train=train, validation=validation)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, few)
    assert fitted.choice_ == "none"


def test_two_classes_that_cannot_be_told_apart(backbone: Backbone) -> None:
    rng = np.random.default_rng(0)

    def change(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        labels[labels > 0] = 1 + rng.integers(0, 2, int((labels > 0).sum()))
        return labels

    tokens = noise_tokens(3)
    task = with_labels(make_task(backbone, tokens[1]), change)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, task)
    kept = next(row for row in fitted.table_ if row.method == fitted.choice_)
    assert kept.test_accuracy is not None
    assert kept.test_accuracy < 0.9
    assert kept.cross_log_loss is not None
    assert kept.cross_log_loss > 2 / 3 * np.log(2) * 0.8, "no false certainty about those two"
