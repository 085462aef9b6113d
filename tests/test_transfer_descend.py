"""Exact steps down the log-loss: the gradient, the steps and what is taken (METHOD 5.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vits import make_backbone
from toys import CLASSES, make_bank, make_task, noise_tokens

from hgprompt_edge.prompts import mix
from hgprompt_edge.transfer.descend import LEARNING_RATE, descend
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.fit import HGPrompt
from hgprompt_edge.transfer.learn import uniform_weights
from hgprompt_edge.transfer.log_loss import LogLoss
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import features_token, normalize
from hgprompt_edge.vit.heads import cross_fitted_log_loss


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def silent(_done: int, _total: int) -> None:
    """Report to nobody."""


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), classes=st.integers(2, 5))
def test_gradient_equals_central_differences(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(40) % classes
    features = torch.from_numpy(rng.normal(size=(40, 8)) + labels[:, None])
    loss = LogLoss.at(features, labels, classes)
    assert float(loss(features)) == pytest.approx(
        cross_fitted_log_loss(features, labels, classes), rel=1e-6
    )
    direction = torch.from_numpy(rng.normal(size=features.shape))
    step = 1e-5
    fixed = replace(loss, shrinkage=0.2)  # Ledoit-Wolf's is taken for a constant in a gradient
    value, slope = fixed.with_gradient(features)
    assert value == pytest.approx(float(fixed(features)))
    up, down = (float(fixed(features + s * step * direction)) for s in (1, -1))
    inner = float((slope * direction).sum())
    assert (up - down) / (2 * step) == pytest.approx(inner, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("layers", [2, 1])
def test_steps_equal_those_of_full_batch_autograd(layers: int) -> None:
    backbone = make_backbone()
    backbone.model.double()
    tokens = noise_tokens(3, layers)
    task = make_task(backbone, tokens[0])
    pixels, labels = task.train.pixels, task.train.labels
    store = FeatureStore(backbone, enabled=False)
    uniform = store.features(pixels, mix(tokens, uniform_weights(3)))
    loss = LogLoss.at(uniform, labels, CLASSES)
    found = descend(store, pixels, tokens, loss, 3, silent)

    theta = torch.zeros(3, layers, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=LEARNING_RATE, betas=(0.9, 0.95))
    x = normalize(torch.from_numpy(pixels), backbone.preprocessing).double()
    for weights, _, value in found.path:
        expected = theta.softmax(0)
        torch.testing.assert_close(weights, expected.detach(), rtol=0, atol=1e-3)
        prompt = torch.einsum("nl,nltd->ltd", expected, torch.from_numpy(tokens).double())
        own = loss(features_token(backbone.model, x, prompt))
        assert value == pytest.approx(float(own.detach()), rel=1e-3)
        optimizer.zero_grad()
        own.backward()
        optimizer.step()
    assert len(found.path) == 4


def test_each_layer_finds_its_own_source(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    task = make_task(backbone, mix(tokens, truth), sizes=(600, 45, 300))
    fitted = HGPrompt(refine=8).fit(make_bank(backbone, tokens), backbone, task)
    assert fitted.objective_["taken"] == "exact"
    assert fitted.weights_.shape == (3, 2)
    np.testing.assert_allclose(fitted.weights_.sum(0), 1)
    assert fitted.weights_.argmax(0).tolist() == [0, 1]
    assert fitted.objective_["log_loss"] < fitted.objective_["log_loss_uniform"]
    exact = [row for row in fitted.history_ if row["stage"] == "exact"]
    assert len(exact) == 9
    assert min(row["log_loss"] for row in exact) < exact[0]["log_loss"]
    test = {row.method: row.test_accuracy for row in fitted.table_}
    assert test["learned"] > max(test["none"], test["uniform"], test["best_source"])


def test_without_exact_steps_there_is_one_weight_a_source(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    task = make_task(backbone, tokens[0])
    fitted = HGPrompt(refine=0).fit(make_bank(backbone, tokens), backbone, task)
    assert fitted.weights_.shape == (3,)
    assert {row["stage"] for row in fitted.history_} == {"cached"}


def test_with_one_image_a_class_nothing_is_held_out(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    task = make_task(backbone, tokens[0])
    first = [int(np.flatnonzero(task.train.labels == label)[0]) for label in range(CLASSES)]
    fitted = HGPrompt().fit(
        make_bank(backbone, tokens), backbone, replace(task, train=task.train.subset(first))
    )
    assert fitted.objective_["taken"] == "objective"
    assert fitted.objective_["log_loss"] is None
    assert fitted.weights_.shape == (3,)
    assert np.isfinite(fitted.weights_).all()
