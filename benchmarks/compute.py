"""Time of `fit` and of `prompt train` against that of the images that they pass.

    python benchmarks/compute.py            # the bundled backbone; --help names the options

Counts the images that run through the backbone, by kind, and times some of the same kind before and
after. The quotient of the time and of what these passes take says what everything else costs. On
cores that others use, read the quotient of processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgprompt_edge import HGPrompt, load_backbone, load_task, read_bank
from hgprompt_edge.backbones import forward, linearize
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.linearize import Linearized, pixel_inputs
from hgprompt_edge.data import Task
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.training import neutral_prompt as start
from hgprompt_edge.training.prompt_tuning import PromptTrainer, Recipe
from shared.rows import Row, write_rows
from shared.study import make_parser
from shared.timing import timed

Kind = tuple[str, str]
"""Precision, and `forward` or `forward and back`."""
Seconds = tuple[float, float]
"""On the clock, and of all processors together."""

IMAGES, TRIAL_IMAGES, EPOCHS = 800, 128, 5


def main() -> None:
    options = parse_options()
    os.environ["HGEDGE_CACHE"] = tempfile.mkdtemp()
    backbone = load_backbone(
        options.backbone, checkpoint=options.checkpoint, image_size=options.image_size
    )
    choice = choose_compute(backbone, options.device, options.precision)
    print(choice, file=sys.stderr)
    backbone = backbone.with_compute(choice.compute)
    bank = of_backbone(read_bank(options.sources), backbone)
    task = load_task(options.task, backbone.preprocessing, data=options.data, limit=IMAGES)
    task = replace(task, test=task.test.subset([]), family="")
    actions: dict[str, Callable[[], Any]] = {
        "fit": lambda: HGPrompt().fit(bank, backbone, task),
        "prompt train": trainer(backbone, bank, task).run,
    }
    rows = []
    for name in options.only or actions:
        rows.append(measure(name, backbone, bank, actions[name]))
        show(rows[-1])
    if options.json:
        write_rows(options.json, rows)


def parse_options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--backbone", default="dinov2-small")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--sources", default="dinov2-small")
    parser.add_argument("--task", default="generated-orientation")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", nargs="*", choices=["fit", "prompt train"])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def of_backbone(bank: PromptBank, backbone: Backbone) -> PromptBank:
    """Take the bank for one of this backbone: only its shape matters to the time."""
    own = [replace(prompt, backbone_sha256=backbone.sha256) for prompt in bank.prompts]
    start = bank.start and replace(bank.start, backbone_sha256=backbone.sha256)
    return replace(bank, prompts=tuple(own), start=start)


def trainer(backbone: Backbone, bank: PromptBank, task: Task) -> PromptTrainer:
    """Train a prompt for some epochs, evaluated as often as `prompt train` does."""
    part = (task.train.pixels, task.train.labels)
    held_out = (task.validation.pixels, task.validation.labels)
    recipe = Recipe(epochs=EPOCHS, tokens=bank.tokens.shape[2])
    start = bank.tokens[0]
    classes = len(task.classes)
    return PromptTrainer(backbone, recipe, classes, lambda _: part, part, held_out, start=start)


def measure(name: str, backbone: Backbone, bank: PromptBank, action: Callable[[], Any]) -> Row:
    """Time an action, its image passes, and some passes of each kind before and after."""
    precisions = sorted({"float32", backbone.compute.precision})
    kinds = [(p, way) for p in precisions for way in ("forward", "forward and back")]
    before = {kind: rate(kind, backbone, bank.tokens[0]) for kind in kinds}
    with counting() as passed:
        seconds = timed(action)
    after = {kind: rate(kind, backbone, bank.tokens[0]) for kind in passed}
    rates = {
        kind: [(a + b) / 2 for a, b in zip(before[kind], after[kind], strict=True)]
        for kind in passed
    }
    ideal = [sum(count / rates[kind][i] for kind, count in passed.items()) for i in (0, 1)]
    back = [kind for kind in passed if kind[1] == "forward and back"]
    training = [sum(passed[kind] / rates[kind][i] for kind in back) for i in (0, 1)]
    return {
        "what": name,
        "compute": str(backbone.compute),
        "passes": [
            {
                "kind": " ".join(kind),
                "images": count,
                "images_per_second": rates[kind][0],
                "before": before[kind][0],
                "after": after[kind][0],
            }
            for kind, count in passed.items()
        ],
        "seconds": seconds[0],
        "quotient": seconds[0] / ideal[0],
        "quotient_of_processor_time": seconds[1] / ideal[1],
        "against_forward_and_back": seconds[0] / training[0],
        "against_forward_and_back_of_processor_time": seconds[1] / training[1],
    }


@contextmanager
def counting() -> Iterator[Counter[Kind]]:
    """Count the images that run through a backbone in here, by kind."""
    passed: Counter[Kind] = Counter()
    honest = forward.features_prefix
    homes = (forward, linearize, start)

    def counted(model: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        way = "forward and back" if torch.is_grad_enabled() else "forward"
        passed[str(x.dtype).removeprefix("torch."), way] += len(x)
        return honest(model, x, *rest)

    for home in homes:
        home.features_prefix = counted  # type: ignore[attr-defined]
    try:
        yield passed
    finally:
        for home in homes:
            home.features_prefix = honest  # type: ignore[attr-defined]


def rate(kind: Kind, backbone: Backbone, tokens: np.ndarray[Any, Any]) -> Seconds:
    """Images a second of the clock and of processor time; the first run warms up."""
    precision, way = kind
    backbone = backbone.in_precision(precision)
    size = backbone.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (TRIAL_IMAGES, size, size, 3), np.uint8)
    slope = torch.ones(TRIAL_IMAGES, backbone.embed_dim)

    def run(pixels: np.ndarray[Any, Any] = pixels) -> None:
        if way == "forward":
            extract_features(backbone, pixels, tokens)
            return
        inputs = pixel_inputs(backbone, pixels)
        count = len(pixels)
        Linearized(backbone, inputs, count, torch.from_numpy(tokens)).pull(slope[:count])

    run(pixels[:16])
    clock, processor = timed(run)
    return TRIAL_IMAGES / clock, TRIAL_IMAGES / processor


def show(row: Row) -> None:
    print(f"{row['what']}, {row['compute']}: {row['seconds']:.1f} s", flush=True)
    for each in row["passes"]:
        print(
            f"  {each['kind']}: {each['images']} images at {each['images_per_second']:.1f}/s "
            f"({each['before']:.1f} before, {each['after']:.1f} after)"
        )
    print(
        f"  time against that of these passes: {row['quotient']:.2f}, "
        f"of processors {row['quotient_of_processor_time']:.2f}; against those forward and back "
        f"only: {row['against_forward_and_back']:.2f}, "
        f"{row['against_forward_and_back_of_processor_time']:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
