"""Prompt training: the start, resuming, and that a prompt learns what the backbone cannot see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from toys import shorten_start

from hgprompt_edge.backbones.backbone import Backbone, wrap_backbone
from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.data import Images, Task, images_beyond, load_task
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts.bank import read_bank
from hgprompt_edge.training.augment import Augmentation, change_colours, crop, draw_crops
from hgprompt_edge.training.neutral_prompt import initial_tokens, neutral_tokens, noise_images
from hgprompt_edge.training.prompt_tuning import PromptTrainer, Recipe
from hgprompt_edge.training.source_prompt import draw_from, paired_standard_error, train_source


@pytest.fixture(scope="module")
def bundled() -> Backbone:
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0
    )
    model.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": (3, 32, 32)}
    return wrap_backbone("tiny", model)


def make_trainer(backbone: Backbone, state: Path | None, **changes: object) -> PromptTrainer:
    recipe = Recipe(tokens=3, epochs=4, batch_size=20, validate_every=1)
    task = load_task("generated-orientation", backbone.preprocessing, limit=100)
    part = (task.train.pixels, task.train.labels)
    return PromptTrainer(
        backbone,
        replace(recipe, **changes),
        8,
        lambda _: part,
        part,
        (task.validation.pixels, task.validation.labels),
        state,
        start=initial_tokens(backbone, 3, "deep", 0).numpy(),
    )


def test_the_start_is_deterministic_and_shared_by_seed(tiny: Backbone) -> None:
    first, again = (initial_tokens(tiny, 4, "deep", 7) for _ in range(2))
    assert first.shape == (2, 4, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, initial_tokens(tiny, 4, "deep", 8))
    assert initial_tokens(tiny, 4, "shallow", 7).shape == (1, 4, 24)


@pytest.mark.slow
def test_the_neutral_start_hardly_changes_features(bundled: Backbone) -> None:
    """Measured on images that the optimisation has not seen, against VPT's uniform start."""
    images = noise_images(64, 64, torch.Generator().manual_seed(99))
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    plain = extract_features(bundled, pixels, None)
    uniform = torch.rand((8, 4, 192), generator=torch.Generator().manual_seed(0))
    uniform = (uniform * 2 - 1) * (6 / (3 * 8**2 + 192)) ** 0.5

    def change(prompt: torch.Tensor) -> float:
        difference = extract_features(bundled, pixels, prompt) - plain
        return float((difference / plain.std(0)).square().mean())

    neutral = neutral_tokens(bundled, 4, "deep", 0)
    assert change(neutral) < 0.5 * change(uniform)
    assert torch.equal(neutral, neutral_tokens(bundled, 4, "deep", 0))


def test_the_bundled_banks_start_hardly_changes_features(bundled: Backbone) -> None:
    bank = read_bank("tiny")
    assert bank.start is not None
    images = noise_images(64, 64, torch.Generator().manual_seed(99))
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    plain = extract_features(bundled, pixels, None)
    changes = [
        float(((extract_features(bundled, pixels, tokens) - plain) / plain.std(0)).square().mean())
        for tokens in bank.basis_tokens
    ]
    assert changes[-1] < 0.5 * min(changes[:-1])


class KilledError(Exception):
    """Stands for a kill between two epochs."""


def test_a_resumed_training_equals_an_uninterrupted_one(tiny: Backbone, tmp_path: Path) -> None:
    whole = make_trainer(tiny, None).run()

    def kill(epoch: int, _: int) -> None:
        if epoch == 2:
            raise KilledError

    state = tmp_path / "state"
    with pytest.raises(KilledError):
        make_trainer(tiny, state).run(kill)
    seen: list[int] = []
    resumed = make_trainer(tiny, state).run(lambda epoch, _: seen.append(epoch))
    assert seen == [3, 4]
    np.testing.assert_array_equal(resumed.tokens, whole.tokens)
    assert resumed.epoch == whole.epoch


def test_a_training_on_other_images_starts_over(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    task, everything = (load_task("digits", tiny.preprocessing, limit=n) for n in (60, 120))
    more = images_beyond(task, everything)
    resumed: list[str] = []

    def train(name: str, task: Task, more: Images | None) -> None:
        recipe = Recipe(tokens=2, epochs=1, batch_size=40)
        state = tmp_path / "state"
        train_source(
            tiny, task, recipe, more=more, state=state, resumed=lambda: resumed.append(name)
        )

    train("first", task, None)
    train("the same again", task, None)
    train("more of them", task, more)
    train("others beyond", task, more.subset(range(30)))
    train("others", everything, more.subset(range(30)))
    assert resumed == ["the same again"]


@pytest.mark.parametrize("content", [b"", b"not a state file", b"PK\x03\x04 truncated"])
def test_a_damaged_or_foreign_state_starts_over(
    tiny: Backbone, tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "state"
    state.write_bytes(content)
    trainer = make_trainer(tiny, state, epochs=1)
    assert len(trainer.run().history) == 2
    other = make_trainer(tiny, state, epochs=2)  # the state of another recipe
    assert len(other.run().history) == 3


def test_recomputed_activations_give_the_same_prompt(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make_trainer(tiny, None, epochs=1).run()
    monkeypatch.setattr("hgprompt_edge.backbones.linearize.MEMORY_SHARE", 0)
    recomputed = make_trainer(tiny.with_compute(Compute(micro_batch=7)), None, epochs=1).run()
    np.testing.assert_allclose(recomputed.tokens, kept.tokens, atol=2e-3)


@pytest.mark.parametrize("batch_size", [40, 200])
def test_images_whose_class_is_nowhere_else_in_the_batch_do_not_count(
    tiny: Backbone, batch_size: int
) -> None:
    """Noise can be told apart no better than by chance, and a calibrated loss says so."""
    rng, classes = np.random.default_rng(0), 40
    pixels = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    part = pixels, rng.permutation(np.arange(200) % classes)
    start = rng.normal(size=(2, 3, 24)).astype(np.float32)
    recipe = Recipe(epochs=1, batch_size=batch_size, keep_last=True)
    trained = PromptTrainer(tiny, recipe, classes, lambda _: part, part, part, start=start).run()
    assert trained.history[-1]["loss"] < np.log(classes) + 0.1


def test_augmentation_keeps_shape_range_and_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 16).expand(40, 3, 16, 16)
    crops = crop(ramp, draw_crops(40, 0.5, False, generator))
    assert crops.shape == ramp.shape
    assert bool((crops[..., -1] >= crops[..., 0]).all())  # without flips left stays left
    mirrored = crop(ramp, draw_crops(40, 0.5, True, generator))
    share = float((mirrored[:, 0, 0, -1] < mirrored[:, 0, 0, 0]).float().mean())
    assert 0.2 < share < 0.8
    augment = Augmentation.draw(40, 0.5, True, 0.3, generator)
    jittered = change_colours(ramp, augment.colours)
    assert float(jittered.min()) >= 0
    assert float(jittered.max()) <= 1
    # What an image becomes does not depend on the part that it is in.
    together = augment(ramp)
    apart = [augment(ramp[rows], rows) for rows in (slice(0, 7), slice(7, 40))]
    torch.testing.assert_close(torch.cat(apart), together)


def test_many_images_come_in_passes_and_again_in_another_order() -> None:
    labels = np.arange(23)
    pixels = np.repeat(labels[:, None, None, None], 3, axis=-1).astype(np.uint8)
    draw = draw_from(pixels, labels, count=5, seed=1)
    epochs = [draw(epoch)[1] for epoch in range(8)]
    first, second = np.concatenate(epochs[:4]), np.concatenate(epochs[4:])
    assert len(set(first)) == len(set(second)) == 20
    assert list(first) != list(second)
    images, drawn = draw(3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], drawn)
    np.testing.assert_array_equal(drawn, epochs[3])


def test_all_images_train_the_prompt_and_none_of_the_test(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    task, everything = (load_task("digits", tiny.preprocessing, limit=n) for n in (100, None))
    more = images_beyond(task, everything)
    assert len(more) == 900
    assert not {*more.names} & {*task.train.names, *task.validation.names, *task.test.names}
    prompt, _ = train_source(tiny, task, Recipe(tokens=2, epochs=2, batch_size=40), more=more)
    assert prompt.recipe["images"] == 80 + 900


def test_without_validation_images_the_last_epoch_alone_can_be_kept(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    task = load_task("digits", tiny.preprocessing, limit=60)
    task = replace(task, validation=task.validation.subset([]))
    recipe = Recipe(tokens=2, epochs=1, batch_size=40)
    with pytest.raises(UserError, match=r"^digits: no validation images to choose by"):
        train_source(tiny, task, recipe)
    _, trained = train_source(tiny, task, replace(recipe, keep_last=True))
    assert trained.epoch == 1
    assert not np.array_equal(trained.tokens, trained.start)


def test_paired_standard_error() -> None:
    a, b = np.array([1, 1, 0, 1], dtype=bool), np.array([1, 0, 0, 1], dtype=bool)
    assert paired_standard_error(a, a) == 0
    assert paired_standard_error(a, b) == pytest.approx(0.25)
    assert paired_standard_error(a[:1], b[:1]) is None


@pytest.mark.slow
def test_a_short_training_beats_no_prompt_on_generated_images(bundled: Backbone) -> None:
    """Orientation of bars: the frozen features hardly hold it, a prompt brings it out."""
    task = load_task("generated-orientation", bundled.preprocessing)
    prompt, trained = train_source(bundled, task, Recipe(tokens=20, epochs=20, validate_every=5))
    assert prompt.test_accuracy is not None
    assert prompt.test_accuracy_unprompted is not None
    gain = prompt.test_accuracy - prompt.test_accuracy_unprompted
    assert gain > 2 * prompt.recipe["test_standard_error"]
    assert trained.tokens.shape == (8, 20, 192)
    assert prompt.family == "generated"
    assert not prompt.recipe["flips"]
