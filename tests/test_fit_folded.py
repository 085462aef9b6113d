from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_vits import make_backbone
from toys import make_bank, make_task, noise_tokens, with_labels

from hgprompt_edge.artifacts.bundle import Row
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.cli.fit.report import could_tune, gain_more_line
from hgprompt_edge.cli.shared.fit_table import easy_line, kept_line
from hgprompt_edge.features.cached import FeatureStore, digest
from hgprompt_edge.fit.choice import (
    decide,
    fold_more,
    least_gain,
    source_candidates,
)
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.heads import (
    logits_of,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def test_the_average_of_two_prompts_is_what_the_table_says(backbone: Backbone) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone, tokens[1])
    judge = Judge(FeatureStore(backbone), task)
    one, two = source_candidates(make_bank(backbone, tokens))[:2]
    both = replace(one, more=(two,))
    probabilities = [
        logits_of(
            judge.training_head(each.tokens),
            extract_features(backbone, task.validation.pixels, each.tokens),
        ).softmax(1)
        for each in (one, two)
    ]
    average = (probabilities[0] + probabilities[1]) / 2
    row = judge.measure(both)
    expected = (average.argmax(1).numpy() == task.validation.labels).mean()
    assert row.val_accuracy == pytest.approx(expected)
    assert row.cross_log_loss is not None
    same = judge.measure(replace(one, more=(one,)))
    assert same.cross_log_loss == pytest.approx(judge.measure(one).cross_log_loss)


def test_the_prompts_that_average_best_are_folded_and_kept_where_they_gain(
    backbone: Backbone,
) -> None:
    tokens = noise_tokens(5)
    task = make_task(backbone, tokens[1])
    bank = make_bank(backbone, tokens)
    judge = Judge(FeatureStore(backbone), task)
    one = decide(judge, bank, np.full(5, 0.2))
    three = decide(judge, bank, np.full(5, 0.2), folded=3)
    assert three.rows[:4] == one.rows
    first, second, _ = three.candidates[-1].parts
    assert first.weights.tolist() == one.chosen.weights.tolist()
    held_out = judge.measure(three.candidates[-1]).cross_log_loss
    assert held_out is not None
    for other in source_candidates(bank):  # no other third prompt averages better
        if not any(np.array_equal(other.weights, part.weights) for part in (first, second)):
            loss = judge.measure(replace(first, more=(second, other))).cross_log_loss
            assert loss is not None
            assert loss >= held_out - 1e-12
    before = one.rows[one.kept].cross_log_loss
    assert before is not None
    assert three.kept == (4 if held_out < before else one.kept)
    lonely = fold_more(judge, [one.candidates[0]], 3)
    assert lonely.more == ()


@pytest.mark.parametrize("folded", [1, 2])
def test_what_more_prompts_would_keep_is_known_beforehand(backbone: Backbone, folded: int) -> None:
    bank = make_bank(backbone, noise_tokens(6))
    # No prompt helps, so that an average of several holds out better than any of them.
    task = with_labels(make_task(backbone), np.random.default_rng(0).permutation)
    now = HGPrompt(steps=1, folded=folded).fit(bank, backbone, task)
    kept, found = now.table_[-1] if now.choice_ == "folded" else now.table_[0], now.more_prompts_
    for more in range(folded + 1, 4):
        fitted = HGPrompt(steps=1, folded=more).fit(bank, backbone, task)
        (row,) = (row for row in fitted.table_ if row.method == "folded")
        assert row.cross_log_loss is not None
        assert kept.cross_log_loss is not None
        assert (more in found) == (row.cross_log_loss < kept.cross_log_loss)
        if more in found:
            assert found[more] == replace(row, test_accuracy=None)
    assert found or folded == 2
    assert now.choice_ in ("none", "folded")


def test_with_shallow_prompts_no_more_are_offered(backbone: Backbone) -> None:
    tokens = noise_tokens(3, layers=1)
    task = make_task(backbone, tokens[1])
    assert HGPrompt(steps=1).fit(make_bank(backbone, tokens), backbone, task).more_prompts_ == {}


@pytest.mark.parametrize(("beyond", "said"), [(-0.1, True), (0.1, False)])
def test_several_prompts_that_gain_by_chance_are_said_to_do_so(
    backbone: Backbone, beyond: float, said: bool
) -> None:
    bank, task = make_bank(backbone, noise_tokens(6)), make_task(backbone)
    shuffled = with_labels(task, np.random.default_rng(0).permutation)
    bundle = HGPrompt(steps=1, folded=2).fit(bank, backbone, shuffled).bundle_
    words = "195 images do not show that they are better than no prompt"
    assert bundle.choice == "folded"
    assert words in kept_line(bundle, shuffled)  # meaningless labels
    *others, kept = bundle.table
    assert others[0].cross_log_loss is not None
    loss = others[0].cross_log_loss - (least_gain(6) + beyond) / 195
    table = (*others, replace(kept, cross_log_loss=loss))
    assert (words in kept_line(replace(bundle, table=table), shuffled)) is said


def test_a_kept_row_below_no_prompt_says_what_decided(backbone: Backbone) -> None:
    bank, task = make_bank(backbone, noise_tokens(2)), make_task(backbone)
    bundle = HGPrompt(steps=0).fit(bank, backbone, task).bundle_
    none, kept = Row("none", 0.7, 0.6, 0.8), Row("learned", 0.75, 0.5, 0.762)
    bundle = replace(bundle, choice="learned", table=(none, kept))
    below = "kept: learned mix, 3.8 points below no prompt on test images"
    assert kept_line(bundle, task) == f"{below}; its held-out log-loss is lower, and that decides"
    bundle = replace(bundle, table=(none, replace(kept, test_accuracy=0.838)))
    assert kept_line(bundle, task) == "kept: learned mix, +3.8 points over no prompt on test images"


@pytest.mark.parametrize(
    ("held", "test", "said"), [(0.9, 0.5, True), (0.9, 0.85, False), (0.5, 0.9, False)]
)
def test_held_out_images_that_are_too_easy_are_reported(
    backbone: Backbone, held: float, test: float, said: bool
) -> None:
    bank, task = make_bank(backbone, noise_tokens(2)), make_task(backbone)
    bundle = HGPrompt(steps=0).fit(bank, backbone, task).bundle_
    bundle = replace(bundle, choice="none", table=(Row("none", held, 0.5, test),))
    shown = {"held": f"{100 * held:.1f}", "test": f"{100 * test:.1f}"}
    words = "held-out images are easier than test images ({held} against {test} %)"
    assert easy_line(bundle, task).startswith(words.format(**shown)) is said
    assert bool(easy_line(bundle, task)) is said
    untested = replace(bundle, table=(Row("none", held, 0.5),))
    assert easy_line(untested, task) == ""
    assert easy_line(bundle, replace(task, test=task.test.subset([]))) == ""


def test_no_prompt_that_holds_out_worse_says_what_decided(backbone: Backbone) -> None:
    bank, task = make_bank(backbone, noise_tokens(2)), make_task(backbone)
    bundle = HGPrompt(steps=0).fit(bank, backbone, task).bundle_
    none, learned = Row("none", 0.7, 0.5, 0.7), Row("learned", 0.75, 0.6, 0.7)
    bundle = replace(bundle, choice="none", table=(none, learned))
    decided = "as its held-out log-loss is the lowest, and that decides"
    assert kept_line(bundle, task) == f"kept: no prompt, {decided}"
    bundle = replace(bundle, table=(none, replace(learned, val_accuracy=0.7)))
    assert kept_line(bundle, task) == "kept: no prompt, as nothing holds out better"


@pytest.mark.parametrize("sources", [(0,), (0, 0), (0, 1, 1, 0)])
def test_equal_prompts_are_folded_once(backbone: Backbone, sources: tuple[int, ...]) -> None:
    tokens = noise_tokens(2)
    bank, task = make_bank(backbone, tokens[list(sources)]), make_task(backbone, tokens[0])
    judge = Judge(FeatureStore(backbone), task)
    decision = decide(judge, bank, np.eye(len(bank.basis))[0], folded=3)  # the mix is a source, too
    kept_alone = decide(judge, bank, np.eye(len(bank.basis))[0]).chosen
    pool = [digest(each.tokens) for each in decision.pool]
    assert len(set(pool)) == len(pool) == 1 + len(set(sources))  # no prompt, each source once
    assert pool[0] == digest(kept_alone.tokens)
    folded = [digest(part.tokens) for part in decision.chosen.parts]
    assert len(set(folded)) == len(folded)


def test_tuning_is_recommended_where_it_can_gain_enough(backbone: Backbone) -> None:
    bank, task = make_bank(backbone, noise_tokens(2)), make_task(backbone)
    bundle = HGPrompt(steps=0).fit(bank, backbone, task).bundle_
    enough = 2.1 / len(task.validation)  # nats an image; 2 in all are asked of the tuned prompt
    bundle = replace(bundle, choice="none", table=(Row("none", 0.9, enough),))
    assert could_tune(bundle, task, 1)
    assert not could_tune(bundle, task, 2), "`--folded` and `--tune` exclude each other"
    sure = replace(bundle, table=(Row("none", 0.9, 0.9 * enough),))
    assert not could_tune(sure, task, 1), "not even a perfect prompt would be kept"
    lonely = replace(task, train=replace(task.train, labels=np.arange(len(task.train))))
    assert not could_tune(bundle, lonely, 1), "no class has two training images"


def test_what_could_gain_more_is_said_with_its_latency(backbone: Backbone) -> None:
    bank, task = make_bank(backbone, noise_tokens(2)), make_task(backbone)
    bundle = HGPrompt(steps=0).fit(bank, backbone, task).bundle_
    none, two, three = (Row("none", accuracy, 0.5) for accuracy in (0.75, 0.8, 0.8167))
    bundle = replace(bundle, choice="none", table=(none,))
    tune = "to gain more: --tune trains the prompt itself"
    assert gain_more_line(bundle, {}, True) == tune
    assert gain_more_line(bundle, {}, False) == "", "no prompt can be trained on these images"
    assert gain_more_line(bundle, {2: none}, True) == tune, "only the log-loss falls"
    assert gain_more_line(bundle, {2: two, 3: three}, True) == (
        f"{tune}; --folded 2 reaches 80.0 %, --folded 3 81.7 % on held-out images, at about 1.8 "
        "and 2.6 times the latency"
    )
    (second,) = bundle.folded
    folded = replace(bundle, more=(second,))
    assert gain_more_line(folded, {3: three}, False) == (
        "to gain more: --folded 3 reaches 81.7 % on held-out images, at about 2.6 times the latency"
    )
    assert gain_more_line(folded, {}, False) == ""
    assert gain_more_line(bundle, {2: three, 3: two}, False) == (
        "to gain more: --folded 2 reaches 81.7 % on held-out images, at about 1.8 times the latency"
    ), "a third prompt that holds out worse only costs time"
    tuned = replace(bundle, table=(none, replace(none, method="tuned")))
    assert gain_more_line(tuned, {2: two}, True) == ""
