"""Prompts and banks: what is read back, what is refused, how tokens are matched and mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.errors import UserError
from hgprompt_edge.files import read_safetensors, write_safetensors
from hgprompt_edge.maths.head import Head
from hgprompt_edge.prompts.bank import (
    PromptBank,
    check_joins,
    match_prompts,
    read_bank,
    write_start,
)
from hgprompt_edge.prompts.matching import match_tokens
from hgprompt_edge.prompts.mixing import (
    MixingWeights,
    effective_sources,
    mix,
    on_basis,
    source_shares,
)
from hgprompt_edge.prompts.prompt import Normalization, Prompt, read_prompt, write_prompt


def make_prompt(name: str = "pets", shape: tuple[int, int, int] = (3, 4, 8), **changes: object):
    tokens = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    prompt = Prompt(
        tokens=tokens,
        name=name,
        backbone="tiny",
        backbone_sha256="ab" * 32,
        image_size=64,
        mode="deep" if shape[0] > 1 else "shallow",
        task=name,
        family="pets",
        classes=("cat", "dog"),
        test_accuracy=0.5,
        test_accuracy_unprompted=0.4,
        recipe={"epochs": 3},
        head=Head(np.ones((2, shape[2]), np.float32), np.zeros(2, np.float32)),
    )
    return replace(prompt, **changes)


def write_bank(folder: Path, *prompts: Prompt) -> Path:
    for prompt in prompts:
        write_prompt(folder / f"{prompt.name}.safetensors", prompt)
    return folder


def test_a_prompt_survives_the_round_trip(tmp_path: Path) -> None:
    prompt = make_prompt()
    write_prompt(tmp_path / "pets.safetensors", prompt)
    found = read_prompt(tmp_path / "pets.safetensors")
    np.testing.assert_array_equal(found.tokens, prompt.tokens)
    assert found.head is not None
    assert prompt.head is not None
    np.testing.assert_array_equal(found.head.weight, prompt.head.weight)
    for field in ("name", "backbone", "classes", "test_accuracy", "recipe", "family", "init_seed"):
        assert getattr(found, field) == getattr(prompt, field)
    assert len(found.sha256) == 64


def test_what_an_imported_prompt_has_and_lacks_survives_the_round_trip(tmp_path: Path) -> None:
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prompt = make_prompt(init_seed=None, normalization=normalization)
    write_prompt(tmp_path / "pets.safetensors", prompt)
    found = read_prompt(tmp_path / "pets.safetensors")
    assert (found.init_seed, found.normalization) == (None, normalization)
    write_prompt(tmp_path / "pets.safetensors", make_prompt())
    assert read_prompt(tmp_path / "pets.safetensors").normalization is None


BAD_TENSORS = {
    "NaN": (np.full((3, 4, 8), np.nan, np.float32), "NaN or inf"),
    "inf": (np.full((3, 4, 8), np.inf, np.float32), "NaN or inf"),
    "flat": (np.ones((4, 8), np.float32), r"must have the shape \[layers, tokens, width\], not"),
    "no tokens": (
        np.ones((3, 0, 8), np.float32),
        r"must have the shape \[layers, tokens, width\], not",
    ),
    "double": (np.ones((3, 4, 8), np.float64), "must be float32"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path: Path, name: str) -> None:
    tensor, message = BAD_TENSORS[name]
    path = tmp_path / "bad.safetensors"
    write_safetensors(path, {"prompt": tensor}, {"format": "hgprompt.prompt/1"})
    with pytest.raises(UserError, match=message):
        read_prompt(path)


BAD_METADATA = {
    "another file": ({}, "not a prompt file"),
    "newer": ({"format": "hgprompt.prompt/2"}, "newer than this hgedge reads"),
    "nothing else": ({"format": "hgprompt.prompt/1"}, "metadata is missing or malformed"),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_bad_metadata_is_refused(tmp_path: Path, name: str) -> None:
    metadata, message = BAD_METADATA[name]
    path = tmp_path / "bad.safetensors"
    write_safetensors(path, {"prompt": np.ones((3, 4, 8), np.float32)}, metadata)
    with pytest.raises(UserError, match=message):
        read_prompt(path)


BAD_NORMALIZATIONS = {
    "no std": '{"mean": [0.5, 0.5, 0.5]}',
    "two channels": '{"mean": [0.5, 0.5], "std": [0.5, 0.5]}',
    "zero": '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0, 0.5]}',
    "NaN": '{"mean": [NaN, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}',
    "a number": "0.5",
}


@pytest.mark.parametrize("name", BAD_NORMALIZATIONS)
def test_a_bad_normalization_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pets.safetensors"
    write_prompt(path, make_prompt())
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, tensors, {**metadata, "normalization": BAD_NORMALIZATIONS[name]})
    with pytest.raises(UserError, match="metadata is missing or malformed"):
        read_prompt(path)


MISFITS = {
    "backbone": ({"backbone_sha256": "cd" * 32}, "it is for the weights cdcdcdcdcdcd of tiny, not"),
    "image size": ({"image_size": 224}, "it is for images of 224 px"),
    "depth": ({"shape": (5, 4, 8)}, "it has 5 layers, not 3"),
    "tokens": ({"shape": (3, 6, 8)}, "it has 6 tokens, not 4"),
    "width": ({"shape": (3, 4, 16)}, "it has a width of 16, not 8"),
    "normalization": (
        {"normalization": Normalization((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))},
        "by mean 0.1 0.2 0.3, std 1 1 1, not by the backbone's own",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_prompts_of_a_bank_must_fit_each_other(tmp_path: Path, name: str) -> None:
    changes, message = MISFITS[name]
    bank = write_bank(tmp_path, make_prompt("a"), make_prompt("b", **changes))
    with pytest.raises(UserError, match=message):
        read_bank(bank)


def test_a_bank_holds_what_its_prompts_started_from(tmp_path: Path) -> None:
    start = np.full((3, 4, 8), 0.5, np.float32)
    bank = write_bank(tmp_path, make_prompt("zoo"), make_prompt("ants", family="insects"))
    assert read_bank(bank).start is None
    write_start(bank, make_prompt("zoo"), start)
    write_start(bank, make_prompt("zoo"), 2 * start)  # the first one stays
    found = read_bank(bank)
    assert found.names == ("ants", "zoo")
    assert [prompt.name for prompt in found.basis] == ["ants", "zoo", "untrained"]
    np.testing.assert_array_equal(found.basis_tokens[2], start)
    np.testing.assert_array_equal(found.basis_tokens[:2], found.tokens)
    assert found.without_family("pets").basis == (found.prompts[0], found.basis[2])


def test_prompts_trained_anew_in_another_shape_bring_their_own_start(tmp_path: Path) -> None:
    write_start(tmp_path, make_prompt("a"), np.zeros((3, 4, 8), np.float32))
    bank = write_bank(tmp_path, make_prompt("a", (3, 5, 8)))
    with pytest.raises(UserError, match="tokens"):
        read_bank(bank)
    write_start(bank, make_prompt("a", (3, 5, 8)), np.ones((3, 5, 8), np.float32))
    np.testing.assert_array_equal(read_bank(bank).basis_tokens[1], np.ones((3, 5, 8)))


def test_a_start_stays_while_a_source_of_its_bank_is_left(tmp_path: Path) -> None:
    """However one prompt is trained anew; the last one's new start takes its place."""
    bank = write_bank(tmp_path, make_prompt("a"), make_prompt("b"))
    write_start(bank, make_prompt("a"), np.zeros((3, 4, 8), np.float32))
    new = np.ones((3, 4, 8), np.float32)
    for name in ("a", "b"):
        write_start(bank, make_prompt(name, (3, 2, 8)), new[:, :2])
        assert read_bank(bank).start is not None
        assert not read_bank(bank).start.tokens.any()
    write_prompt(bank / "a.safetensors", make_prompt("a", init_seed=1))
    write_start(bank, make_prompt("a", init_seed=1), new)
    assert (read_bank(bank).start, read_bank(bank).ignored) == (None, ("untrained",))
    write_prompt(bank / "b.safetensors", make_prompt("b", init_seed=1))
    write_start(bank, make_prompt("b", init_seed=1), new)
    np.testing.assert_array_equal(read_bank(bank).basis_tokens[2], new)
    assert read_bank(bank).ignored == ()


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_a_bank_is_told_before_it_is_made(tmp_path: Path, name: str) -> None:
    changes, message = MISFITS[name]
    bank = write_bank(tmp_path, make_prompt("a"))
    with pytest.raises(
        UserError,
        match=rf"b.safetensors does not fit a.safetensors: .*{message}.*name another folder with",
    ):
        check_joins(bank, make_prompt("b", **changes))
    check_joins(bank, make_prompt("a", **changes))  # trained anew, it takes the other's place
    check_joins(bank, make_prompt("b", init_seed=3))
    check_joins(tmp_path / "not made yet", make_prompt("b", **changes))


def test_no_source_takes_the_place_of_the_start(tmp_path: Path) -> None:
    bank = write_bank(tmp_path, make_prompt("a"))
    write_start(bank, make_prompt("a"), np.zeros((3, 4, 8), np.float32))
    with pytest.raises(
        UserError, match=r"untrained.safetensors: is the start of the prompts there"
    ):
        check_joins(bank, make_prompt("untrained"))


def test_a_source_that_is_called_like_the_start_stays(tmp_path: Path) -> None:
    bank = write_bank(tmp_path, make_prompt("untrained"))
    write_start(bank, make_prompt("untrained"), np.zeros((3, 4, 8), np.float32))
    assert read_bank(bank).names == ("untrained",)
    assert read_bank(bank).start is None


def test_the_start_of_another_seed_is_no_start(tmp_path: Path) -> None:
    bank = write_bank(tmp_path, make_prompt("a"))
    write_start(bank, make_prompt("a", init_seed=7), np.zeros((3, 4, 8), np.float32))
    assert read_bank(bank).start is None
    assert read_bank(bank).names == ("a",)
    assert read_bank(bank).ignored == ("untrained",)


def test_a_start_alone_is_no_bank(tmp_path: Path) -> None:
    write_start(tmp_path, make_prompt(), np.zeros((3, 4, 8), np.float32))
    with pytest.raises(UserError, match=r"holds untrained.safetensors only.*hgedge prompt train"):
        read_bank(tmp_path)


def test_an_empty_or_missing_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the bank is empty"):
        read_bank(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_bank(tmp_path / "nowhere")


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_shuffled_copy_is_matched_back_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(3, 6, 16)).astype(np.float32)
    shuffled = np.stack([layer[rng.permutation(6)] for layer in tokens])
    np.testing.assert_array_equal(match_tokens(tokens, shuffled), tokens)


def test_only_prompts_of_another_seed_are_matched(tmp_path: Path) -> None:
    first = make_prompt("a")
    shuffled = replace(first, name="b", tokens=first.tokens[:, ::-1].copy(), init_seed=1)
    same_seed = replace(first, name="c", tokens=first.tokens[:, ::-1].copy())
    bank = match_prompts(PromptBank((first, shuffled, same_seed)))
    assert bank.matched == ("b",)
    np.testing.assert_array_equal(bank.prompts[1].tokens, first.tokens)
    np.testing.assert_array_equal(bank.prompts[2].tokens, same_seed.tokens)


def test_prompts_of_unknown_seed_are_always_matched() -> None:
    first = make_prompt("a", init_seed=None)
    shuffled = replace(first, name="b", tokens=first.tokens[:, ::-1].copy())
    bank = match_prompts(PromptBank((first, shuffled)))
    assert bank.matched == ("b",)
    np.testing.assert_array_equal(bank.prompts[1].tokens, first.tokens)


def test_a_mix_is_the_weighted_sum() -> None:
    tokens = np.random.default_rng(0).normal(size=(3, 2, 4, 8)).astype(np.float32)
    weights = np.array([0.2, 0.5, 0.3])
    expected = sum(w * t.astype(np.float64) for w, t in zip(weights, tokens, strict=True))
    np.testing.assert_allclose(mix(tokens, weights), expected, rtol=1e-6)
    np.testing.assert_array_equal(mix(tokens, [0, 1, 0]), tokens[1])


def test_each_layer_may_have_weights_of_its_own() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 2, 4, 8)).astype(np.float32)
    weights = rng.dirichlet(np.ones(3), 2).T
    expected = np.stack([mix(tokens[:, [layer]], weights[:, layer])[0] for layer in range(2)])
    np.testing.assert_allclose(mix(tokens, weights), expected, rtol=1e-6)
    same = np.repeat(weights[:, :1], 2, axis=1)
    np.testing.assert_allclose(mix(tokens, same), mix(tokens, weights[:, 0]), rtol=1e-6)


def test_weights_of_sources_are_weights_of_a_basis_with_more_prompts() -> None:
    np.testing.assert_array_equal(on_basis([0.25, 0.75], 3), [0.25, 0.75, 0])
    layers = np.array([[0.1, 0.9], [0.9, 0.1]])
    np.testing.assert_array_equal(on_basis(layers, 3), [*layers, [0, 0]])
    np.testing.assert_array_equal(on_basis(layers, 2), layers)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_mixing_weights_are_shares_of_the_mix(count: int, layers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (count, layers) if layers else (count,)
    values = rng.dirichlet(np.ones(count), layers).T if layers else rng.dirichlet(np.ones(count))
    learned = MixingWeights(tuple(f"p{i}" for i in range(count)), values)
    assert learned.values.shape == shape
    assert learned.by_layer == bool(layers)
    assert learned.shares.sum() == pytest.approx(1)
    assert learned.named_shares == dict(zip(learned.names, learned.shares.tolist(), strict=True))
    # The mix of prompts that are one constant each is the share of each, averaged over the layers.
    tokens = np.ones((count, layers or 1, 2, 3), np.float32) * np.arange(count)[:, None, None, None]
    expected = float(learned.shares @ np.arange(count))
    assert learned.mix(tokens.astype(np.float32)).mean() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(2,), (4,), (), (3, 2, 2)])
def test_mixing_weights_are_as_many_as_their_names(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"The 'values' must be \[3\] or \[3, L\]"):
        MixingWeights(("a", "b", "c"), np.zeros(shape))


def test_effective_sources() -> None:
    assert effective_sources([1, 0, 0, 0]) == pytest.approx(1)
    assert effective_sources([0.25] * 4) == pytest.approx(4)
    assert effective_sources([0.25] * 2) == pytest.approx(2), "the rest is no source's"
    layers = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(source_shares(layers), [0.5, 0.5, 0])
    assert effective_sources(layers) == pytest.approx(2), "each layer has one, the prompt two"


def test_sources_of_the_targets_family_are_left_out() -> None:
    bank = PromptBank((make_prompt("a"), make_prompt("b", family="signs")))
    assert bank.without_family("pets").names == ("b",)
    assert bank.without_family("").names == ("a", "b")
