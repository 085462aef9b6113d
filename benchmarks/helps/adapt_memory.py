"""Peak memory of `hgedge adapt`, written into the rows of `adapt`.

    python benchmarks adapt_memory --bundles DIR

Each in a process of its own, with the bundles that the rows came from. The peak depends neither on
what the images show nor on the number of steps.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from hgprompt_edge import export_onnx, load_backbone
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.backbone import Backbone
from shared.commands import hgedge
from shared.rows import distinct, read_rows, results_file, write_rows
from shared.study import make_parser

RESULTS = results_file("adapt")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--bundles", type=Path, required=True, help="folder of TASK.hgbundle")
    options = parser.parse_args()
    backbone = load_backbone("tiny")
    rows = read_rows(RESULTS)
    for task in distinct(rows, "task"):
        bundle = read_bundle(options.bundles / f"{task}.hgbundle")
        alone = replace(bundle, conditions=(), condition_tokens=None)
        for method, given, words in (
            ("mix", bundle, ()),
            ("mix_sources", alone, ()),
            ("mix_unlabelled", bundle, ("--unlabelled",)),
            ("mix_unlabelled_bias", bundle, ("--unlabelled", "--head", "bias")),
        ):
            with tempfile.TemporaryDirectory() as folder:
                peak = adapt_peak(Path(folder), given, backbone, words)
            print(f"{task} {method}: {peak} MB", flush=True)
            for row in rows:
                if (row["task"], row["method"]) == (task, method):
                    row["peak_rss_mb"] = peak
    write_rows(RESULTS, rows)


def adapt_peak(folder: Path, bundle: Bundle, backbone: Backbone, words: tuple[str, ...]) -> float:
    """Peak memory in MB of `hgedge adapt` on forty images of noise."""
    model, seen = folder / "m.onnx", folder / "seen"
    export_onnx(bundle, backbone, model, runtime_weights=True, adapt=True)
    rng, side = np.random.default_rng(0), backbone.image_size
    for index in range(40):
        place = seen / bundle.classes[index % len(bundle.classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    given = ("--model", str(model), "--data", str(seen), "--threads", "1", "--steps", "2")
    done = hgedge("adapt", *given, *words, "--state", str(folder / "state"))
    if done.failure:
        raise SystemExit(done.failure)
    return round(done.peak / 2**20, 1)


if __name__ == "__main__":
    main()
