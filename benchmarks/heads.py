"""What the best head is worth without a prompt, against Ledoit-Wolf's LDA on the class token.

    python benchmarks/heads.py --data ../shared/assets/datasets --image-size 112 \
        --backbone vit_small_patch14_dinov2 \
        --checkpoint ../shared/assets/dinov2-small/model.safetensors
    python benchmarks/heads.py                    # the table from the rows

For each set and seed, 80 % of the training images choose and fit: Ledoit-Wolf's LDA, the best LDA
and the best head of both kinds on the class token, then the best LDA and the best head on the
pooling that `fit` would choose on them. Resumes when killed. The grids of shrinkages and strengths
and the threshold for another pooling were chosen on CHOICES, which are not reported.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rows import read_rows, write_rows

from hgprompt_edge import load_backbone, load_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.split import split
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import best_pooling
from hgprompt_edge.heads.best_head import HeadKind, choose_head
from hgprompt_edge.heads.heads import Head, accuracy, fit_lda, log_loss

RESULTS = Path(__file__).parent / "results" / "heads.json"
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
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--backbone", default="dinov2-small")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="*", default=[*REPORTED, *CHOICES])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data is not None:
        run(options)
    show(read_rows(options.out))


def run(options: argparse.Namespace) -> None:
    backbone = load_backbone(
        options.backbone, checkpoint=options.checkpoint, image_size=options.image_size
    )
    rows = read_rows(options.out)
    for name in options.sets:
        done = {row["seed"] for row in rows if row["set"] == name}
        if done >= set(options.seeds):
            continue
        task = whole_task(options.data / name, backbone)
        store = FeatureStore(backbone.in_precision(options.precision))
        for seed in sorted(set(options.seeds) - done):
            about = {"set": name, "seed": seed, "precision": options.precision}
            rows.append({**about, **measure(store, task, seed)})
            write_rows(options.out, rows)
            print(rows[-1], flush=True)


def whole_task(folder: Path, backbone: Backbone) -> Task:
    """Read a set; its training part holds the validation images, too."""
    task = load_task(None, backbone.preprocessing, data=folder)
    parts = task.train, task.validation
    both = Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(name for part in parts for name in part.names),
    )
    return replace(task, train=both)


def measure(store: FeatureStore, task: Task, seed: int) -> dict[str, Any]:
    rows, _ = split(task.train.labels, seed)
    labels, classes = task.train.labels[rows], len(task.classes)
    features = {
        name: store.with_pooling(name).features(task.train.pixels, None)[rows]
        for name in store.backbone.poolings
    }
    pooling = best_pooling(features, labels, classes, seed)
    found: dict[str, Any] = {"pooling": pooling.name, "gain": round(pooling.gain, 4)}
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
        logits = head.logits(test)
        found[way] = {
            "head": head.name,
            "accuracy": accuracy(logits, task.test.labels),
            "log_loss": round(log_loss(logits, task.test.labels), 4),
        }
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print accuracy by set, and the gain over today's head with an interval over the sets."""
    for title, names in (("reported", REPORTED), ("used for choices", CHOICES)):
        mine = {name: [row for row in rows if row["set"] == name] for name in names}
        mine = {name: found for name, found in mine.items() if found}
        if not mine:
            continue
        print(f"\n{title:18s}" + "".join(f"{way:>27s}" for way in WAYS) + "   pooling, head")
        for name, found in mine.items():
            cells = "".join(f"{100 * mean(found, way):27.1f}" for way in WAYS)
            chosen = sorted({f"{row['pooling']}, {row[WAYS[-1]]['head']}" for row in found})
            print(f"{name:18s}{cells}   {'; '.join(chosen)}")
        for way in WAYS[1:]:
            gains = [100 * (mean(found, way) - mean(found, TODAY)) for found in mine.values()]
            low, high = interval(gains)
            losses = [
                mean(found, way, "log_loss") - mean(found, TODAY, "log_loss")
                for found in mine.values()
            ]
            print(
                f"{way}: {np.mean(gains):+.2f} points (95 % {low:+.2f} to {high:+.2f}, "
                f"{len(gains)} sets, worst {min(gains):+.1f}), log-loss {np.mean(losses):+.3f}"
            )


def mean(rows: list[dict[str, Any]], way: str, what: str = "accuracy") -> float:
    return float(np.mean([row[way][what] for row in rows]))


def interval(values: list[float]) -> tuple[float, float]:
    """Percentile interval of the mean over resampled sets."""
    rng = np.random.default_rng(0)
    drawn = np.array(values)[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
