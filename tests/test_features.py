from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_vits import TOKENS, make_backbone
from toys import shorten_start

import hgprompt_edge.features.cached as module
from hgprompt_edge.backbones.forward import extract_features, features_token, normalize
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cache import cache_size, clear_cache, evict
from hgprompt_edge.features.cached import FeatureStore, pull_back
from hgprompt_edge.training.neutral_prompt import neutral_tokens


def images(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, TOKENS, 32)).astype(np.float32)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the backbone had to run."""
    runs: list[int] = []

    def counted(*args, **kwargs):
        runs.append(1)
        return extract_features(*args, **kwargs)

    monkeypatch.setattr(module, "extract_features", counted)
    return runs


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "features").glob("*.safetensors"))


def test_a_second_store_runs_nothing(passes: list[int]) -> None:
    backbone = make_backbone()
    once = FeatureStore(backbone).features(images(), tokens())
    again = FeatureStore(backbone).features(images(), tokens())
    assert len(passes) == 1
    assert torch.equal(once, again)
    assert torch.equal(once, extract_features(backbone, images(), tokens()))


def test_everything_that_features_depend_on_is_in_the_key(passes: list[int]) -> None:
    backbone = make_backbone()
    FeatureStore(backbone).features(images(), tokens())
    FeatureStore(backbone).features(images(seed=1), tokens())
    FeatureStore(backbone).features(images(), tokens(1))
    FeatureStore(backbone).features(images(), tokens()[:1])
    FeatureStore(backbone).features(images(), None)
    FeatureStore(make_backbone(seed=1)).features(images(), tokens())
    brighter = replace(backbone.preprocessing, mean=(0.4, 0.4, 0.4))
    FeatureStore(replace(backbone, preprocessing=brighter)).features(images(), tokens())
    assert len(passes) == 7
    rules = ("squash", "letterbox")  # of pictures that are square all have the same pixels
    for _ in range(2):
        for rule in rules:
            FeatureStore(backbone.with_rule(rule)).features(images(), tokens())
    assert len(passes) == 7 + len(rules)
    other = make_backbone()  # the same weights with another activation
    for block in other.model.blocks:
        block.mlp.act = torch.nn.ReLU()
    FeatureStore(other).features(images(), tokens())
    assert len(passes) == 8 + len(rules)


def test_pixels_changed_in_place_between_stores_are_noticed(passes: list[int]) -> None:
    backbone, pixels = make_backbone(), images()
    FeatureStore(backbone).features(pixels, None)
    pixels[0] = 255 - pixels[0]
    FeatureStore(backbone).features(pixels, None)
    assert len(passes) == 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "other shape", "nan", "noise"])
def test_a_damaged_entry_is_computed_again(
    private_cache: Path, passes: list[int], damage: str
) -> None:
    backbone = make_backbone()
    expected = FeatureStore(backbone).features(images(), tokens())
    (path,) = entries(private_cache)
    whole = path.read_bytes()
    if damage == "other shape":
        module.write_safetensors(path, {"value": np.zeros((5, 3), np.float32)}, {})
    elif damage == "nan":
        module.write_safetensors(path, {"value": np.full((5, 32), np.nan, np.float32)}, {})
    else:
        path.write_bytes({"empty": b"", "truncated": whole[:-9], "noise": b"x" * 99}[damage])
    assert torch.equal(FeatureStore(backbone).features(images(), tokens()), expected)
    assert len(passes) == 2
    assert path.read_bytes() == whole


def test_the_least_recently_used_entry_goes_first(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone()
    monkeypatch.setattr(module, "_limit_bytes", lambda: 3500)  # two entries of some 1400 bytes
    first, second, third = (images(seed=seed) for seed in range(3))
    FeatureStore(backbone).features(first, None)
    (kept,) = entries(private_cache)
    os.utime(kept, ns=(10**9, 10**9))
    FeatureStore(backbone).features(second, None)
    (dropped,) = set(entries(private_cache)) - {kept}
    os.utime(dropped, ns=(2 * 10**9, 2 * 10**9))
    FeatureStore(backbone).features(first, None)  # a hit counts as use
    FeatureStore(backbone).features(third, None)
    assert kept.exists()
    assert not dropped.exists()
    assert len(entries(private_cache)) == 2


def test_clear_and_size() -> None:
    assert cache_size() == (0, 0)
    assert clear_cache() == (0, 0)
    FeatureStore(make_backbone()).features(images(), None)
    files, size = cache_size()
    assert files == 1
    assert size > 5 * 32 * 4
    assert clear_cache() == (files, size)
    assert cache_size() == (0, 0)


def test_starts_and_what_a_kill_left_are_counted_evicted_and_cleared(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    backbone = make_backbone()
    used, unused = (neutral_tokens(backbone, count, "deep", 0) for count in (2, 3))
    left = private_cache / "features" / ".half.safetensors.tmp"
    left.parent.mkdir()
    left.write_bytes(b"x" * 5000)
    starts = private_cache / "starts"
    for path in (left, *starts.iterdir()):
        os.utime(path, ns=(10**9, 10**9))
    assert cache_size()[0] == 3
    assert torch.equal(neutral_tokens(backbone, 2, "deep", 0), used)  # a hit counts as use
    monkeypatch.setattr(module, "_limit_bytes", lambda: 2000)
    FeatureStore(backbone).features(images(), None)
    (kept,) = starts.iterdir()
    assert kept.stat().st_size < unused.numel() * 4
    assert not left.exists()
    assert clear_cache()[0] == 2
    assert cache_size() == (0, 0)
    assert not list(starts.iterdir())


def test_compiled_models_are_counted_evicted_and_cleared_with_their_folders(
    private_cache: Path,
) -> None:
    folder = private_cache / "openvino"
    for age, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.blob").write_bytes(b"x" * 1000)
        os.utime(folder / name / "1.blob", ns=(10**9 + age, 10**9 + age))
    assert cache_size() == (3, 3000)
    evict(2500)
    assert {path.name for path in folder.iterdir()} == {"b", "c"}
    (folder / "empty").mkdir()
    assert clear_cache() == (2, 2000)
    assert not list(folder.iterdir())


def test_a_cache_that_cannot_be_written_warns_once(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_cache.joinpath("file").write_text("not a folder")
    monkeypatch.setenv("HGEDGE_CACHE", str(private_cache / "file"))
    store = FeatureStore(make_backbone())
    with pytest.warns(UserWarning, match="HGEDGE_CACHE"):
        features = store.features(images(), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.features(images(seed=1), None)
    assert features.shape == (5, 32)


def test_a_disabled_store_leaves_the_disk_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureStore(make_backbone(), enabled=False).features(images(), None)
    assert cache_size() == (0, 0)


def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGEDGE_CACHE_SIZE", "2 GB")
    with pytest.raises(UserError, match="HGEDGE_CACHE_SIZE"):
        FeatureStore(make_backbone())


@pytest.mark.parametrize("layers", [2, 1])
def test_pull_back_in_micro_batches_equals_full_batch_autograd(layers: int) -> None:
    backbone = make_backbone()
    backbone.model.double()
    prompt = torch.from_numpy(tokens()[:layers]).double().requires_grad_(True)
    cotangent = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = normalize(torch.from_numpy(images()), backbone.preprocessing).double()
    (features_token(backbone.model, x, prompt) * cotangent).sum().backward()
    small = backbone.with_compute(replace(backbone.compute, micro_batch=2))
    found = pull_back(small, images(), prompt.detach(), cotangent)
    torch.testing.assert_close(found, prompt.grad, rtol=1e-9, atol=1e-9)


def test_pull_backs_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    cotangent = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    once = FeatureStore(backbone).pull_back(images(), tokens(), cotangent)
    monkeypatch.setattr(module, "pull_back", lambda *_: pytest.fail("ran again"))
    again = FeatureStore(backbone).pull_back(images(), tokens(), cotangent)
    assert torch.equal(once, again)


def test_bfloat16_is_close_to_float32_and_kept_apart_from_it() -> None:
    backbone = make_backbone()
    half = backbone.in_precision("bfloat16")
    assert backbone.in_precision("float32") is backbone
    assert half.sha256 == backbone.sha256
    cotangent = torch.ones(5, 32)
    exact, rough = FeatureStore(backbone), FeatureStore(half)
    for name in ("features", "pull_back"):
        rest = (cotangent,) if name == "pull_back" else ()
        a, b = (getattr(store, name)(images(), tokens(), *rest) for store in (exact, rough))
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert float((a - b).norm() / a.norm()) < 0.05
