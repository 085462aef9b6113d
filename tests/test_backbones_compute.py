"""Precision, workers and devices change how fast features come, not what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_vits import TOKENS, make_backbone
from toys import make_bank, make_task, noise_tokens, pixels_of

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.compute import Compute, usable_threads
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.linearize import Linearized, pixel_inputs
from hgprompt_edge.backbones.passes import model_of
from hgprompt_edge.cores import usable_cores
from hgprompt_edge.data.conditions import CONDITIONS
from hgprompt_edge.features.cached import FeatureStore, pull_back
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.fit.plain import fit_head
from hgprompt_edge.heads.heads import accuracy, logits_of
from hgprompt_edge.maths.head import Head
from hgprompt_edge.training.condition_trainer import (
    ConditionRecipe,
    ConditionTrainer,
    seen_under,
)
from hgprompt_edge.training.prompt_tuning import PromptTrainer, Recipe

ROUNDING = 1e-5
"""Largest relative difference of float32 results by one worker and by several."""
HALF = 0.05
"""Largest relative difference of bfloat16 features and gradients from float32 ones."""
TWO = Compute(workers=2, micro_batch=16)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def random_head(width: int = 32, classes: int = 3) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return Head(weight.numpy(), np.zeros(classes))


def results(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Every kind of image pass."""
    pixels, prompt = pixels_of(50), noise_tokens(1)[0]
    slope = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    batch = Linearized(backbone, pixel_inputs(backbone, pixels), 50, torch.from_numpy(prompt))
    return {
        "features": extract_features(backbone, pixels, prompt),
        "no prompt": extract_features(backbone, pixels, None),
        "with activations": batch.features,
        "their pull-back": batch.pull(slope),
        "pull-back": pull_back(backbone, pixels, prompt, slope),
        "rows": seen_under(backbone, pixels, prompt).rows,
    }


def test_workers_give_the_same_results(backbone: Backbone) -> None:
    one, two = results(backbone), results(backbone.with_compute(TWO))
    for name, expected in one.items():
        assert relative(two[name], expected) < ROUNDING, name
    assert relative(one["their pull-back"], one["pull-back"]) < ROUNDING


def test_bfloat16_gives_nearly_the_same_results(backbone: Backbone) -> None:
    exact, rough = results(backbone), results(backbone.in_precision("bfloat16"))
    for name, expected in exact.items():
        assert rough[name].device.type == "cpu"
        assert rough[name].dtype == expected.dtype
        assert 0 < relative(rough[name], expected) < HALF, name
    assert next(backbone.model.parameters()).dtype == torch.float32


def test_poolings_share_one_copy_of_the_weights(backbone: Backbone) -> None:
    half = backbone.in_precision("bfloat16")
    pixels, prompt = pixels_of(5), noise_tokens(1)[0]
    found = {
        name: extract_features(half.with_pooling(name), pixels, prompt) for name in half.poolings
    }
    assert relative(found["both"], torch.cat([found["token"], found["avg"]], dim=1)) < HALF
    weights = {next(model_of(half.with_pooling(name)).parameters()) for name in half.poolings}
    assert len(weights) == 1


def train(backbone: Backbone) -> np.ndarray:
    rng = np.random.default_rng(0)
    part = (pixels_of(60), rng.integers(0, 3, 60))
    recipe = Recipe(tokens=TOKENS, epochs=2, batch_size=30, validate_every=1)
    start = noise_tokens(1)[0]
    trainer = PromptTrainer(backbone, recipe, 3, lambda _: part, part, part, start=start)
    return trainer.run().tokens


def restore(backbone: Backbone) -> np.ndarray:
    start = noise_tokens(1)[0]
    seen = seen_under(backbone.in_precision("float32"), pixels_of(40), start)
    recipe = ConditionRecipe(epochs=2, validate_every=1)
    trainer = ConditionTrainer(backbone, recipe, CONDITIONS[0], start, random_head(), seen, seen)
    return trainer.run().tokens


@pytest.mark.parametrize("training", [train, restore])
def test_training_with_workers_repeats_itself(backbone: Backbone, training: Any) -> None:
    """Bit by bit, and it is the training of one worker up to rounding."""
    first, again = (training(backbone.with_compute(TWO)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    alone = training(backbone)
    assert not np.array_equal(alone, noise_tokens(1)[0])
    np.testing.assert_allclose(first, alone, atol=2e-3)


def test_fit_in_bfloat16_keeps_a_head_on_float32_features(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    bank, task = make_bank(backbone, tokens), make_task(backbone, tokens[1])
    half = backbone.with_compute(replace(TWO, precision="bfloat16"))
    exact, rough = (HGPrompt(steps=2).fit(bank, each, task) for each in (backbone, half))
    assert np.abs(rough.weights_ - exact.weights_).max() < 0.05
    assert rough.table_[0].cross_log_loss != exact.table_[0].cross_log_loss  # it was bfloat16
    for row, other in zip(rough.table_, exact.table_, strict=True):
        assert row.test_accuracy == pytest.approx(other.test_accuracy, abs=0.05)
    # What is kept is as if all had been float32: its head and its test accuracy.
    kept = Candidate(rough.choice_, rough.bundle_.prompt, rough.weights_)
    (head,) = Judge(FeatureStore(backbone), task).final_heads(kept)
    assert np.abs(rough.head_.weight - head.weight).max() < ROUNDING * np.abs(head.weight).max()
    logits = logits_of(head, extract_features(backbone, task.test.pixels, kept.tokens))
    found = next(row for row in rough.table_ if row.method == rough.choice_)
    assert found.test_accuracy == accuracy(logits, task.test.labels)
    # So are the rows beside it: no prompt has the figure of a fit without prompts.
    plain = fit_head(backbone, task)[0].table[0]
    assert rough.table_[0].method == plain.method == "none"
    assert rough.table_[0].test_accuracy == plain.test_accuracy
    for row, other in zip(rough.table_, exact.table_, strict=True):
        if row.method != "hgprompt":  # whose weights were learned in bfloat16
            assert row.test_accuracy == other.test_accuracy, row.method


@given(st.integers(0, 500), st.integers(1, 9), st.integers(1, 80))
def test_parts_are_even_and_keep_all_workers_busy(images: int, workers: int, size: int) -> None:
    parts = Compute(workers=workers, micro_batch=size).parts(images)
    sizes = [part.stop - part.start for part in parts]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(images))
    assert max(sizes, default=0) <= size
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(parts) % workers == 0 or len(parts) == images


def cgroup(root: Path, line: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": line, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "sys/fs/cgroup/cpu/docker/abc"


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/app/job\n", {"sys/fs/cgroup/app/job/cpu.max": "200000 100000\n"}, 2),
        ("0::/app/job\n", {"sys/fs/cgroup/app/cpu.max": "150000 100000\n"}, 2),  # of its parent
        ("0::/elsewhere\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # in a container
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n",
            {f"{V1}/cpu.cfs_quota_us": "300000", f"{V1}/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "1:cpu:/docker/abc\n",
            {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"},
            64,
        ),
        ("2:memory:/x\n", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_are_bounded_by_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable_cores(cgroup(tmp_path, line, files)) == expected
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {7}, raising=False)
    assert usable_cores(tmp_path) == 1


def test_threads_are_no_more_than_pytorch_was_told_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgprompt_edge.backbones.compute.usable_cores", lambda: 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert usable_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_store_keeps_precisions_apart(backbone: Backbone) -> None:
    store = FeatureStore(backbone.in_precision("bfloat16"))
    assert store.in_precision("bfloat16") is store
    rough = store.features(pixels_of(5), None)
    exact = store.in_precision("float32").features(pixels_of(5), None)
    assert relative(exact, extract_features(backbone, pixels_of(5), None)) < ROUNDING
    assert not torch.equal(exact, rough)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_results(backbone: Backbone) -> None:
    on_cpu = results(backbone)
    on_cuda = results(backbone.with_compute(Compute("cuda", micro_batch=256)))
    for name, expected in on_cpu.items():
        assert on_cuda[name].device.type == "cpu"
        assert relative(on_cuda[name], expected) < 1e-3, name
