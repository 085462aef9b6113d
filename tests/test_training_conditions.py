"""Corruptions of images, and prompts that undo what they do to the features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import known_statistics
from small_vits import make_backbone, make_mixable
from toys import make_task, noise_tokens

from hgprompt_edge.artifacts.bank_entries import bank_sha256, initial_mix
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.forward import extract_features, model_input
from hgprompt_edge.cli.condition import why_left_out
from hgprompt_edge.data import Images
from hgprompt_edge.data.conditions import (
    CONDITIONS,
    SEVERITIES,
    SHIFTS,
    corrupt,
    training_corruption,
)
from hgprompt_edge.errors import UserError
from hgprompt_edge.maths.head import Head
from hgprompt_edge.training import condition_prompts as condition
from hgprompt_edge.training.condition_prompts import Worth, starting_tokens, tune_conditions
from hgprompt_edge.training.condition_trainer import ConditionRecipe, ConditionTrainer


def photographs(count: int = 6, side: int = 64) -> np.ndarray:
    """Smooth colours with edges: what blur, jpeg and a low resolution have something to do to."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 230, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


class TestCorruptions:
    @pytest.mark.parametrize("name", SHIFTS)
    def test_grow_with_severity_and_follow_the_seed(self, name: str) -> None:
        pixels = photographs()
        changed = [corrupt(pixels, name, severity, seed=3) for severity in SEVERITIES]
        distances = [np.abs(c.astype(int) - pixels).mean() for c in changed]
        assert 0 < distances[0] < distances[1] < distances[2]
        for c in changed:
            assert (c.shape, c.dtype) == (pixels.shape, np.uint8)
        np.testing.assert_array_equal(changed[1], corrupt(pixels, name, 2, seed=3))
        np.testing.assert_array_equal(changed[1][:2], corrupt(pixels[:2], name, 2, seed=3))

    @pytest.mark.parametrize("name", CONDITIONS)
    def test_training_draws_a_strength_for_each_image_and_never_the_studys(self, name: str) -> None:
        pixels = np.repeat(photographs(1), 8, axis=0)
        drawn = training_corruption(pixels, name, np.random.default_rng(0))
        assert (drawn.shape, drawn.dtype) == (pixels.shape, np.uint8)
        assert len(np.unique(drawn.reshape(8, -1), axis=0)) > 1
        again = training_corruption(pixels, name, np.random.default_rng(0))
        np.testing.assert_array_equal(drawn, again)
        for severity in SEVERITIES:
            assert not (drawn == corrupt(pixels, name, severity)).all(axis=(1, 2, 3)).any()

    @pytest.mark.parametrize("name", SHIFTS)
    @pytest.mark.parametrize("turned", [False, True])
    def test_leave_the_border_of_a_letterbox_and_do_not_let_it_in(
        self, name: str, turned: bool
    ) -> None:
        fill, picture = (124, 116, 104), photographs(3)[:, 16:41]  # 25 rows: 19 above, 20 below
        boxed = np.full((3, 64, 64, 3), fill, np.uint8)
        boxed[:, 19:44] = picture
        mirrored = np.pad(picture, ((0, 0), (19, 20), (0, 0), (0, 0)), mode="symmetric")
        if turned:
            boxed, mirrored = boxed.swapaxes(1, 2), mirrored.swapaxes(1, 2)
        found = corrupt(boxed, name, 2, fill=fill)
        expected = corrupt(mirrored, name, 2)  # as a square camera would have seen it
        if turned:
            found, expected = found.swapaxes(1, 2), expected.swapaxes(1, 2)
        np.testing.assert_array_equal(found[:, 19:44], expected[:, 19:44])
        assert (found[:, 19:44] != picture).any()
        assert (found[:, :19] == fill).all()
        assert (found[:, 44:] == fill).all()
        if name in CONDITIONS:
            drawn = training_corruption(boxed, name, np.random.default_rng(0), fill)
            drawn = drawn.swapaxes(1, 2) if turned else drawn
            assert (drawn[:, 19:44] != picture).any()
            assert (drawn[:, :19] == fill).all()
            assert (drawn[:, 44:] == fill).all()

    def test_unknown_ones(self) -> None:
        with pytest.raises(ValueError, match="must be one of"):
            corrupt(photographs(), "sandstorm", 1)
        with pytest.raises(ValueError, match="must be 1, 2 or 3"):
            corrupt(photographs(), "dark", 4)
        with pytest.raises(ValueError, match="must be one of"):
            training_corruption(photographs(), "fog", np.random.default_rng(0))


class TestTuning:
    def setup_method(self) -> None:
        self.backbone = make_backbone()
        self.task = make_task(self.backbone, noise_tokens(1)[0])
        plain = replace(make_mixable(self.backbone), conditions=(), condition_tokens=None)
        rng = np.random.default_rng(0)
        self.bundle = replace(
            plain,
            split_digest=self.task.digest,
            classes=self.task.classes,
            head=Head(rng.normal(size=(3, 32)).astype(np.float32), np.zeros(3, np.float32)),
            initial=np.array([0.5, 0.5], np.float32),
        )

    def tuned(self, bundle: Bundle, names: list[str]) -> tuple[Bundle, tuple[Worth, ...]]:
        """One epoch; on a random ViT no image says whether it helps."""
        recipe = ConditionRecipe(epochs=1, learning_rate=1e-5)
        return tune_conditions(
            bundle, self.backbone, self.task, names, recipe, accept_unproven=True
        )

    def test_a_prompt_that_is_not_proven_to_help_is_kept_on_request_only(self) -> None:
        recipe = ConditionRecipe(epochs=1, learning_rate=1e-5)
        bundle, worths = tune_conditions(self.bundle, self.backbone, self.task, ["dark"], recipe)
        (worth,) = worths
        assert (worth.helps, worth.kept) == (None, False)
        assert bundle.conditions == ()
        assert bundle.condition_tokens is None
        assert bundle.clean is not None
        (sentence,) = why_left_out(worths)
        assert sentence.startswith("dark: 45 validation images are too few to say")
        assert "--accept-unproven" in sentence
        found, test = worth.validation, worth.test
        assert test is not None
        assert (found.images, test.images) == (45, 60)
        assert found.low <= 100 * (found.prompted - found.corrupted) <= found.high

    def test_of_letterboxed_images_the_border_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rule = self.bundle.preprocessing.with_rule("letterbox")
        fill = rule.fill or (0, 0, 0)
        splits = [self.task.train, self.task.validation, self.task.test]
        for images in splits:
            images.pixels[:, :4] = images.pixels[:, -4:] = fill
        seen: list[np.ndarray] = []

        def spy(model: Any, pixels: np.ndarray, preprocessing: Any) -> torch.Tensor:
            seen.append(pixels)
            return model_input(model, pixels, preprocessing)

        for module in ("training.condition_trainer", "backbones.forward"):
            monkeypatch.setattr(f"hgprompt_edge.{module}.model_input", spy)
        self.tuned(replace(self.bundle, preprocessing=rule), ["noise"])
        shown = np.concatenate(seen)
        assert len(shown) > 500
        assert (shown[:, :4] == fill).all()
        assert (shown[:, -4:] == fill).all()

    @pytest.mark.parametrize(("gain", "helps"), [(1, True), (-1, False)])
    def test_what_validation_images_say_decides(
        self, monkeypatch: pytest.MonkeyPatch, gain: int, helps: bool
    ) -> None:
        """Half of the images are right under the bundle's prompt, all or none under the other."""
        own = self.bundle.prompt

        def right(judge: object, images: Images, pixels: object, tokens: object, _: object) -> Any:
            half = np.arange(len(images)) % 2
            return half if tokens is own else np.full(len(images), gain > 0)

        monkeypatch.setattr(condition._Judge, "_right", lambda *given: right(*given).astype(float))
        for accept in (False, True):
            bundle, (worth,) = tune_conditions(
                self.bundle,
                self.backbone,
                self.task,
                ["dark"],
                ConditionRecipe(epochs=1),
                accept_unproven=accept,
            )
            assert (worth.helps, worth.kept) == (helps, helps)
            assert len(bundle.conditions) == int(helps), "no request keeps what is known to do harm"
        if not helps:
            assert why_left_out([worth]) == ["dark: images are recognised worse with its prompt"]
            return
        low, high = (float(bundle.conditions[0][name]) for name in ("low", "high"))
        assert 0 < low < 50 < high

    def test_features_come_back_and_the_bundle_holds_the_prompt(self, tmp_path: Path) -> None:
        recipe = ConditionRecipe(epochs=10, batch_size=16, learning_rate=3e-2)
        prepared, worths = tune_conditions(
            self.bundle, self.backbone, self.task, ["dark", "blur"], recipe, accept_unproven=True
        )
        assert [worth.name for worth in worths] == ["dark", "blur"]
        assert all(worth.kept for worth in worths)
        assert prepared.condition_tokens is not None
        clean = extract_features(self.backbone, self.task.train.pixels, self.bundle.prompt)
        dark = training_corruption(self.task.train.pixels, "dark", np.random.default_rng(9))

        def distance(prompt: np.ndarray | None) -> float:
            found = extract_features(self.backbone, dark, prompt)
            return float((found - clean).norm(dim=1).mean())

        trained = prepared.condition_tokens[0].astype(np.float32)
        assert distance(trained) < 0.9 * distance(self.bundle.prompt)
        np.testing.assert_allclose(prepared.clean.mean, clean.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(initial_mix(prepared), [0.5, 0.5, 0, 0])
        assert bank_sha256(prepared) != bank_sha256(self.bundle)
        path = tmp_path / "b.hgbundle"
        write_bundle(path, prepared)
        again = read_bundle(path)
        np.testing.assert_array_equal(again.condition_tokens, prepared.condition_tokens)
        assert again.conditions == prepared.conditions
        np.testing.assert_array_equal(again.clean.variance, prepared.clean.variance)

    def test_without_a_prompt_it_begins_at_what_the_sources_started_from(self) -> None:
        bare = replace(self.bundle, choice="none", prompt=None, initial=None)
        assert bare.source_tokens is not None
        about = bare.sources
        started = replace(bare, sources=(*about[:-1], {**about[-1], "role": "start"}))
        found = starting_tokens(started, self.backbone)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, bare.source_tokens[-1])
        folded = starting_tokens(self.bundle, self.backbone)
        np.testing.assert_array_equal(folded, self.bundle.prompt)

    def test_what_devices_were_merged_to_stays_with_its_names(self) -> None:
        first, _ = self.tuned(self.bundle, ["dark", "blur"])
        merged = replace(first, initial=np.array([0.1, 0.2, 0.3, 0.4], np.float32))
        second, _ = self.tuned(merged, ["noise", "dark"])
        assert [c["name"] for c in second.conditions] == ["blur", "noise", "dark"]
        wanted = np.array([0.1, 0.2, 0.4, 0.0, 0.3], np.float32)
        np.testing.assert_array_equal(initial_mix(second), wanted)

    def test_another_condition_joins_and_the_same_one_is_replaced(self) -> None:
        first, _ = self.tuned(self.bundle, ["dark"])
        second, _ = self.tuned(first, ["blur"])
        third, _ = self.tuned(second, ["dark"])
        assert [c["name"] for c in second.conditions] == ["dark", "blur"]
        assert [c["name"] for c in third.conditions] == ["blur", "dark"]
        assert third.condition_tokens is not None
        assert second.condition_tokens is not None
        np.testing.assert_array_equal(third.condition_tokens[0], second.condition_tokens[1])

    def test_interrupted_it_ends_where_it_would_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = ConditionRecipe(epochs=3, batch_size=50, validate_every=1)
        arguments = (self.bundle, self.backbone, self.task, ["dark", "noise"], recipe)
        whole, worths = tune_conditions(*arguments, accept_unproven=True)
        epochs = 0
        train = ConditionTrainer._train_epoch

        def counted(trainer: ConditionTrainer) -> float:
            nonlocal epochs
            epochs += 1
            if epochs == 5:
                raise KeyboardInterrupt
            return train(trainer)

        monkeypatch.setattr(ConditionTrainer, "_train_epoch", counted)
        state = tmp_path / "state"
        with pytest.raises(KeyboardInterrupt):
            tune_conditions(*arguments, accept_unproven=True, state=state)
        (state / "dark").with_suffix(".tmp").write_bytes(b"left behind")
        resumed, again = tune_conditions(*arguments, accept_unproven=True, state=state)
        assert epochs == 5 + 2, "dark is done, of noise one epoch is"
        np.testing.assert_array_equal(resumed.condition_tokens, whole.condition_tokens)
        assert again == worths

        (state / "dark").write_bytes(b"no state")
        torch.save({"of": "something else"}, state / "noise")
        afresh, _ = tune_conditions(*arguments, accept_unproven=True, state=state)
        assert epochs == 7 + 6
        np.testing.assert_array_equal(afresh.condition_tokens, whole.condition_tokens)

    @pytest.mark.parametrize(
        ("about", "tokens", "message"),
        [
            (({"name": "dark"},), None, "not as many"),
            (({"name": "dark"}, {"name": "blur"}), (1, 2, 5, 32), "not as many"),
            (({"title": "dark"},), (1, 2, 5, 32), "no name"),
            (({"name": "dark"},), (1, 2, 4, 32), "are float16"),
            (({"name": "dark"},), (1, 3, 5, 32), "are float16"),
        ],
    )
    def test_a_bundle_whose_conditions_do_not_fit_is_refused(
        self, about: object, tokens: tuple[int, ...] | None, message: str, tmp_path: Path
    ) -> None:
        zeros = None if tokens is None else np.zeros(tokens, np.float16)
        write_bundle(
            tmp_path / "b.hgbundle",
            replace(self.bundle, conditions=about, condition_tokens=zeros),  # type: ignore[arg-type]
        )
        with pytest.raises(UserError, match=message):
            read_bundle(tmp_path / "b.hgbundle")

    def test_statistics_of_another_width_are_refused(self, tmp_path: Path) -> None:
        flat = np.zeros(7, np.float32)
        write_bundle(
            tmp_path / "b.hgbundle", replace(self.bundle, clean=known_statistics(flat, flat, 3))
        )
        with pytest.raises(UserError, match=r"'clean\.mean' is"):
            read_bundle(tmp_path / "b.hgbundle")

    @pytest.mark.parametrize(
        ("change", "names", "message"),
        [
            ({}, ["sandstorm"], "unknown condition 'sandstorm'; choose from dark"),
            ({}, [], "names no condition"),
            ({"backbone_sha256": "0" * 64}, ["dark"], "fitted on the weights 000000000000"),
            ({"mode": "shallow"}, ["dark"], "holds shallow prompts"),
            ({"split_digest": "other"}, ["dark"], "it was fitted on other images"),
            ({"source_tokens": None, "initial": None}, ["dark"], "does not hold its sources"),
        ],
    )
    def test_bad_input(self, change: dict[str, object], names: list[str], message: str) -> None:
        bundle = replace(self.bundle, **change)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            tune_conditions(bundle, self.backbone, self.task, names)
