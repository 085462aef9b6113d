"""Image sizes against prompts: what is measured where, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vits import make_backbone
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from toys import make_bank, make_task, noise_tokens

from hgprompt_edge.backbones.backbone import Backbone, wrap_backbone
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.backbones.image_count import watch_images
from hgprompt_edge.compare.contest import Budget
from hgprompt_edge.compare.estimate import sizes_passes
from hgprompt_edge.compare.image_sizes import Point, measure_sizes
from hgprompt_edge.compare.image_sizes_figure import draw_image_sizes
from hgprompt_edge.compare.run import compare
from hgprompt_edge.data import Images, Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.prompts.bank import PromptBank

HOME, LARGE = 24, 40
BUDGET = Budget(steps=2)


def at_size(backbone: Backbone, size: int) -> Backbone:
    """The same weights for images of another size, as a loader makes them."""
    weights = dict(backbone.model.state_dict())
    cells = size // backbone.patch_size
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], new_size=[cells, cells])
    model = VisionTransformer(
        num_classes=0, img_size=size, patch_size=8, embed_dim=32, depth=2, num_heads=2,
        act_layer="gelu_tanh",
    )  # fmt: skip
    model.load_state_dict(weights)
    return wrap_backbone(backbone.name, model, sha256=backbone.sha256)


def scaled(images: Images, size: int) -> Images:
    pixels = [np.asarray(Image.fromarray(one).resize((size, size))) for one in images.pixels]
    return replace(images, pixels=np.stack(pixels))


def loader(task: Task, change: Callable[[Task], Task] = lambda task: task):
    """Read a task at the size that is asked for; `change` what is read at the large one."""

    def load(rule: Preprocessing) -> Task:
        size = rule.image_size
        parts = {key: scaled(getattr(task, key), size) for key in ("train", "validation", "test")}
        found = replace(task, **parts)
        return change(found) if size == LARGE else found

    return load


@pytest.fixture(scope="module")
def backbones() -> dict[int, Backbone]:
    home = make_backbone()
    return {LARGE: at_size(home, LARGE), HOME: home}


@pytest.fixture(scope="module")
def bank(backbones: dict[int, Backbone]) -> PromptBank:
    return make_bank(backbones[HOME], noise_tokens(4))


@pytest.fixture(scope="module")
def task(backbones: dict[int, Backbone], bank: PromptBank) -> Task:
    """Its labels are visible under the third source only."""
    return make_task(backbones[HOME], bank.tokens[2])


@pytest.fixture(scope="module")
def small(backbones: dict[int, Backbone]) -> Task:
    return make_task(backbones[HOME], sizes=(30, 12, 12))


@pytest.fixture(scope="module")
def points(
    backbones: dict[int, Backbone], bank: PromptBank, task: Task
) -> dict[tuple[int, int], Point]:
    found = measure_sizes(bank, backbones, loader(task), budget=BUDGET, cache=False)
    assert [(p.image_size, p.folded) for p in found] == [
        (size, folded) for size in (HOME, LARGE) for folded in range(4)
    ]
    return {(p.image_size, p.folded): p for p in found}


@pytest.fixture(scope="module")
def compared(backbones: dict[int, Backbone], bank: PromptBank, task: Task):
    methods = ("none", "hgprompt_guarded", "two_folded", "three_folded")
    return compare(bank, backbones[HOME], task, methods=methods, budget=BUDGET, cache=False)


def test_at_the_banks_size_points_are_rows_of_compare(points, compared) -> None:
    _, results = compared
    for folded, result in enumerate(results):
        point = points[HOME, folded]
        np.testing.assert_array_equal(point.correct, result.correct)
        assert (point.low, point.accuracy, point.high) == (
            result.low,
            result.accuracy,
            result.high,
        )
        assert point.val_accuracy == result.val_accuracy
        assert point.passes == result.inference_passes


def test_the_estimate_is_what_passes(
    backbones: dict[int, Backbone], bank: PromptBank, task: Task
) -> None:
    home, both = [], []
    for sizes, passed in (({HOME}, home), ({HOME, LARGE}, both)):
        of_sizes = {size: backbones[size] for size in sizes}
        with watch_images(passed.append):
            measure_sizes(bank, of_sizes, loader(task), budget=BUDGET, cache=False)
    found = {
        size: sizes_passes(task, bank, backbones[HOME], {HOME, size}, BUDGET)
        for size in (HOME, LARGE)
    }
    # What passes back is one pass here and two in the estimate.
    at_home = found[HOME].chosen + found[HOME].exact - 2 * BUDGET.steps * len(task.train)
    assert sum(home) == pytest.approx(at_home, rel=0.4)
    assert found[LARGE].chosen == found[HOME].chosen
    at_large = (found[LARGE].exact - found[HOME].exact) / (LARGE / HOME) ** 2
    assert sum(both) - sum(home) == pytest.approx(at_large, rel=0.5)


def test_at_another_size_the_same_prompts_get_heads_of_their_own(
    points, compared, backbones: dict[int, Backbone], task: Task
) -> None:
    """By the definition: token form, head fitted on training and validation images."""
    contest, _ = compared
    large = loader(task)(backbones[LARGE].preprocessing)
    fitted = [large.train, large.validation]
    labels = np.concatenate([images.labels for images in fitted])
    plans = [contest.done[name].plan.candidate for name in ("none", "hgprompt_guarded")]
    plans.append(contest.done["three_folded"].plan.candidate)
    for folded, plan in zip((0, 1, 3), plans, strict=True):
        point = points[LARGE, folded]
        backbone = backbones[LARGE].with_pooling(point.pooling)
        mean = torch.zeros(len(large.test), len(task.classes), dtype=torch.float64)
        for part in plan.parts:
            tokens = None if part.tokens is None else torch.from_numpy(part.tokens)

            def features(images: Images, backbone=backbone, tokens=tokens) -> torch.Tensor:
                x = normalize(torch.from_numpy(images.pixels), backbone.preprocessing)
                with torch.inference_mode():
                    return features_token(backbone.model, x, tokens)

            head = fit_head(torch.cat([features(one) for one in fitted]), labels, 3)
            mean += logits_of(head, features(large.test)).softmax(1)
        right = (mean.argmax(1).numpy() == large.test.labels) == point.correct
        assert right.mean() > 0.98  # token and prefix form round differently
        assert point.accuracy == point.correct.mean()
        assert point.choice == points[HOME, folded].choice


def test_latency_is_a_ratio_to_no_prompt_at_the_smallest_size(points) -> None:
    assert points[HOME, 0].ratio == 1
    for point in points.values():
        first = points[HOME, 0].milliseconds
        assert point.ratio == point.milliseconds / first
        assert point.milliseconds > 0


def test_ways_that_run_the_same_have_one_latency(
    backbones: dict[int, Backbone], bank: PromptBank, small: Task
) -> None:
    """With labels drawn by lot `fit` keeps no prompt."""
    rng = np.random.default_rng(0)
    drawn = {
        key: replace(images, labels=rng.permutation(images.labels))
        for key in ("train", "validation", "test")
        for images in (getattr(small, key),)
    }
    by_lot = loader(replace(small, **drawn))
    found = measure_sizes(bank, backbones, by_lot, budget=BUDGET, cache=False)
    for size in (HOME, LARGE):
        none, kept = (p for p in found if p.image_size == size and p.folded < 2)
        assert none.choice == kept.choice == "none"
        assert none.milliseconds == kept.milliseconds
        assert none.accuracy == kept.accuracy


def test_without_test_images_only_held_out_ones_count(
    backbones: dict[int, Backbone], bank: PromptBank, small: Task, tmp_path: Path
) -> None:
    untested = replace(small, test=small.test.subset([]))

    def load(rule: Preprocessing) -> Task:
        size = rule.image_size
        parts = {key: scaled(getattr(untested, key), size) for key in ("train", "validation")}
        return replace(untested, **parts, test=replace(parts["train"].subset([])))

    found = measure_sizes(bank, backbones, load, budget=BUDGET, cache=False)
    assert all(point.accuracy is point.low is point.high is None for point in found)
    assert all(0 < point.val_accuracy <= 1 for point in found)
    draw_image_sizes("toy", found, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_shallow_prompts_run_one_at_a_time(backbones: dict[int, Backbone], small: Task) -> None:
    shallow = make_bank(backbones[HOME], noise_tokens(2, layers=1))
    found = measure_sizes(shallow, backbones, loader(small), budget=BUDGET, cache=False)
    assert [(p.image_size, p.folded) for p in found] == [
        (size, folded) for size in (HOME, LARGE) for folded in range(2)
    ]


def test_images_of_one_size_are_in_memory_at_a_time(
    backbones: dict[int, Backbone], bank: PromptBank, small: Task
) -> None:
    read, sizes = loader(small), []
    alive: list[weakref.ref[np.ndarray]] = []

    def load(rule: Preprocessing) -> Task:
        gc.collect()
        assert not [one for one in alive if one() is not None]
        found = read(rule)
        sizes.append(rule.image_size)
        alive.extend(weakref.ref(part.pixels) for part in (found.train, found.test))
        return found

    three = {**backbones, 32: at_size(backbones[HOME], 32)}
    measure_sizes(bank, three, load, budget=Budget(steps=0), cache=False)
    assert sizes == [HOME, 32, LARGE]


def relabelled(task: Task) -> Task:
    return replace(task, test=replace(task.test, labels=task.test.labels[::-1].copy()))


def shorter(task: Task) -> Task:
    return replace(task, train=task.train.subset(np.arange(1, len(task.train))))


def other_classes(task: Task) -> Task:
    return replace(task, classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (relabelled, "has other labels than at 24 px"),
        (shorter, "has other training images, such as 0 than at 24 px"),
        (other_classes, "has other classes than at 24 px"),
    ],
)
def test_other_images_at_another_size_are_refused(
    change: Callable[[Task], Task],
    words: str,
    backbones: dict[int, Backbone],
    bank: PromptBank,
    small: Task,
) -> None:
    load = loader(small, change)
    with pytest.raises(UserError, match="the task toy, read at 40 px, has ") as caught:
        measure_sizes(bank, backbones, load, budget=Budget(steps=0), cache=False)
    assert words in str(caught.value)


def test_other_backbones_are_refused(
    backbones: dict[int, Backbone], bank: PromptBank, small: Task
) -> None:
    for wrong in (
        {LARGE: backbones[LARGE]},
        {**backbones, LARGE: at_size(make_backbone(seed=1), LARGE)},
    ):
        with pytest.raises(ValueError, match="must be those of the bank"):
            measure_sizes(bank, wrong, loader(small), cache=False)


def test_the_figure_has_the_same_bytes_again(points, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_image_sizes("toy", tuple(points.values()), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert first.startswith(b"\x89PNG")
