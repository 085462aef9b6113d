"""Speed of prompted models by form, runtime and precision, against the two that people export.

    python benchmarks/export.py --quick --json export.json     # ViT-S, under ten minutes
    python benchmarks/export.py                                # all, resumed where it stopped

ViT at 224 pixels with random weights and 50 prompt tokens; batch 1, one thread. `unprompted` and
`naive` (prompt tokens in the sequence) are what `torch.onnx.export` writes; the other forms are
ours, from `folded` (constant keys and values, nothing else) on, one rewrite added a row, to
`hgedge`, what `hgedge export` writes. `products` is the roofline: the products with constant
matrices of `hgedge` and nothing else.

A group is a model, a kind of prompt, a runtime and a precision. All its models take turns, with
them fp32 `unprompted` in the same runtime and fp32 `naive` in onnxruntime, so that whatever else
the machine does hits all of them; the ratios are of medians to those two. Times of two groups do
not compare. `max_abs_diff` is to PyTorch's token form, in logits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fast.export_entries import Models, make_entries
from fast.export_models import NAMES
from hgprompt_edge.files import write_bytes
from hgprompt_edge.runtime.cpu import cpu_features
from shared.rows import Row, Rows, results_file
from shared.study import make_parser
from shared.timing import in_turns

RESULTS = results_file("export")
GROUPS = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("pytorch", "fp32"),
    ("pytorch", "bf16"),
    ("torch.compile", "fp32"),
    ("torch.compile", "bf16"),
)
"""onnxruntime has no bfloat16 on CPUs, and PyTorch's int8 is for other architectures."""
IMAGES = 4


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="ViT-S, no PyTorch, few forms")
    parser.add_argument("--json", type=Path, help="file of the rows; groups that it has are kept")
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--prompts", nargs="*", default=["deep", "shallow"])
    parser.add_argument("--runtimes", nargs="*", choices=sorted({r for r, _ in GROUPS}))
    parser.add_argument("--precisions", nargs="*", choices=sorted({p for _, p in GROUPS}))
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    path = options.json or (None if options.quick else RESULTS)
    rows = [] if path is None else read(path)
    print(f"cpu: {' '.join(cpu_features())}")
    for model in ["s"] if options.quick else options.models:
        for prompt in options.prompts:
            groups = [g for g in wanted(options) if (NAMES[model], prompt, *g) not in keys(rows)]
            with tempfile.TemporaryDirectory() as folder:
                # All forms of ViT-B in one process would take ten gigabytes.
                models = Models(model, prompt, Path(folder), model != "b" and not options.quick)
                for group in groups:
                    rows += measure(models, *group, options.rounds)
                    if path is not None:
                        write(path, rows)


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    features = cpu_features()
    for runtime, precision in GROUPS:
        if options.runtimes and runtime not in options.runtimes:
            continue
        if options.precisions and precision not in options.precisions:
            continue
        if options.quick and runtime not in ("onnxruntime", "openvino"):
            continue
        if precision == "bf16" and not {"avx512_bf16", "amx_bf16"} & set(features):
            print("this CPU does not compute in bfloat16: no such rows", file=sys.stderr)
        elif (runtime, precision) == ("openvino", "int8") and find_spec("nncf") is None:
            print("nncf is not installed: no int8 rows for OpenVINO", file=sys.stderr)
        else:
            yield runtime, precision


def keys(rows: Rows) -> set[tuple[str, str, str, str]]:
    return {(row["model"], row["prompt"], row["runtime"], row["precision"]) for row in rows}


def read(path: Path) -> Rows:
    """Rows to go on from; those of another CPU or of other versions are not mixed with ours."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    if {key: document.get(key) for key in ("cpu_features", "versions")} != machine():
        sys.exit(f"{path}: measured on another CPU or with other versions; choose another file")
    rows: Rows = document["rows"]
    return rows


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(machine())[:-1]
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_bytes(path, f'{head},\n"rows": [\n{lines}\n]}}\n'.encode())


def machine() -> dict[str, Any]:
    import onnxruntime
    import openvino
    import torch

    versions = {
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__.partition("-")[0],
        "torch": torch.__version__,
    }
    return {"cpu_features": list(cpu_features()), "versions": versions}


def measure(models: Models, runtime: str, precision: str, rounds: int) -> Rows:
    """One group."""
    from hgprompt_edge.export.verify import reference_logits

    size = models.backbone.image_size
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    plain = reference_logits(models.plain, models.backbone, pixels)
    prompted = reference_logits(models.prompted, models.backbone, pixels)
    entries = list(make_entries(models, runtime, precision))
    calls = {(e.form, e.runtime, e.precision): partial(e.run, pixels[:1]) for e in entries}
    by_key = in_turns(calls, rounds)
    rows = []
    for entry, median in zip(entries, by_key.values(), strict=True):
        if (entry.runtime, entry.precision) != (runtime, precision):
            continue  # there to be compared with
        row = {
            "model": NAMES[models.model],
            "prompt": models.prompt,
            "form": entry.form,
            "runtime": runtime,
            "precision": precision,
            "p50_ms": round(median * 1e3, 3),
            "ratio_unprompted": round(median / by_key["unprompted", runtime, "fp32"], 4),
            "ratio_naive": round(median / by_key["naive", "onnxruntime", "fp32"], 4),
            "rounds": rounds,
        }
        if entry.gflop:
            row |= {"max_abs_diff": None, "gflop_per_s": round(entry.gflop / median, 1)}
        else:
            expected = plain if entry.form == "unprompted" else prompted
            found = np.concatenate([entry.run(pixels[i : i + 1]) for i in range(len(pixels))])
            row["max_abs_diff"] = float(np.abs(found - expected).max())
            row["max_abs_logit"] = float(np.abs(expected).max())
        rows.append(row)
        show(models.model, row)
    return rows


def show(model: str, row: Row) -> None:
    last = f"{row['gflop_per_s']:.0f} GFLOP/s" if "gflop_per_s" in row else ""
    if row["max_abs_diff"] is not None:
        last = f"difference {row['max_abs_diff']:.1e}"
    print(
        f"{model:2} {row['prompt']:7} {row['form']:11} {row['runtime']:13} {row['precision']:5}"
        f"{row['p50_ms']:9.2f} ms  / unprompted {row['ratio_unprompted']:.3f}"
        f"  / naive {row['ratio_naive']:.3f}  {last}",
        flush=True,
    )


if __name__ == "__main__":
    main()
