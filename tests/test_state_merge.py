"""The mix of many devices: their mean, whatever a minority of broken ones sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vits import make_bundle, with_layers

from hgprompt_edge.artifacts.bank_entries import bank_entries, bank_sha256, initial_mix
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import read_safetensors, write_safetensors
from hgprompt_edge.fit.merged_bundle import with_mix
from hgprompt_edge.prompts.mixing import mix as fold
from hgprompt_edge.state.history import Version
from hgprompt_edge.state.merge import CAP, NEAR, REACH, merge, read_updates, robust_mean
from hgprompt_edge.state.update_file import Update, read_update, write_update

Doubles = npt.NDArray[np.float64]


def distance(a: Doubles, b: Doubles) -> float:
    return float(np.abs(a - b).sum() / 2)


@given(data=st.data(), seed=st.integers(0, 10**6))
def test_a_minority_moves_the_mean_by_at_most_the_bound(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = data.draw(st.integers(1, 15), "devices")
    broken = data.draw(st.integers(0, (n - 1) // 2), "broken")
    entries = data.draw(st.integers(2, 12), "entries")
    spread = data.draw(st.sampled_from([0.0, 1e-3, 0.05, 0.3]), "spread")
    middle = rng.dirichlet(np.ones(entries))
    others = rng.dirichlet(np.ones(entries), n - broken)
    honest = (1 - spread) * middle + spread * others
    r = max(distance(one, middle) for one in honest)
    sharp = data.draw(st.sampled_from([0.01, 1.0]), "how far broken ones are")
    lies = rng.dirichlet(np.full(entries, sharp), broken)
    if data.draw(st.booleans(), "one conspiracy") and broken:
        lies[:] = lies[0]
    counts = np.concatenate([rng.integers(1, 500, n - broken), np.full(broken, 10**9)])
    order = rng.permutation(n)
    mean, shares = robust_mean(np.concatenate([honest, lies])[order], counts[order].astype(float))
    off = r * (3 * n - 2 * broken) / (n - 2 * broken)
    assert distance(mean, middle) <= off + max(REACH * (off + r), NEAR) + 1e-9
    assert mean.min() >= -1e-12
    assert mean.sum() == pytest.approx(1)
    assert shares.sum() == pytest.approx(1)


@given(seed=st.integers(0, 10**6), n=st.integers(3, 12))
def test_devices_that_agree_give_exactly_that_against_broken_ones(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    good = rng.dirichlet(np.ones(5))
    mixes, counts = np.tile(good, (n, 1)), rng.integers(1, 99, n).astype(float)
    broken = (n - 1) // 2
    mixes[:broken] = np.eye(5)[np.argmin(good)]
    counts[:broken] = 1e9
    mean, shares = robust_mean(mixes, counts)
    assert mean.tolist() == good.tolist()
    assert not shares[:broken].any()


def test_it_is_the_weighted_mean_where_all_are_near() -> None:
    mixes = np.array([[0.5, 0.5], [0.52, 0.48], [0.54, 0.46]])
    mean, shares = robust_mean(mixes, np.array([100.0, 50, 50]))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(mean, [0.515, 0.485])
    _, shares = robust_mean(mixes, np.array([1.0, 1, 1e6]))
    np.testing.assert_allclose(shares, np.array([1, 1, CAP]) / (2 + CAP))


def test_one_device_is_taken_as_it_is_and_two_are_averaged() -> None:
    mixes = np.array([[1.0, 0], [0, 1]])
    assert robust_mean(mixes[:1], np.array([7.0]))[0].tolist() == [1, 0]
    np.testing.assert_allclose(robust_mean(mixes, np.array([30.0, 10]))[0], [0.75, 0.25])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    backbone = load_backbone("tiny")
    tokens = np.random.default_rng(3).normal(size=(2, backbone.depth, 4, backbone.embed_dim))
    fitted = make_bundle(backbone, "deep")
    return replace(fitted, prompt=tokens[0].astype(np.float32), source_tokens=tokens.astype("f2"))


def send(
    path: Path,
    bundle: Bundle,
    weights: list[float],
    images: int = 20,
    time: float = 5,
    device: str = "",
    number: int = 2,
) -> Path:
    mix = np.array(weights, np.float32)
    version = Version(number, 1, time, "labelled", mix, None, None, images, {})
    rule = bundle.preprocessing.crop_mode
    write_update(
        path, version, bank_sha256(bundle), classes=bundle.classes, device=device, resize=rule
    )
    return path


def test_what_was_learned_with_another_resize_rule_is_left_out(
    tmp_path: Path, bundle: Bundle
) -> None:
    boxed = replace(bundle, preprocessing=bundle.preprocessing.with_rule("letterbox"))
    cropped = [send(tmp_path / f"{name}.json", bundle, [0.5, 0.5]) for name in "abc"]
    letterbox = send(tmp_path / "d.json", boxed, [0.5, 0.5])
    delivery = read_updates(
        [*cropped[:1], send(tmp_path / "e.json", bundle, [1, 0]), letterbox], bundle
    )
    assert len(delivery.updates) == 2
    (refused,) = delivery.refused
    assert "it was learned with the resize rule letterbox, not center" in refused
    with pytest.raises(UserError, match=r"a.json does .*the resize rule center, not letterbox"):
        read_updates(cropped, boxed)
    assert len(read_updates([letterbox], boxed).updates) == 1


def test_the_bank_is_what_was_chosen_then_sources_then_conditions(bundle: Bundle) -> None:
    def names(bundle: Bundle) -> list[str]:
        return [entry.name for entry in bank_entries(bundle)]

    assert names(bundle) == ["a", "b"]
    unprompted = replace(bundle, choice="none", prompt=None)
    assert names(unprompted) == ["no prompt", "a", "b"]
    assert bank_entries(unprompted)[0].tokens is None
    tuned = replace(bundle, choice="tuned")
    assert names(tuned) == ["tuned", "a", "b"]
    assert bank_entries(tuned)[0].tokens is not None
    assert bundle.source_tokens is not None
    other = replace(bundle, source_tokens=bundle.source_tokens[::-1])
    digests = {bank_sha256(one) for one in (bundle, unprompted, tuned, other)}
    assert len(digests) == 4
    with pytest.raises(UserError, match="does not hold its sources"):
        bank_sha256(replace(bundle, source_tokens=None))


def test_the_digest_outlives_the_file(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "a.hgbundle"
    mixed = replace(bundle, initial=np.array([0.25, 0.75], np.float32))
    write_bundle(path, mixed)
    found = read_bundle(path)
    assert bank_sha256(found) == bank_sha256(bundle)
    assert found.initial is not None
    assert found.initial.tolist() == [0.25, 0.75]
    write_bundle(path, bundle)
    assert read_bundle(path).initial is None


def test_updates_become_one_mix(tmp_path: Path, bundle: Bundle) -> None:
    for number, first in enumerate((0.6, 0.62, 0.64)):
        send(tmp_path / f"{number}.json", bundle, [first, 1 - first])
    send(tmp_path / "broken.json", bundle, [0, 1], images=10**9)
    delivery = read_updates([tmp_path], bundle)
    assert not delivery.refused
    assert [path.stem for path in delivery.paths] == ["0", "1", "2", "broken"]
    merged = merge(delivery.updates)
    np.testing.assert_allclose(merged.weights, [0.62, 0.38], rtol=1e-6)
    assert merged.shares[3] == 0


def test_files_that_do_not_belong_are_left_out_by_name(tmp_path: Path, bundle: Bundle) -> None:
    for number in range(6):
        send(tmp_path / f"{number}.json", bundle, [0.5, 0.5], time=number)
    other = replace(bundle, choice="none", prompt=None)
    send(tmp_path / "a.json", other, [0, 0.5, 0.5])
    send(tmp_path / "b.json", replace(bundle, classes=("x",)), [0.5, 0.5])
    send(tmp_path / "c.json", bundle, [0.5, 0.5], images=0)
    send(tmp_path / "d.json", bundle, [0.5, 0.5], time=3)
    (tmp_path / "e.json").write_text("{}")
    (tmp_path / "note.txt").write_text("not looked at")
    delivery = read_updates([tmp_path], bundle)
    assert len(delivery.updates) == 6
    wanted = (
        "a.json does not fit the bundle of pets: it was learned with the bank ",
        "b.json does not fit the bundle of pets: it was learned for other classes",
        "e.json: not what `hgedge state send` writes",
    )
    for sentence, words in zip(delivery.refused, wanted, strict=True):
        assert words in sentence
    wanted = ("d.json: the same as", "c.json: its device has learned nothing")
    for sentence, words in zip(delivery.idle, wanted, strict=True):
        assert words in sentence


def test_devices_that_had_nothing_to_learn_do_not_stop_the_others(
    tmp_path: Path, bundle: Bundle
) -> None:
    for number in range(5):
        send(tmp_path / f"idle{number}.json", bundle, [1, 0], images=0, time=number)
    with pytest.raises(UserError, match=r"nothing to merge; .*idle0.json: its device has learned"):
        read_updates([tmp_path], bundle)
    send(tmp_path / "one.json", bundle, [0.25, 0.75])
    delivery = read_updates([tmp_path], bundle)
    assert merge(delivery.updates).weights.tolist() == [0.25, 0.75]
    assert len(delivery.idle) == 5
    assert not delivery.refused


def test_of_one_device_the_newest_version_counts(tmp_path: Path, bundle: Bundle) -> None:
    """A broken device must not become a majority by sending again and again."""
    for number in range(5):
        send(tmp_path / f"a{number}.json", bundle, [0, 1], device="a" * 16, number=number + 2)
    send(tmp_path / "b.json", bundle, [0.6, 0.4], device="b" * 16)
    send(tmp_path / "c.json", bundle, [0.62, 0.38], device="c" * 16)
    send(tmp_path / "d.json", bundle, [0.9, 0.1], device="d" * 16)
    send(tmp_path / "e.json", bundle, [1, 0], images=0, device="d" * 16, number=3)
    delivery = read_updates([tmp_path], bundle)
    assert [path.stem for path in delivery.paths] == ["a4", "b", "c"]
    np.testing.assert_allclose(merge(delivery.updates).weights, [0.61, 0.39], rtol=1e-6)
    sentences = dict(zip(("a0", "a1", "a2", "a3", "d", "e"), delivery.idle, strict=True))
    assert sentences["a0"].endswith(f"its device sent a newer version, 6 ({tmp_path / 'a4.json'})")
    assert "its device sent a newer version, 3" in sentences["d"]
    assert "its device has learned nothing" in sentences["e"], "it went back to the initial ones"


def test_copies_of_one_state_that_went_on_apart_all_count(tmp_path: Path, bundle: Bundle) -> None:
    for number in range(3):
        send(tmp_path / f"{number}.json", bundle, [0.5, 0.5], time=number, device="a" * 16)
    assert len(read_updates([tmp_path], bundle).updates) == 3


def test_where_half_the_files_do_not_belong_nothing_is_merged(
    tmp_path: Path, bundle: Bundle
) -> None:
    good = send(tmp_path / "good.json", bundle, [0.5, 0.5])
    bad = tmp_path / "bad.json"
    with pytest.raises(UserError, match=r"^1 of 2 files cannot be used; .*bad.json"):
        read_updates([good, bad], bundle)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no \*.json"):
        read_updates([tmp_path / "empty"], bundle)


def test_a_mix_of_the_bank_is_folded_and_its_probe_follows(bundle: Bundle) -> None:
    import torch

    backbone = load_backbone("tiny")
    mix = np.array([0.25, 0.75], np.float32)
    result = with_mix(bundle, mix, {"devices": 3}, backbone)
    assert bundle.source_tokens is not None
    prompt = 0.25 * bundle.source_tokens[0].astype(float) + 0.75 * bundle.source_tokens[1]
    assert result.prompt is not None
    np.testing.assert_allclose(result.prompt, prompt, atol=1e-3)
    x = normalize(torch.from_numpy(bundle.probe_images), bundle.preprocessing)
    with torch.inference_mode():
        features = features_token(backbone.model, x, torch.from_numpy(result.prompt)).numpy()
    logits = bundle.head.logits(features)
    np.testing.assert_allclose(result.probe_logits, logits, atol=1e-3)
    assert result.objective["merged"] == {"devices": 3}
    assert bank_sha256(result) == bank_sha256(bundle)


def test_devices_mix_beside_a_learned_prompt_with_weights_for_each_layer(
    tmp_path: Path, bundle: Bundle
) -> None:
    backbone = load_backbone("tiny")
    layered = with_layers(bundle, backbone)
    assert [entry.name for entry in bank_entries(layered)] == ["learned", "a", "b"]
    assert initial_mix(layered).tolist() == [1, 0, 0]
    path = tmp_path / "a.hgbundle"
    write_bundle(path, layered)
    assert bank_sha256(read_bundle(path)) == bank_sha256(layered)

    merged = with_mix(read_bundle(path), np.array([0.5, 0.3, 0.2], np.float32), {}, backbone)
    assert layered.source_tokens is not None
    tokens = layered.source_tokens.astype(np.float32)
    assert merged.prompt is not None
    expected = 0.5 * fold(tokens, layered.learned_weights) + fold(tokens, [0.3, 0.2])
    np.testing.assert_allclose(merged.prompt, expected, atol=2e-3)
    np.testing.assert_allclose(merged.prompt, fold(tokens, merged.weights), atol=2e-3)
    write_bundle(path, merged)
    assert bank_sha256(read_bundle(path)) == bank_sha256(layered), "devices need not start anew"
    assert initial_mix(read_bundle(path)) == pytest.approx([0.5, 0.3, 0.2])


def test_bundles_of_another_version_or_pooling_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "a.hgbundle"
    write_bundle(path, bundle)
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, tensors, {**metadata, "format": "hgprompt.bundle/9"})
    with pytest.raises(UserError, match=r"format hgprompt\.bundle/9 is newer .*; upgrade"):
        read_bundle(path)
    write_safetensors(path, tensors, {**metadata, "pooling": "max"})
    with pytest.raises(UserError, match="'pooling' is 'max', none of token, avg, both"):
        read_bundle(path)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 12), (2, 6, 1), ()])
def test_weights_that_fit_neither_sources_nor_layers_are_refused(
    tmp_path: Path, bundle: Bundle, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "a.hgbundle"
    write_bundle(path, replace(bundle, learned_weights=np.ones(shape, np.float32)))
    with pytest.raises(UserError, match=r"'learned_weights' is .* for 2 sources"):
        read_bundle(path)


@pytest.mark.parametrize("entries", [2, 4])
def test_a_mix_of_devices_over_another_bank_is_refused(
    tmp_path: Path, bundle: Bundle, entries: int
) -> None:
    path = tmp_path / "a.hgbundle"
    tuned = replace(bundle, choice="tuned", initial=np.ones(entries, np.float32))
    write_bundle(path, tuned)
    with pytest.raises(UserError, match=rf"a.hgbundle: .*'initial' is \[{entries}\] for 3 entries"):
        read_bundle(path)
    write_bundle(path, replace(tuned, source_tokens=None))
    with pytest.raises(UserError, match="'initial' without the sources"):
        read_bundle(path)


@pytest.mark.parametrize("choice", ["none", "tuned"])
def test_what_was_no_mix_keeps_its_prompt_and_its_bank(bundle: Bundle, choice: str) -> None:
    backbone = load_backbone("tiny")
    fitted = replace(bundle, choice=choice, prompt=None if choice == "none" else bundle.prompt)
    result = with_mix(fitted, np.array([0.5, 0.25, 0.25], np.float32), {}, backbone)
    assert result.prompt is fitted.prompt
    assert result.probe_logits is fitted.probe_logits
    assert result.initial is not None
    assert bank_sha256(result) == bank_sha256(fitted)


def test_another_backbone_is_refused(bundle: Bundle) -> None:
    other = replace(bundle, backbone_sha256="0" * 64)
    with pytest.raises(UserError, match="give its weights with `checkpoint`"):
        with_mix(other, np.array([0.5, 0.5], np.float32), {}, load_backbone("tiny"))


def test_a_update_is_one_of_the_bundles_entries(tmp_path: Path, bundle: Bundle) -> None:
    update = read_update(send(tmp_path / "one.json", bundle, [1.0]))
    assert isinstance(update, Update)
    good = [send(tmp_path / f"{n}.json", bundle, [0.5, 0.5], time=n) for n in range(2)]
    delivery = read_updates([*good, tmp_path / "one.json"], bundle)
    assert "weighs 1 entries of 2" in delivery.refused[0]
