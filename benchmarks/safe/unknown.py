"""Tell foreign images and unseen classes from a task's own.

    python benchmarks unknown --data ../shared/assets/datasets
    python benchmarks unknown --only-report       # docs/results/unknown.md from the rows

Each set is fitted with 400 training images, without a prompt and under its best source prompt. Its
own test images are held against 40 test images of each other set, and against those of a third of
its classes that were left out (three draws). All scores see the same features. Resumes when killed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist

from hgprompt_edge.backbones.last_norm import before_affine
from hgprompt_edge.data.grouping import copy_groups
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.maths.reference import Reference, fit_reference
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.prompts.bank import read_bank
from shared.intervals import bootstrap
from shared.pages import fill, line, percent, write_page
from shared.rows import Rows, add_rows, read_rows, results_file, select
from shared.study import Options, add_sharing, make_parser
from shared.targets import BACKBONE, fastest_backbone, load_target

RESULTS = results_file("unknown")
CHOICES = ("flowers17", "chars34-scene", "trashnet", "weather4", "dtd10", "deeppcb")
"""On these the score, the shrinkage and the number of components were chosen."""
REPORTED = ("neu-cls", "magnetic-tile", "grocery81", "houses4", "clothing10", "pacs-sketch")
SCORES = {
    "softmax": "maximum softmax",
    "energy": "energy",
    "vim": "ViM (energy and residual)",
    "neighbour": "fifth neighbour (cosine)",
    "whitened": "fifth neighbour (whitened)",
    "mahalanobis": "Mahalanobis",
    "relative": "relative Mahalanobis",
    "ours": "ours",
}
EACH, DRAWS, SEED = 40, 3, 1

Doubles = npt.NDArray[np.float64]
Arrays = dict[str, Any]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    add_sharing(parser, ".unknown")
    options = parser.parse_args()
    if not options.only_report:
        torch.set_num_threads(1)
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)
    write_page("unknown", report())


def run(options: Options) -> None:
    for name in (*CHOICES, *REPORTED):
        if not (options.work / f"{name}.npz").exists():
            own_features(name, options)
    for name in (*CHOICES, *REPORTED):
        if not (options.work / f"{name}.foreign.npz").exists():
            foreign_features(name, options.work)
        if not select(read_rows(RESULTS), set=name):
            add_rows(RESULTS, *rows_of(name, options.work))


def own_features(name: str, options: Options) -> None:
    """Keep the features of a set without a prompt and under its best source, and test pixels."""
    bank, backbone = read_bank(BACKBONE), fastest_backbone()
    task = load_target(name, backbone.preprocessing, options.data, SEED)
    mixer = HGPrompt(steps=0, seed=0).fit(bank, backbone, task)
    best = next(prompt for prompt in bank.prompts if prompt.name == mixer.best_source_)
    pooling = mixer.pooling_.name
    exact = backbone.in_precision("float32").normalized(bank.normalization)
    store = FeatureStore(exact).with_pooling(pooling)
    found: Arrays = {"best_name": best.name, "pooling": pooling, "classes": len(task.classes)}
    found["groups"] = copy_groups((task.train, task.validation))
    for part in ("train", "validation", "test"):
        images = getattr(task, part)
        found[f"{part}_y"] = images.labels
        for kind, tokens in (("none", None), ("best", best.tokens)):
            found[f"{part}_{kind}"] = store.features(images.pixels, tokens).numpy()
    np.savez(options.work / f"{name}.pixels.npz", test=task.test.pixels)
    np.savez(options.work / f"{name}.npz", **found)


def foreign_features(name: str, work: Path) -> None:
    """Keep the features that test images of the other sets have in this set's model."""
    own = np.load(work / f"{name}.npz")
    bank, backbone = read_bank(BACKBONE), fastest_backbone().in_precision("float32")
    pixels = []
    for other in (*CHOICES, *REPORTED):
        if other != name:
            images = np.load(work / f"{other}.pixels.npz")["test"]
            pixels.append(images[np.random.default_rng(1).choice(len(images), EACH, replace=False)])
    best = next(prompt for prompt in bank.prompts if prompt.name == str(own["best_name"]))
    store = FeatureStore(backbone.normalized(bank.normalization), enabled=False)
    store, both = store.with_pooling(str(own["pooling"])), np.concatenate(pixels)
    parts = {
        kind: store.features(both, tokens).numpy()
        for kind, tokens in (("none", None), ("best", best.tokens))
    }
    np.savez(work / f"{name}.foreign.npz", **parts)


def rows_of(name: str, work: Path) -> Rows:
    """Areas under the curve, and how often own images are called unknown."""
    own, foreign = np.load(work / f"{name}.npz"), np.load(work / f"{name}.foreign.npz")
    model = fastest_backbone().model
    rows: Rows = []
    for kind in ("none", "best"):
        x, test = (
            before_affine(np.concatenate([own[f"{part}_{kind}"] for part in parts]), model)
            for parts in (("train", "validation"), ("test",))
        )
        y, classes = np.concatenate([own["train_y"], own["validation_y"]]), int(own["classes"])
        fitted = Scores(x, y, classes, own["groups"])
        other = fitted.all(before_affine(foreign[kind], model))
        for score, values in fitted.all(test).items():
            found = {"set": name, "prompt": kind, "against": "other sets", "score": score}
            found["auroc"] = auroc(values, other[score])
            found["fpr95"] = float((values >= np.quantile(other[score], 0.05)).mean())
            rows.append(found)
        marked = fitted.reference.share_beyond(fitted.reference.see(test).scores) <= 0.05
        rows[-1]["marked"] = float(marked.mean())
        rows += unseen(name, kind, x, y, own["groups"], test, own["test_y"], classes)
    return rows


def unseen(
    name: str,
    kind: str,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    test: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
) -> Rows:
    """Leave a third of the classes out, three times."""
    found: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        out = np.random.default_rng(draw).permutation(classes)[: max(1, classes // 3)]
        kept = ~np.isin(y, out)
        values = Scores(x[kept], y[kept], classes, groups[kept]).all(test)
        new = np.isin(labels, out)
        for score, each in values.items():
            found.setdefault(score, []).append(auroc(each[~new], each[new]))
    about = {"set": name, "prompt": kind, "against": "unseen classes"}
    return [{**about, "score": score, "auroc": float(np.mean(v))} for score, v in found.items()]


class Scores:
    """Scores that are larger for foreign images, all from the same features of own images."""

    def __init__(
        self,
        features: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        classes: int,
        groups: npt.NDArray[np.int64],
    ) -> None:
        found = fit_reference(features, labels, classes, groups=groups)
        assert found is not None
        self.reference: Reference = found
        present, places = np.unique(labels, return_inverse=True)
        self.head = fit_head(torch.from_numpy(features), places, len(present))
        self.known = unit(features)
        self.whitened = found.whiten(features)
        # Scaled as by the authors of ViM (Wang et al. 2022): both parts are as large on own images.
        largest = self.head.logits(features.astype(np.float64)).max(1).mean()
        self.scale = largest / self.residual(features).mean()

    def residual(self, features: npt.NDArray[np.float32]) -> Doubles:
        """Length of what the principal components leave, `[n]`."""
        length: Doubles = np.sqrt(self.reference.see(features).values[:, 3].astype(np.float64))
        return length

    def all(self, features: npt.NDArray[np.float32]) -> dict[str, Doubles]:
        """Each score `[n]` of features `[n, W]`, by the keys of `SCORES`."""
        logits = self.head.logits(features.astype(np.float64))
        largest = logits.max(1)
        energy = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        fifth = np.sort(unit(features) @ self.known.T, axis=1)[:, -5]
        score, distance, total = self.reference.see(features).values[:, :3].astype(np.float64).T
        return {
            "softmax": -softmax(logits).max(1),
            "energy": -energy,
            "vim": self.scale * self.residual(features) - energy,
            "neighbour": -fifth,
            "whitened": np.sort(cdist(self.reference.whiten(features), self.whitened), axis=1)[
                :, 4
            ],
            "mahalanobis": distance,
            "relative": distance - total,
            "ours": score,
        }


def unit(features: npt.NDArray[np.float32]) -> Doubles:
    x = features.astype(np.float64)
    scaled: Doubles = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled


def auroc(own: Doubles, foreign: Doubles) -> float:
    """Share of pairs in which the foreign image scores higher; ties count half."""
    above = (foreign[:, None] > own[None]).mean()
    return float(above + (foreign[:, None] == own[None]).mean() / 2)


def report() -> str:
    rows = read_rows(RESULTS)
    tables = {
        f"{group}_{prompt}": lines_of(select(rows, prompt=prompt), sets)
        for group, sets in (("reported", REPORTED), ("choices", CHOICES))
        for prompt in ("none", "best")
    }
    ours = [row for row in select(rows, prompt="best", score="ours") if "marked" in row]
    marked = "\n".join(
        line([row["set"], percent(row["marked"], 1), f"{row['auroc']:.3f}", percent(row["fpr95"])])
        for row in sorted(ours, key=lambda row: row["set"])
    )
    return fill("unknown", marked=marked, **tables)


def lines_of(rows: Rows, sets: tuple[str, ...]) -> str:
    """One line a score: mean areas over the sets, with 95 % intervals."""
    found = []
    for score, title in SCORES.items():
        cells = [title]
        for against in ("other sets", "unseen classes"):
            each = [
                row["auroc"] for row in select(rows, score=score, against=against)
                if row["set"] in sets
            ]  # fmt: skip
            low, high = bootstrap(np.array(each))
            cells.append(f"{np.mean(each):.3f} ({low:.3f} to {high:.3f})")
        found.append(line(cells))
    return "\n".join(found)


if __name__ == "__main__":
    main()
