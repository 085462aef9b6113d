"""Adapting on a device: the gradient is checked, the mix is learned, the guard decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_vits import make_backbone, make_mixable, token_features, token_logits

from hgprompt_edge.bundle import bank_tokens
from hgprompt_edge.device.adapt import Weights, adapt_labelled, adapt_unlabelled
from hgprompt_edge.device.bank import adapt_path
from hgprompt_edge.device.descend import Point, Settings, descend, start_at
from hgprompt_edge.device.guard import fold_of, judge_labelled, judge_unlabelled
from hgprompt_edge.device.learner import ForwardLearner, GradientLearner
from hgprompt_edge.device.losses import Slope, anchored_judge, information, statistics_distance
from hgprompt_edge.device.predictor import Predictor, open_journal
from hgprompt_edge.device.seen import read_labelled, read_unlabelled
from hgprompt_edge.device.softmax import log_softmax, softmax
from hgprompt_edge.device.step import AdaptGraph, Head, check_gradient, smoothed, through_softmax
from hgprompt_edge.device.watch import watch
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.onnx_file import export_onnx


class Planted:
    """A model whose images are labelled by what its own condition prompt would say."""

    def __init__(self, folder: Path, choice: str = "learned") -> None:
        self.backbone = make_backbone("tanh gelu")
        bundle = make_mixable(self.backbone, choice)
        # Patches of one colour each: noise would look the same to a random ViT in every image.
        coarse = np.random.default_rng(5).integers(0, 256, (90, 3, 3, 3), dtype=np.uint8)
        self.images = coarse.repeat(8, axis=1).repeat(8, axis=2)
        target = replace(bundle, prompt=bank_tokens(bundle)[1][-1])
        level = token_logits(target, self.backbone, self.images).mean(0)
        head = 4 * bundle.head_weight, 4 * (bundle.head_bias - level)  # all classes occur
        target = replace(target, head_weight=head[0], head_bias=head[1])
        self.labels = token_logits(target, self.backbone, self.images).argmax(1)
        bundle = replace(bundle, head_weight=head[0], head_bias=head[1])
        logits = token_logits(bundle, self.backbone, bundle.probe_images)
        self.bundle = replace(bundle, probe_logits=logits)
        self.path = folder / "pets.onnx"
        export_onnx(self.bundle, self.backbone, self.path, runtime_weights=True, adapt=True)
        self.predictor = Predictor(self.path)
        assert self.predictor.bank is not None
        self.bank = self.predictor.bank
        self.graph = AdaptGraph(adapt_path(self.path), self.bank, threads=1)
        head = Head(self.bank.head_weight, self.bank.head_bias)
        self.factory = Weights(self.bank.factory.astype(np.float64), head)


@pytest.fixture(scope="module", params=["learned", "none"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), request.param)


def test_labels_find_the_planted_prompt_and_the_guard_takes_it(planted: Planted) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=25))
    found = adapt_labelled(learner, planted.images, planted.labels, planted.factory)
    assert found.verdict.taken, found.verdict.reason
    assert found.weights.mix[-1] > 0.5
    assert found.weights.mix.sum() == pytest.approx(1)
    figures = found.verdict.figures
    assert figures["log_loss_after"] < figures["log_loss_before"]
    planted.predictor.set_weights(found.weights.mix)
    after = (planted.predictor.logits(planted.images).argmax(1) == planted.labels).mean()
    planted.predictor.set_weights(planted.bank.factory)
    before = (planted.predictor.logits(planted.images).argmax(1) == planted.labels).mean()
    assert after > before


def test_forwards_alone_find_it_too(planted: Planted) -> None:
    learner = ForwardLearner(planted.predictor, Settings(steps=8))
    found = adapt_labelled(learner, planted.images, planted.labels, planted.factory)
    assert found.verdict.taken, found.verdict.reason
    assert found.weights.mix.argmax() == len(found.weights.mix) - 1


@pytest.mark.parametrize("seed", range(4))
def test_where_there_is_nothing_to_gain_nothing_changes(planted: Planted, seed: int) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=10))
    logits = learner.logits(planted.images, planted.factory.mix, planted.factory.head)
    # Labels as the factory model itself expects them: no other mix can do better than by chance.
    p = np.exp(log_softmax(logits))
    labels = np.array(
        [np.random.default_rng([seed, i]).choice(4, p=row) for i, row in enumerate(p)]
    )
    found = adapt_labelled(learner, planted.images, labels, planted.factory, seed=seed)
    assert not found.verdict.taken, found.verdict.reason


def test_the_anchor_is_the_gradient_of_its_loss(planted: Planted) -> None:
    """At the mix of the step before, where the statistics' gradient is not an old one."""
    rng = np.random.default_rng(0)
    width = planted.bank.head_weight.shape[1]
    clean = rng.normal(size=width).astype(np.float32), np.ones(width, np.float32)
    images, rows = planted.images[:9], np.eye(4, dtype=np.float32)[planted.labels[:9]]
    judge = anchored_judge(planted.graph, images, rows, clean, 0.7)
    mix, head = smoothed(rng.dirichlet(np.ones(len(planted.bank.names))), 0.3), planted.factory.head
    judge(mix, head)
    slope = judge(mix, head)
    direction = rng.normal(size=len(mix))
    direction -= direction.mean()
    direction *= 3e-3 / np.abs(direction).max()

    def loss(point: np.ndarray) -> float:
        step = planted.graph(images, rows, point, head)
        at_factory = planted.graph(images, 0 * rows, planted.bank.factory).features
        far, near = (
            statistics_distance(features, *clean)[0] for features in (step.features, at_factory)
        )
        return float(step.loss.mean()) + 0.7 * far / near

    assert slope.loss == pytest.approx(loss(mix), rel=1e-5)
    difference = (loss(mix + direction) - loss(mix - direction)) / 2
    assert slope.d_mix @ direction == pytest.approx(difference, rel=0.02)


def test_the_anchor_keeps_features_on_the_ground(planted: Planted) -> None:
    """Labels that say nothing lead far away without it."""
    learner = GradientLearner(planted.graph, Settings(steps=1))
    at_factory = learner.features(planted.images, learner.factory)
    clean = at_factory.mean(axis=0), at_factory.var(axis=0)
    bank = replace(planted.bank, clean_mean=clean[0], clean_var=clean[1])
    graph = AdaptGraph(adapt_path(planted.path), bank, threads=1)
    labels = np.random.default_rng(0).integers(0, 4, 12)
    rows = np.eye(4, dtype=np.float32)[labels]
    start = start_at(planted.factory.mix, planted.factory.head)
    found = {}
    for anchor in (0.0, 3.0):
        learner = GradientLearner(graph, Settings(steps=12, proximal=0, anchor=anchor))
        point = learner.learn(planted.images[:12], rows, start, None).point
        features = learner.features(planted.images[:12], point.mix)
        found[anchor] = statistics_distance(features, *clean)[0]
    assert found[3.0] < found[0.0]


def test_same_seed_same_weights(planted: Planted) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=4))
    first, second = (
        adapt_labelled(learner, planted.images, planted.labels, planted.factory).weights.mix
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_without_labels_predictions_become_surer(planted: Planted) -> None:
    learner = GradientLearner(planted.graph, Settings(steps=8))
    found = adapt_unlabelled(learner, planted.images, planted.factory)
    assert 0 <= found.verdict.figures["agreement"] <= 1
    logits = learner.logits(planted.images, found.weights.mix, found.weights.head)
    start = start_at(planted.factory.mix, planted.factory.head)
    before = learner.logits(planted.images, start.mix, start.head)
    assert information(logits)[0] < information(before)[0]


def test_without_labels_the_statistics_of_clean_images_lead_back(
    planted: Planted, tmp_path: Path
) -> None:
    """Clean images under the first source; the device starts from the condition prompt."""
    tokens = bank_tokens(planted.bundle)[1]
    clean = replace(planted.bundle, prompt=tokens[0], choice="learned")
    features = token_features(clean, planted.backbone, planted.images)
    known = replace(planted.bundle, clean_mean=features.mean(0), clean_var=features.var(0))
    path = tmp_path / "pets.onnx"
    export_onnx(known, planted.backbone, path, runtime_weights=True, adapt=True)
    predictor = Predictor(path)
    assert predictor.bank is not None
    first = len(predictor.bank.names) - 3  # behind "no prompt", where there is one
    away = Weights(np.eye(len(predictor.bank.names))[first + 2], planted.factory.head)
    graph = AdaptGraph(adapt_path(path), predictor.bank)
    for learner in (
        GradientLearner(graph, Settings(steps=60, proximal=0)),
        ForwardLearner(predictor, Settings(steps=15, proximal=0)),
    ):
        found = adapt_unlabelled(learner, planted.images, away)

        def distance(mix: np.ndarray) -> float:
            predictor.set_weights(mix)
            seen = predictor.features(planted.images)
            bank = predictor.bank
            return statistics_distance(seen, bank.clean_mean, bank.clean_var)[0]

        at_source = distance(np.eye(len(predictor.bank.names))[first])
        assert at_source < 1e-6, "the bank's statistics are those of the clean images"
        assert distance(found.weights.mix) < 0.5 * distance(away.mix), learner.method
        assert found.weights.head is away.head
        at_factory = distance(learner.factory)
        assert found.verdict.figures["distance_before"] == pytest.approx(at_factory, rel=1e-3)
        assert found.verdict.figures["distance_after"] == pytest.approx(
            distance(found.weights.mix), rel=1e-3
        )


def test_without_labels_the_bias_takes_the_mean_back(planted: Planted) -> None:
    """Mean logits are then what the factory's head gives for the mean of clean features."""
    rng = np.random.default_rng(0)
    width = planted.bank.head_weight.shape[1]
    clean = rng.normal(size=width).astype(np.float32), np.ones(width, np.float32)
    bank = replace(planted.bank, clean_mean=clean[0], clean_var=clean[1])
    graph = AdaptGraph(adapt_path(planted.path), bank)
    learner = GradientLearner(graph, Settings(steps=3, head="bias"))
    found = adapt_unlabelled(learner, planted.images, planted.factory).weights
    np.testing.assert_array_equal(found.head.weight, planted.bank.head_weight)
    logits = learner.logits(planted.images, found.mix, found.head).mean(axis=0)
    wanted = planted.bank.head_weight @ clean[0] + planted.bank.head_bias
    np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("moved", ["bias", "weights"])
def test_head_moves_where_asked(planted: Planted, moved: str) -> None:
    settings = Settings(steps=5, head=moved)
    found = adapt_labelled(
        GradientLearner(planted.graph, settings), planted.images, planted.labels, planted.factory
    )
    head = found.weights.head
    assert np.abs(head.bias - planted.factory.head.bias).max() > 0
    assert (np.abs(head.weight - planted.factory.head.weight).max() > 0) == (moved == "weights")


def test_micro_batches_give_the_same_step(planted: Planted) -> None:
    rows = np.eye(4, dtype=np.float32)[planted.labels[:7]]
    mix = smoothed(planted.bank.factory)
    whole = AdaptGraph(adapt_path(planted.path), planted.bank, micro_batch=7)
    parts = AdaptGraph(adapt_path(planted.path), planted.bank, micro_batch=2)
    one, other = (graph(planted.images[:7], rows, mix) for graph in (whole, parts))
    np.testing.assert_allclose(one.d_mix, other.d_mix, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)


class TestTrustNothing:
    def test_right_gradient_passes(self, planted: Planted) -> None:
        rng = np.random.default_rng(0)
        check_gradient(planted.graph, planted.images[:8], np.zeros(len(planted.bank.names)), rng)

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
            adapt_labelled(learner, planted.images, planted.labels, planted.factory)


class TestDescend:
    def judge(self, mix: np.ndarray, head: Head) -> Slope:
        """Cross-entropy of the mix with a target distribution: its minimum is the target."""
        target = np.array([0.7, 0.2, 0.1])
        return Slope(
            float(-(target * np.log(mix)).sum()), -target / mix, np.zeros((2, 2)), np.zeros(2)
        )

    head = Head(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))

    def test_finds_the_minimum(self) -> None:
        start = start_at(np.array([0, 0, 1.0]), self.head)
        found = descend(
            self.judge, start, np.full(3, 1 / 3), Settings(steps=300, rate=0.1, proximal=0)
        )
        np.testing.assert_allclose(found.point.mix, [0.7, 0.2, 0.1], atol=0.05)

    def test_proximal_term_keeps_near_the_factory(self) -> None:
        factory = np.array([0, 0, 1.0])
        start = start_at(factory, self.head)
        near, far = (
            descend(self.judge, start, factory, Settings(steps=200, proximal=tau)).point.mix[2]
            for tau in (10.0, 0.0)
        )
        assert near > 0.8 > far

    def test_nan_is_undone_then_given_up(self) -> None:
        calls = 0

        def judge(mix: np.ndarray, head: Head) -> Slope:
            nonlocal calls
            calls += 1
            slope = self.judge(mix, head)
            return slope if calls == 1 else replace(slope, loss=float("nan"))

        start = Point(np.zeros(3), self.head)
        with pytest.raises(UserError, match="the loss is nan even after 5 halvings"):
            descend(judge, start, np.full(3, 1 / 3), Settings())

    def test_one_nan_does_no_harm(self) -> None:
        calls = 0

        def judge(mix: np.ndarray, head: Head) -> Slope:
            nonlocal calls
            calls += 1
            slope = self.judge(mix, head)
            return replace(slope, loss=float("nan")) if calls == 3 else slope

        found = descend(judge, Point(np.zeros(3), self.head), np.full(3, 1 / 3), Settings(steps=60))
        assert found.point.mix[0] > 0.6

    def test_seconds_end_it(self) -> None:
        start = Point(np.zeros(3), self.head)
        found = descend(self.judge, start, np.full(3, 1 / 3), Settings(steps=10**9, seconds=1e-9))
        assert found.steps == 0
        np.testing.assert_array_equal(found.point.mix, start.mix)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=6))
@settings(max_examples=30, deadline=None)
def test_gradient_through_the_softmax(theta: list[float]) -> None:
    point, rng = np.array(theta), np.random.default_rng(0)
    d = rng.normal(size=len(point))
    analytic = through_softmax(d, softmax(point))
    for i in range(len(point)):
        e = np.eye(len(point))[i] * 1e-5
        numeric = (softmax(point + e) @ d - softmax(point - e) @ d) / 2e-5
        assert analytic[i] == pytest.approx(numeric, abs=1e-6)


def numeric_gradient(f: Any, x: np.ndarray, step: float) -> np.ndarray:
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step
        gradient[index] = (f(x + e) - f(x - e)) / (2 * step)
    return gradient


def test_gradients_of_the_losses_without_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3))
    numeric = numeric_gradient(lambda x: information(x)[0], logits, 1e-4)
    np.testing.assert_allclose(information(logits)[1], numeric, atol=1e-6)
    mean, variance = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    features = rng.normal(size=(6, 4))

    def distance(x: np.ndarray) -> float:
        return statistics_distance(x, mean, variance)[0]

    numeric = numeric_gradient(distance, features, 1e-4)
    np.testing.assert_allclose(statistics_distance(features, mean, variance)[1], numeric, atol=1e-5)


class TestGuard:
    labels = np.arange(40) % 4

    def logits(self, strength: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return strength * np.eye(4)[self.labels] + noise * rng.normal(size=(40, 4))

    def test_clear_gain_is_taken(self) -> None:
        verdict = judge_labelled(self.logits(0.5), self.logits(2.0), self.labels)
        assert verdict.taken
        assert "falls by" in verdict.reason

    def test_gain_within_its_uncertainty_is_not(self) -> None:
        old = self.logits(1.0)
        up_and_down = np.where(np.arange(40) % 2, 1.2, 0.85)[:, None]  # better on average, barely
        verdict = judge_labelled(old, old * up_and_down, self.labels)
        assert verdict.figures["log_loss_before"] - verdict.figures["log_loss_after"] > 0
        assert not verdict.taken
        assert "uncertainty" in verdict.reason
        assert not judge_labelled(old, old, self.labels).taken, "nothing is no gain"

    def test_lower_accuracy_is_never_taken(self) -> None:
        old = self.logits(0.2)
        new = self.logits(5.0)
        new[:4] = -new[:4]
        new[:4] += 4.9 * np.eye(4)[self.labels[:4]]  # sure elsewhere, wrong here by a little
        assert not judge_labelled(old, new, self.labels).taken

    def test_collapse_and_surer_disagreement_are_refused(self) -> None:
        factory = self.logits(3.0)
        one = np.tile([5.0, 0, 0, 0], (40, 1))
        collapsed = judge_unlabelled(factory, factory, one)
        assert not collapsed.taken
        assert "collapse" in collapsed.reason
        turned = 9 * np.eye(4)[(self.labels + 1) % 4]
        assert not judge_unlabelled(factory, factory, turned).taken
        assert judge_unlabelled(factory, factory, self.logits(6.0)).taken

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

    @given(st.lists(st.integers(0, 3), min_size=3, max_size=60))
    @settings(max_examples=40, deadline=None)
    def test_folds_share_out_every_class(self, labels: list[int]) -> None:
        folds = fold_of(np.array(labels), 3, np.random.default_rng(0))
        assert set(folds) <= {0, 1, 2}
        for label in set(labels):
            counts = np.bincount(folds[np.array(labels) == label], minlength=3)
            assert counts.max() - counts.min() <= 1


class TestSeen:
    def folder(self, root: Path, names: dict[str, int]) -> Path:
        rng = np.random.default_rng(0)
        for name, count in names.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
        return root

    def read(self, folder: Path, planted: Planted, **options: Any) -> Any:
        predictor = planted.predictor
        return read_labelled(folder, predictor.classes, predictor.preprocessing, **options)

    def test_labels_follow_the_models_classes(self, tmp_path: Path, planted: Planted) -> None:
        classes = planted.predictor.classes
        folder = self.folder(tmp_path / "seen", {classes[2]: 2, classes[0]: 1})
        (folder / classes[0] / "broken.png").write_bytes(b"no image")
        seen = self.read(folder, planted)
        assert sorted(seen.labels) == [0, 2, 2]
        assert seen.pixels.shape == (3, 24, 24, 3)
        assert len(seen.unreadable) == 1
        assert len(self.read(folder, planted, limit=3).pixels) in (2, 3)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({}, "holds no class folders"),
            ({"zebra": 1}, "'zebra' is no class of the model"),
            ({"class 0, ä": 3}, "one class alone"),
        ],
    )
    def test_bad_labels(
        self, names: dict[str, int], message: str, tmp_path: Path, planted: Planted
    ) -> None:
        folder = self.folder(tmp_path / "seen", names)
        folder.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            self.read(folder, planted)
        with pytest.raises(UserError, match="no such folder"):
            self.read(tmp_path / "missing", planted)

    def test_any_folder_without_labels(self, tmp_path: Path, planted: Planted) -> None:
        folder = self.folder(tmp_path / "x", {"a": 2, "b": 1})
        rule = planted.predictor.preprocessing
        assert len(read_unlabelled(folder, rule).pixels) == 3
        with pytest.raises(UserError, match="fewer than two"):
            read_unlabelled(folder / "b", rule)


class TestLive:
    def test_new_weights_reach_a_running_predictor(self, planted: Planted, tmp_path: Path) -> None:
        state = tmp_path / "state"
        classes = planted.predictor.classes
        with open_journal(state, planted.bank, classes) as journal:
            live = Predictor(planted.path, state=state)
            old = live.logits(planted.images[:3])
            assert not live.refresh()
            mix = np.roll(planted.bank.factory, 1)
            bias = planted.bank.head_bias + np.float32(1)
            journal.commit(mix, method="labelled", images=1, figures={}, head_bias=bias)
            assert live.refresh()
            assert not live.refresh()
        fresh = Predictor(planted.path)
        np.testing.assert_allclose(fresh.logits(planted.images[:3]), old, rtol=1e-5, atol=1e-5)
        fresh.set_weights(mix)
        wanted = fresh.logits(planted.images[:3]) + 1
        np.testing.assert_allclose(live.logits(planted.images[:3]), wanted, rtol=1e-4, atol=1e-4)

    def test_watch_serves_new_images_with_new_weights(
        self, planted: Planted, tmp_path: Path
    ) -> None:
        state, folder = tmp_path / "state", tmp_path / "in"
        folder.mkdir()
        Image.fromarray(planted.images[0]).save(folder / "0.png")
        with open_journal(state, planted.bank, planted.predictor.classes) as journal:
            served = watch(Predictor(planted.path, state=state), folder, sleep=lambda _: None)
            prediction, version = next(served)
            assert prediction.path == folder / "0.png"
            assert version is not None
            assert version.id == 1
            journal.commit(planted.bank.factory, method="labelled", images=1, figures={})
            Image.fromarray(planted.images[1]).save(folder / "1.png")
            prediction, version = next(served)
            assert prediction.path == folder / "1.png"
            assert version is not None
            assert version.id == 2

    def test_folded_model_has_no_state(self, tmp_path: Path) -> None:
        backbone = make_backbone("tanh gelu")
        path = tmp_path / "p.onnx"
        export_onnx(make_mixable(backbone), backbone, path)
        with pytest.raises(UserError, match="are folded into it"):
            Predictor(path, state=tmp_path)


def test_graph_of_another_bank_is_refused(planted: Planted) -> None:
    other = replace(planted.bank, sha256="00" * 32)
    with pytest.raises(UserError, match="the graph of another bank"):
        AdaptGraph(adapt_path(planted.path), other)
    with pytest.raises(UserError, match="not a graph of this version"):
        AdaptGraph(planted.path, planted.bank)
    with pytest.raises(UserError, match="export the model with `--adapt`"):
        AdaptGraph(planted.path.with_name("missing.onnx"), planted.bank)
