"""What the best head is worth without a prompt, against Ledoit-Wolf's LDA on the class token.

    python benchmarks heads --data ../shared/assets/datasets --image-size 112 \
        --backbone vit_small_patch14_dinov2 \
        --checkpoint ../shared/assets/dinov2-small/model.safetensors
    python benchmarks heads                       # docs/results/heads.md from the rows

For each set and seed, 80 % of the training images choose and fit: Ledoit-Wolf's LDA, the best LDA
and the best head of both kinds on the class token, then the best LDA and the best head on the
pooling that `fit` would choose on them. Resumes when killed. The grids of shrinkages and strengths
and the threshold for another pooling were chosen on CHOICES, which are not reported.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge import load_backbone, load_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.data.split import split
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import best_pooling
from hgprompt_edge.heads.best_head import HeadKind, choose_head
from hgprompt_edge.heads.heads import accuracy, fit_lda, log_loss, logits_of
from hgprompt_edge.maths.head import Head
from shared.intervals import bootstrap
from shared.pages import fill, listed, table, write_page
from shared.rows import Row, Rows, add_rows, distinct, read_rows, results_file, select
from shared.study import make_parser
from shared.targets import joined

RESULTS = results_file("heads")
CHOICES = ("rsscn7", "caltech101", "houses4", "pacs-sketch")
REPORTED = (
    *("flowers17", "dtd10", "weather4", "trashnet", "magnetic-tile", "deeppcb"),
    *("grocery81", "clothing10", "chars34-scene", "neu-cls", "pacs-cartoon", "pneumonia-mnist"),
)
TODAY = "Ledoit-Wolf's LDA, class token"
WAYS = (
    TODAY,
    "best LDA, class token",
    "best head, class token",
    "best LDA, chosen pooling",
    "best head, chosen pooling",
)
POOLINGS = {"token": "class token", "both": "both"}
"""Titles of those that were chosen."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--backbone", default="dinov2-small")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="*", default=[*REPORTED, *CHOICES])
    options = parser.parse_args()
    if options.data is not None:
        run(options)
    write_page("heads", report())


def run(options: argparse.Namespace) -> None:
    backbone = load_backbone(
        options.backbone, checkpoint=options.checkpoint, image_size=options.image_size
    )
    for name in options.sets:
        done = {row["seed"] for row in select(read_rows(RESULTS), set=name)}
        if done >= set(options.seeds):
            continue
        task = whole_task(options.data / name, backbone)
        store = FeatureStore(backbone.in_precision(options.precision))
        for seed in sorted(set(options.seeds) - done):
            about = {"set": name, "seed": seed, "precision": options.precision}
            add_rows(RESULTS, {**about, **measure(store, task, seed)})


def whole_task(folder: Path, backbone: Backbone) -> Task:
    """Read a set; its training part holds the validation images, too."""
    task = load_task(None, backbone.preprocessing, data=folder)
    return replace(task, train=joined(task.train, task.validation))


def measure(store: FeatureStore, task: Task, seed: int) -> Row:
    rows, _ = split(task.train.labels, seed)
    labels, classes = task.train.labels[rows], len(task.classes)
    features = {
        name: store.with_pooling(name).features(task.train.pixels, None)[rows]
        for name in store.backbone.poolings
    }
    pooling = best_pooling(features, labels, classes, seed)
    found: Row = {"pooling": pooling.name, "gain": round(pooling.gain, 4)}
    for way in WAYS:
        name = "token" if "class token" in way else pooling.name
        train = features[name]
        test = store.with_pooling(name).features(task.test.pixels, None)
        if way == TODAY:
            head: Head = fit_lda(train, labels, classes, seed)
        else:
            kinds: tuple[HeadKind, ...] = ("lda",) if "LDA" in way else ("lda", "logistic")
            choices = [choose_head(train, labels, classes, seed, kind) for kind in kinds]
            best = min(choices, key=lambda choice: choice.log_loss)
            head = best.fit(train, labels, classes)
        logits = logits_of(head, test)
        found[way] = {
            "head": head.name,
            "accuracy": accuracy(logits, task.test.labels),
            "log_loss": round(log_loss(logits, task.test.labels), 4),
        }
    return found


def report() -> str:
    """Make the page: accuracy by set, and the gain over today's head with an interval over sets."""
    rows = read_rows(RESULTS)
    sets = {name: found for name in REPORTED if (found := select(rows, set=name))}
    gains = {
        way: [100 * (mean(found, way) - mean(found, TODAY)) for found in sets.values()]
        for way in WAYS[1:]
    }
    losses = {
        way: [
            mean(found, way, "log_loss") - mean(found, TODAY, "log_loss") for found in sets.values()
        ]
        for way in WAYS[1:]
    }
    mean_gains = [f"{np.mean(gains[way]):+.2f}" for way in gains]
    ends = [bootstrap(gains[way]) for way in gains]
    body = [
        (
            name,
            *(f"{100 * mean(found, way):.1f}" for way in WAYS),
            listed(sorted(POOLINGS[pooling] for pooling in distinct(found, "pooling"))),
        )
        for name, found in sets.items()
    ]
    body += [
        ("**gain, points**", "", *mean_gains[:-1], f"**{mean_gains[-1]}**", ""),
        ("95 % interval over sets", "", *(f"{low:.2f} to {high:.2f}" for low, high in ends), ""),
        ("change of log-loss, nats", "", *(f"{np.mean(losses[way]):+.3f}" for way in losses), ""),
    ]
    return fill("heads", table=table(("set", *WAYS, "chosen"), body))


def mean(rows: Rows, way: str, what: str = "accuracy") -> float:
    return float(np.mean([row[way][what] for row in rows]))


if __name__ == "__main__":
    main()
