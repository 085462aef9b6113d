"""How many image passes a command needs, so that it can say beforehand how long it takes.

As `compare` counts them: a forward pass of one image is 1, a training image 3. Heads and files
come on top, and what the cache holds comes off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hgprompt_edge.artifacts.folded import MAX_FOLDED
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import Passes
from hgprompt_edge.compare.contest import Budget
from hgprompt_edge.compare.run import SHIPPED
from hgprompt_edge.data import Task
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.training import neutral_prompt
from hgprompt_edge.training.tune import epochs_for, usual_batch

ROWS = 4
"""Of the table of `fit`: no prompt, best source, uniform, learned."""


def fit_passes(task: Task, bank: PromptBank | None, steps: int) -> Passes:
    """Image passes of a fit: features of each prompt, the steps, each row of the table anew.

    The last are in float32, whatever the steps are computed in.
    """
    train, held_out, test = len(task.train), len(task.validation), len(task.test)
    if bank is None:
        return Passes(exact=train + held_out + test)
    prompts = len(bank.basis) + 2  # the uniform mix, no prompt
    table = ROWS * (train + held_out + test)
    return Passes(prompts * (train + held_out) + steps * 3 * train, table)


def tune_passes(task: Task, epochs: int, from_scratch: bool = False) -> Passes:
    """Image passes of training a prompt, evaluated at the end, and of its row in the table.

    From scratch the neutral start comes first, where the cache has none: noise with and without it.
    """
    train, held_out = len(task.train), len(task.validation)
    chosen = 3 * epochs * train + (_neutral_start() if from_scratch else 0)
    return Passes(chosen, 3 * (train + held_out) + len(task.test))


def compare_passes(task: Task, bank: PromptBank, methods: Sequence[str], budget: Budget) -> Passes:
    """Image passes of a comparison. Methods share what they need alike: it is counted once."""
    train, sources = len(task.train), len(bank.prompts)
    spot, tune = (
        epochs_for(steps, train, usual_batch(len(task.classes), budget.batch_size))
        for steps in (budget.spot_steps, budget.tune_steps)
    )
    ascent = 3 * train * budget.steps + train
    tuned = {"tune", "tune_guarded"}
    learned = {"hgprompt", "hgprompt_guarded", "two_folded", "three_folded", "vpt_scratch"} | tuned
    own = {
        "spot": 3 * spot * train,
        "h_only": ascent,
        "gradient_free": train * budget.evaluations,
        "soup": train * sources,
        "prediction_average": sources * len(task.test),
        "vpt_scratch": ascent + 6 * tune * train,
    }
    total = (len(bank.basis) + 2) * (train + len(task.validation))
    total += sum(own.get(method, 0) for method in methods)
    if learned & set(methods):
        total += ascent
    if tuned & set(methods):
        total += 3 * tune * train
    if {"spot", "vpt_scratch"} & set(methods) and bank.start is None:
        total += _neutral_start()
    total += len(methods) * (len(task.validation) + len(task.test))
    exact = train + len(task.validation) + len(task.test)
    return Passes(total, exact * len(SHIPPED & set(methods)))


def sizes_passes(
    task: Task, bank: PromptBank, backbone: Backbone, sizes: Collection[int], budget: Budget
) -> Passes:
    """Image passes of comparing image sizes, in passes at the bank's own size.

    Parameters
    ----------
    backbone
        At the bank's size.
    sizes
        All image sizes. Elsewhere than at home no prompt and the folded prompts run, and a pass
        counts as many times as an image has more tokens.
    """
    shipped = ("none", "hgprompt_guarded", "two_folded", "three_folded")
    home = compare_passes(task, bank, shipped, budget)
    images = len(task.train) + len(task.validation) + len(task.test)
    own = _tokens(backbone, bank.image_size)
    elsewhere = sum(_tokens(backbone, size) / own for size in sizes if size != bank.image_size)
    return home + Passes(exact=round((1 + MAX_FOLDED) * images * elsewhere))


def _neutral_start() -> int:
    """Image passes of computing the neutral start where neither bank nor cache has it."""
    return (3 + 1) * neutral_prompt.NEUTRAL_STEPS * neutral_prompt.NEUTRAL_BATCH


def _tokens(backbone: Backbone, size: int) -> int:
    return (size // backbone.patch_size) ** 2
