"""What a device must not trust: weights, graphs and images that are damaged or of another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from planted import Planted

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.gradient_check import check_gradient
from hgprompt_edge.adapt.learner import GradientLearner
from hgprompt_edge.adapt.loop import adapt_labelled
from hgprompt_edge.adapt.optimizer import Settings
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.errors import CheckError, UserError

SHARP = 10.0


@pytest.fixture(scope="module", params=["learned", "none"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), request.param)


class TestTrustNothing:
    def test_right_gradient_passes(self, planted: Planted) -> None:
        rng = np.random.default_rng(0)
        check_gradient(planted.graph, planted.images[:8], np.zeros(len(planted.bank.names)), rng)

    @pytest.mark.parametrize("seed", range(4))
    def test_right_gradient_of_a_sharp_loss_passes(self, planted: Planted, seed: int) -> None:
        """The loss of a sure model bends so that central differences alone are far off."""
        graph = AdaptGraph(adapt_path(planted.path), planted.bank, threads=1)
        graph.head = replace(graph.head, weight=graph.head.weight * SHARP)
        rng = np.random.default_rng(seed)
        check_gradient(graph, planted.images[:8], rng.normal(size=len(planted.bank.names)), rng)

    @pytest.mark.parametrize("wrong", [lambda d: -d, lambda d: 0 * d, lambda d: d[::-1]])
    def test_wrong_gradient_stops_adaptation(
        self, planted: Planted, wrong: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = AdaptGraph.__call__

        def broken(self: AdaptGraph, *args: Any) -> Any:
            step = right(self, *args)
            return replace(step, d_mix=wrong(step.d_mix))

        monkeypatch.setattr(AdaptGraph, "__call__", broken)
        learner = GradientLearner(planted.graph, Settings(steps=2))
        with pytest.raises(CheckError, match="computes the gradient wrongly on this machine"):
            adapt_labelled(learner, planted.images, planted.labels, planted.initial)

    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            ({"d_features": None}, "the gradient"),
            ({"d_weight": 0.9}, "the head's gradient"),
            ({"d_bias": 1.1}, "the head's gradient"),
        ],
    )
    def test_every_way_into_the_backward_pass_is_checked(
        self, planted: Planted, wrong: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph that leaves out what features receive, or whose head's gradient is off."""
        right = AdaptGraph.__call__

        def broken(
            self: AdaptGraph, images: Any, labels: Any, mix: Any, head: Any, d_features: Any
        ) -> Any:
            given = wrong.get("d_features", d_features)
            step = right(self, images, labels, mix, head, given)
            factors = {name: x for name, x in wrong.items() if name != "d_features"}
            return replace(step, **{name: x * getattr(step, name) for name, x in factors.items()})

        monkeypatch.setattr(AdaptGraph, "__call__", broken)
        mix_logits, rng = np.zeros(len(planted.bank.names)), np.random.default_rng(0)
        with pytest.raises(CheckError, match=f"computes {what} wrongly on this machine"):
            check_gradient(planted.graph, planted.images[:8], mix_logits, rng)


def test_graph_with_weights_outside_its_folder_is_refused(planted: Planted, tmp_path: Path) -> None:
    path, inner = tmp_path / "graph.onnx", tmp_path / "inner" / "graph.onnx"
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 1000}
    onnx.save(onnx.load(adapt_path(planted.path)), path, **options)
    AdaptGraph(path, planted.bank)
    inner.parent.mkdir()
    inner.write_bytes(path.read_bytes())
    (inner.parent / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"wants weights from 'w\.bin', a symbolic link"):
        AdaptGraph(inner, planted.bank)


def test_graph_of_another_bank_is_refused(planted: Planted) -> None:
    other = replace(planted.bank, sha256="00" * 32)
    with pytest.raises(
        UserError, match=r"bank.safetensors does not fit .*adapt.onnx: its prompts have"
    ):
        AdaptGraph(adapt_path(planted.path), other)
    with pytest.raises(UserError, match="not a gradient graph that this version reads"):
        AdaptGraph(planted.path, planted.bank)
    with pytest.raises(UserError, match="export the model with `adapt=True`"):
        AdaptGraph(planted.path.with_name("missing.onnx"), planted.bank)
