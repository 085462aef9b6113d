"""What int8 and bfloat16 cost in accuracy, on the test parts of real data sets.

    python benchmarks export_accuracy --data FOLDER

Bundled backbone and bank. `kept` is what `fit` keeps, which may be no prompt; `uniform` is the
uniform mix of all sources, so that there is a prompt to quantize. int8 files are what
`hgedge export --precision int8` writes, in the first scheme that holds on validation images; test
images are looked at here alone. `drop` is in points below float32 in the same runtime, `other` the
share of test images that get another class than there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hgprompt_edge import HGPrompt, load_backbone, read_bank
from hgprompt_edge.export.int8.measure import BATCHES
from hgprompt_edge.export.int8.quantize import export_int8
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.openvino_file import export_openvino
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.algorithm import uniform_weights
from hgprompt_edge.fit.assemble import token_logits
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.runtime.cpu import cpu_features
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine
from shared.device_study import load_study_task
from shared.rows import Rows, read_rows, results_file, write_rows
from shared.study import make_parser

RESULTS = results_file("export_accuracy")
TASKS = ("flowers17", "dtd10", "weather4")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    options = parser.parse_args()
    print(f"cpu: {' '.join(cpu_features())}")
    bank = read_bank("tiny")
    backbone = load_backbone(bank.backbone).normalized(bank.normalization)
    rows = [row for row in read_rows(RESULTS) if row["task"] not in options.tasks]
    for name in options.tasks:
        task = load_study_task(name, backbone, options.data)
        for prompt, bundle in bundles(bank, backbone, task):
            rows += measure(name, prompt, bundle, backbone, task)
            write_rows(RESULTS, rows)


def bundles(bank: Any, backbone: Any, task: Any) -> Iterator[tuple[str, Any]]:
    kept = HGPrompt().fit(bank, backbone, task).bundle_
    yield "kept", kept
    weights = uniform_weights(len(bank.tokens))
    uniform = Candidate("uniform", mix(bank.tokens, weights), weights)
    (head,) = Judge(FeatureStore(backbone), task).final_heads(uniform)
    head = head.as_float32()
    logits = token_logits(backbone, kept.probe_images, uniform.tokens, head)
    yield (
        "uniform",
        replace(
            kept,
            choice="uniform",
            prompt=uniform.tokens,
            weights=weights.astype(np.float32),
            head=head,
            probe_logits=logits,
        ),
    )


def measure(name: str, prompt: str, bundle: Any, backbone: Any, task: Any) -> Rows:
    rows, classes = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime, precision, scheme, engine in engines(bundle, backbone, task, Path(folder)):
            found = predicted(engine, task.test.pixels)
            exact = classes.setdefault(runtime, found)  # float32 comes first
            right, before = (100 * (c == task.test.labels).mean() for c in (found, exact))
            row = {
                "task": name,
                "prompt": prompt,
                "method": bundle.choice,
                "runtime": runtime,
                "precision": precision,
                "scheme": scheme,
                "test_images": len(task.test),
                "test_accuracy": round(float(right), 2),
                "drop": round(float(before - right), 2),
                "other": round(100 * float((found != exact).mean()), 2),
            }
            rows.append(row)
            print(
                f"{name:10} {prompt:8} {bundle.choice:12} {runtime:12} {precision:13} {scheme:17}"
                f"{right:7.2f} %  drop {row['drop']:5.2f}  other {row['other']:5.2f} %",
                flush=True,
            )
    return rows


def engines(
    bundle: Any, backbone: Any, task: Any, folder: Path
) -> Iterator[tuple[str, str, str, Engine]]:
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    path = folder / "fp32.onnx"
    export_onnx(bundle, backbone, path)
    yield "onnxruntime", "fp32", "", OnnxEngine(path)
    path = folder / "int8.onnx"
    scheme = export_int8(bundle, backbone, path, task).tried[-1].scheme
    yield "onnxruntime", "int8", scheme, OnnxEngine(path)
    path = folder / "fp32.xml"
    export_openvino(bundle, backbone, path)
    yield "openvino", "fp32", "", OpenVinoEngine(path, cache=False)
    if has_bf16:
        yield "openvino", "bf16", "", OpenVinoEngine(path, cache=False, bf16=True)
    path = folder / "int8.xml"
    scheme = export_int8(bundle, backbone, path, task).tried[-1].scheme
    yield "openvino", "int8", scheme, OpenVinoEngine(path, cache=False, bf16=False)
    if has_bf16:
        yield "openvino", "int8 and bf16", scheme, OpenVinoEngine(path, cache=False, bf16=True)


def predicted(engine: Engine, pixels: Any) -> Any:
    parts = range(0, len(pixels), BATCHES[-1])
    return np.concatenate([engine.run(pixels[i : i + BATCHES[-1]]) for i in parts]).argmax(1)


if __name__ == "__main__":
    main()
