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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from export_models import NAMES, make_backbone, make_bundle, products, steps, token_module, trace
from export_runtimes import Run, in_onnxruntime, in_openvino, in_pytorch, quantize

from hgprompt_edge.files import write_bytes
from hgprompt_edge.runtime.cpu import cpu_features

RESULTS = Path(__file__).parent / "results" / "export.json"
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
INT8_FORMS = {
    "onnxruntime": ("unprompted", "naive", "folded", "+class_row", "+affine", "+biases",
                    "+absorbed", "+joined", "hgedge", "products"),
    "openvino": ("unprompted", "naive", "folded", "+absorbed", "hgedge", "products"),
}  # fmt: skip
"""onnxruntime does not quantize behind its own operators; NNCF takes up to a minute each."""
IMAGES = 4


@dataclass
class Entry:
    """A model of a group, ready to run: `run` takes pixels and gives logits."""

    form: str
    runtime: str
    precision: str
    run: Run
    gflop: float | None = None


@dataclass
class Models:
    """Files of one backbone and one kind of prompt, written when a group first needs them."""

    model: str
    prompt: str
    folder: Path
    full: bool

    def __post_init__(self) -> None:
        self.backbone = make_backbone(NAMES[self.model])
        self.plain, self.prompted = (make_bundle(self.backbone, m) for m in ("none", self.prompt))
        self.gflop = 0.0

    def traced(self, form: str) -> Path:
        """Write what `torch.onnx.export` makes of `unprompted` or `naive`."""
        path = self.folder / f"{form}.onnx"
        if not path.exists():
            trace(self.backbone, self.plain if form == "unprompted" else self.prompted, path)
        return path

    def ours(self, form: str, on: Any) -> Path:
        """Write our graph with some rewrites on."""
        import onnx_ir as ir

        from hgprompt_edge.export.graph.inference import build_graph

        path = self.folder / f"{form}-{on.attention.value}.onnx"
        if not path.exists():
            ir.save(build_graph(self.prompted, self.backbone, on), path)
        return path

    def products(self) -> Path:
        """Write the roofline."""
        path = self.folder / "products.onnx"
        if not path.exists():
            self.gflop = products(self.backbone, self.prompt, path) / 1e9
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
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


def keys(rows: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    return {(row["model"], row["prompt"], row["runtime"], row["precision"]) for row in rows}


def read(path: Path) -> list[dict[str, Any]]:
    """Rows to go on from; those of another CPU or of other versions are not mixed with ours."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    if {key: document.get(key) for key in ("cpu_features", "versions")} != machine():
        sys.exit(f"{path}: measured on another CPU or with other versions; choose another file")
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
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


def measure(models: Models, runtime: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """One group."""
    from hgprompt_edge.export.verify import reference_logits

    size = models.backbone.image_size
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    plain = reference_logits(models.plain, models.backbone, pixels)
    prompted = reference_logits(models.prompted, models.backbone, pixels)
    entries = list(make_entries(models, runtime, precision))
    medians = time_in_turns([entry.run for entry in entries], pixels[:1], rounds)
    by_key = {(e.form, e.runtime, e.precision): t for e, t in zip(entries, medians, strict=True)}
    rows = []
    for entry, median in zip(entries, medians, strict=True):
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


def show(model: str, row: dict[str, Any]) -> None:
    last = f"{row['gflop_per_s']:.0f} GFLOP/s" if "gflop_per_s" in row else ""
    if row["max_abs_diff"] is not None:
        last = f"difference {row['max_abs_diff']:.1e}"
    print(
        f"{model:2} {row['prompt']:7} {row['form']:11} {row['runtime']:13} {row['precision']:5}"
        f"{row['p50_ms']:9.2f} ms  / unprompted {row['ratio_unprompted']:.3f}"
        f"  / naive {row['ratio_naive']:.3f}  {last}",
        flush=True,
    )


def time_in_turns(runs: list[Run], pixels: Any, rounds: int) -> list[float]:
    """Median seconds of each."""
    times = np.zeros((rounds, len(runs)))
    for run in runs:
        run(pixels)
    for index in range(rounds):
        order = np.random.default_rng(index).permutation(len(runs))  # no one always follows another
        for which in order:
            began = time.perf_counter()
            runs[which](pixels)
            times[index, which] = time.perf_counter() - began
    return [float(median) for median in np.median(times, axis=0)]


def make_entries(models: Models, runtime: str, precision: str) -> Iterator[Entry]:
    """Models of a group, and the two that all are compared with."""
    naive = ("onnxruntime", "fp32")
    if (runtime, precision) != naive:
        yield Entry("naive", *naive, in_onnxruntime(models.traced("naive")))
    if runtime in ("pytorch", "torch.compile"):
        yield from pytorch_entries(models, runtime, precision)
        return
    if precision != "fp32":
        run = load(models, models.traced("unprompted"), runtime, "fp32")
        yield Entry("unprompted", runtime, "fp32", run)
    for form, path in files(models, runtime):
        if precision == "int8" and form not in INT8_FORMS[runtime]:
            continue
        gflop = models.gflop if form == "products" else None
        yield Entry(form, runtime, precision, load(models, path, runtime, precision), gflop)


def files(models: Models, runtime: str) -> Iterator[tuple[str, Path]]:
    for form in ("unprompted", "naive"):
        yield form, models.traced(form)
    for form, on, runtimes in steps(models.full):
        if runtime in runtimes:
            yield form, models.ours(form, on)
    yield "products", models.products()


def load(models: Models, path: Path, runtime: str, precision: str) -> Run:
    if precision == "int8":
        path = quantize(path, models.backbone, runtime)
    if runtime == "openvino":
        # As predict does it: where a CPU has AMX, int8 models leave the rest to bfloat16.
        rounded = precision == "bf16" or (precision == "int8" and "amx_bf16" in cpu_features())
        return in_openvino(path, "bf16" if rounded else "f32")
    return in_onnxruntime(path)


def pytorch_entries(models: Models, runtime: str, precision: str) -> Iterator[Entry]:
    """`hgedge` is the prefix form there."""
    import torch

    from hgprompt_edge.backbones.forward import features_prefix, normalize

    prompt = torch.tensor(models.prompted.prompt)
    head = torch.tensor(models.prompted.head_weight).T.contiguous()

    def prefix(images: Any) -> Any:
        x = normalize(images, models.prompted.preprocessing)
        return features_prefix(models.backbone.model, x, prompt) @ head

    forms = {
        "unprompted": token_module(models.backbone, models.plain),
        "naive": token_module(models.backbone, models.prompted),
        "hgedge": prefix,
    }
    for kind in dict.fromkeys(("fp32", precision)):
        for form, module in forms.items():
            if kind == precision or form == "unprompted":
                compiled = runtime == "torch.compile"
                run = in_pytorch(module, compiled=compiled, bf16=kind == "bf16")
                yield Entry(form, runtime, kind, run)


if __name__ == "__main__":
    main()
