"""Print the tables of docs/results/benchmarks.md from the rows of `export*.py`.

python benchmarks/export_report.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import read_rows

RESULTS = Path(__file__).parent / "results"
FORMS = {
    "unprompted": "`unprompted`",
    "naive": "`naive`",
    "folded": "`folded`: constant keys and values (shallow: tokens in the sequence)",
    "+class_row": "+ last block on the class token",
    "+affine": "+ scales and biases of norms in the next matrix",
    "+biases": "+ no key and value biases",
    "+absorbed": "+ key and value projections of the last block absorbed",
    "+joined": "+ one product for queries, keys and values (not used)",
    "+fused": "onnxruntime's MultiHeadAttention instead (not used)",
    "+standard": "Attention of opset 23, prefix joined before (not used in OpenVINO)",
    "hgedge": "**`hgedge`**: Attention of opset 23; in OpenVINO the prefix as past keys and values",
    "products": "the products with constant matrices alone",
}
MODELS = {"Ti": "vit_tiny_patch16_224", "S": "vit_small_patch16_224", "B": "vit_base_patch16_224"}
COLUMNS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
PYTORCH = tuple((r, p) for r in ("pytorch", "torch.compile") for p in ("fp32", "bf16"))
Rows = list[dict[str, Any]]


def main() -> None:
    rows: Rows = json.loads((RESULTS / "export.json").read_text())["rows"]
    for prompt in ("deep", "shallow"):
        print(f"\nViT-S, {prompt} prompt: / unprompted, / naive\n")
        print("\n".join(table(rows, [("S", form) for form in FORMS], prompt, COLUMNS)))
    forms = ("unprompted", "naive", "folded", "hgedge", "products")
    for columns, taken in ((COLUMNS, forms), (PYTORCH, ("unprompted", "naive", "hgedge"))):
        for prompt in ("deep", "shallow"):
            print(f"\n{prompt} prompt: / unprompted, / naive\n")
            keys = [(model, form) for model in MODELS for form in taken]
            print("\n".join(table(rows, keys, prompt, columns)))
    print("\nroofline, deep\n")
    print("\n".join(roofline(rows)))
    print("\naccuracy\n")
    print("\n".join(accuracies(read_rows(RESULTS / "export_accuracy.json"))))
    print("\nmemory\n")
    print("\n".join(memory(read_rows(RESULTS / "export_memory.json"))))


def table(
    rows: Rows, keys: list[tuple[str, str]], prompt: str, columns: tuple[tuple[str, str], ...]
) -> Iterator[str]:
    several = len({model for model, _ in keys}) > 1
    found = {
        (row["model"], row["form"], row["runtime"], row["precision"]): row
        for row in rows
        if row["prompt"] == prompt
    }
    yield f"| form | {' | '.join(' '.join(column) for column in columns)} |"
    yield "| --- " * (len(columns) + 1) + "|"
    for model, form in keys:
        cells = [found.get((MODELS[model], form, *column)) for column in columns]
        if any(cells):
            texts = [
                f"{row['ratio_unprompted']:.3f}, {row['ratio_naive']:.3f}" if row else ""
                for row in cells
            ]
            name = f"{model}, `{form}`" if several else FORMS[form]
            yield f"| {name} | {' | '.join(texts)} |"


def roofline(rows: Rows) -> Iterator[str]:
    yield "| | runtime | `hgedge` | its products alone | GFLOP/s of these | `hgedge` over them |"
    yield "| --- " * 6 + "|"
    for model, name in MODELS.items():
        for column in COLUMNS:
            group = {
                row["form"]: row
                for row in rows
                if (row["model"], row["prompt"], row["runtime"], row["precision"])
                == (name, "deep", *column)
            }
            ours, floor = group["hgedge"], group["products"]
            yield (
                f"| {model} | {' '.join(column)} | {ours['p50_ms']:.1f} ms | "
                f"{floor['p50_ms']:.1f} ms | {floor['gflop_per_s']:.0f} | "
                f"{ours['p50_ms'] / floor['p50_ms']:.2f} |"
            )


def accuracies(rows: Rows) -> Iterator[str]:
    yield "| task, prompt | " + " | ".join(" ".join(column) for column in COLUMNS) + " |"
    yield "| --- " * (len(COLUMNS) + 1) + "|"
    for task, prompt, method in dict.fromkeys((r["task"], r["prompt"], r["method"]) for r in rows):
        cells = []
        for column in COLUMNS:
            for row in rows:
                if (row["task"], row["prompt"], row["runtime"], row["precision"]) == (
                    task,
                    prompt,
                    *column,
                ):
                    text = f"{row['test_accuracy']:.2f}"
                    if row["precision"] != "fp32":
                        text += f" ({0 - row['drop']:+.2f})"
                    cells.append(text)
        kept = f"kept ({method})" if prompt == "kept" else prompt
        yield f"| {task}, {kept} | {' | '.join(cells)} |"


def memory(rows: Rows) -> Iterator[str]:
    yield "| model, form | runtime | on disk | peak, median | lowest | median over `unprompted` |"
    yield "| --- " * 6 + "|"
    for row in rows:
        yield (
            f"| {row['model']}, `{row['form']}` | {row['runtime']} {row['precision']} | "
            f"{row['file_mb']} MB | {row['peak_mb']} MB | {row['lowest_mb']} MB | "
            f"{row['over_unprompted_mb']:+.1f} MB |"
        )


if __name__ == "__main__":
    main()
