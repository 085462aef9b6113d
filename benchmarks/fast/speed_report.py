"""docs/results/benchmarks.md from the rows of the scripts about time and memory.

python benchmarks speed_report
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.pages import fill, line, table, write_page
from shared.rows import Row, Rows, read_rows, results_file, select
from shared.study import make_parser

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
TARGETS = (
    *(("deep", runtime, p) for p in ("fp32", "int8") for runtime in ("onnxruntime", "openvino")),
    *(("shallow", runtime, "fp32") for runtime in ("onnxruntime", "openvino")),
)
"""Kinds of prompt, runtimes and precisions for which ViT-S has targets."""
MAIN_FORMS = ("unprompted", "naive", "folded", "hgedge", "products")
HEADS = [" ".join(column) for column in COLUMNS]


def main() -> None:
    make_parser(__doc__).parse_args()
    write_page("benchmarks", report())


def report() -> str:
    """Make the page."""
    device = json.loads(results_file("device").read_text())
    adapted = read_rows(results_file("adapt"))
    return fill(
        "benchmarks",
        fit=fit_table(read_rows(results_file("fit"))),
        **export_figures(read_export("export")),
        **amx_figures(read_export("export_amx")),
        schemes=schemes_table(read_rows(results_file("export_int8"))),
        one_at_a_time=one_at_a_time(read_rows(results_file("int8_batch"))),
        accuracy=accuracy_table(read_rows(results_file("export_accuracy"))),
        memory=memory_table(read_rows(results_file("export_memory"))),
        formats=formats_table(read_rows(results_file("device_formats"))),
        evaluate=evaluate_table(read_rows(results_file("evaluate"))),
        **device_figures(device),
        adapt_peak=f"{max(row['peak_rss_mb'] or 0 for row in adapted):.0f}",
        packed=packed_table(read_rows(results_file("packed_step"))),
    )


def read_export(name: str) -> Rows:
    """Rows of `export.py`, whose file also says on which machine."""
    rows: Rows = json.loads(results_file(name).read_text())["rows"]
    return rows


def fit_table(rows: Rows) -> str:
    heads = ("sources", "fit, empty cache", "for each source", "fit, warm cache")
    return table(
        (*heads, "optimisation, cached features", "export", "peak memory"),
        (
            (
                row["sources"],
                f"{row['cold_s']:.1f} s",
                f"{row['cold_s'] / row['sources']:.2f} s",
                f"{row['warm_s']:.1f} s",
                f"{row['optimisation_s']:.2f} s",
                f"{row['export_s']:.1f} s",
                f"{row['peak_mb']:.0f} MB",
            )
            for row in rows
        ),
    )


def export_figures(rows: Rows) -> dict[str, str]:
    found = {}
    for prompt in ("deep", "shallow"):
        mine = select(rows, prompt=prompt)
        small = select(mine, model=MODELS["S"])
        body = ((title, *ratios(small, form, COLUMNS)) for form, title in FORMS.items())
        found[f"steps_{prompt}"] = table(("form", *HEADS), body)
        found[f"all_{prompt}"] = table(("form", *HEADS), by_model(mine, MAIN_FORMS, COLUMNS))
        forms = ("unprompted", "naive", "hgedge")
        heads = ("form", *(" ".join(column) for column in PYTORCH))
        found[f"pytorch_{prompt}"] = table(heads, by_model(mine, forms, PYTORCH))
    for prompt, runtime, precision in TARGETS:
        group = select(rows, prompt=prompt, model=MODELS["S"])
        (text,) = ratios(group, "hgedge", [(runtime, precision)])
        found[f"{prompt}_{runtime}_{precision}"] = text
    exact = [row for row in select(rows, precision="fp32") if row["max_abs_diff"] is not None]
    worst = max(exact, key=lambda row: row["max_abs_diff"] / row["max_abs_logit"])
    return found | {
        "roofline": roofline(select(rows, prompt="deep")),
        "largest": f"{max(row['max_abs_diff'] for row in exact):.1e}",
        "worst": f"{worst['max_abs_diff']:.1e}",
        "worst_logit": f"{worst['max_abs_logit']:.0f}",
        "allowed": f"{1e-4 * worst['max_abs_logit']:.1e}",
    }


def ratios(rows: Rows, form: str, columns: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Ratios of a form to `unprompted` and `naive`, a cell a column; empty where it was not run."""
    for runtime, precision in columns:
        found = select(rows, form=form, runtime=runtime, precision=precision)
        yield ", ".join(f"{r['ratio_unprompted']:.3f}, {r['ratio_naive']:.3f}" for r in found)


def by_model(
    rows: Rows, forms: Sequence[str], columns: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, ...]]:
    for short, name in MODELS.items():
        mine = select(rows, model=name)
        for form in forms:
            yield f"{short}, `{form}`", *ratios(mine, form, columns)


def roofline(rows: Rows) -> str:
    body = []
    for short, name in MODELS.items():
        for runtime, precision in COLUMNS:
            group = select(rows, model=name, runtime=runtime, precision=precision)
            (ours,), (floor,) = (select(group, form=form) for form in ("hgedge", "products"))
            times = [f"{row['p50_ms']:.1f} ms" for row in (ours, floor)]
            over = f"{ours['p50_ms'] / floor['p50_ms']:.2f}"
            column = f"{runtime} {precision}"
            body.append((short, column, *times, f"{floor['gflop_per_s']:.0f}", over))
    heads = ("", "runtime", "`hgedge`", "its products alone", "GFLOP/s of these")
    return table((*heads, "`hgedge` over them"), body)


def amx_figures(rows: Rows) -> dict[str, str]:
    """Lines of the table for a CPU with AMX, whose targets stand in the text."""

    def named(prompt: str, form: str) -> str:
        title = "**`hgedge`**" if form == "hgedge" else f"`{form}`"
        return line((f"{prompt}, {title}", *ratios(select(rows, prompt=prompt), form, COLUMNS)))

    return {
        "amx_deep": "\n".join(named("deep", form) for form in MAIN_FORMS),
        "amx_shallow": named("shallow", "hgedge"),
    }


def schemes_table(rows: Rows) -> str:
    body = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        cells = [select(rows, scheme=scheme, rest=rest)[0] for rest in ("f32", "bf16")]
        texts = (f"{row['ratio_unprompted']:.3f}, {row['ratio_naive']:.3f}" for row in cells)
        body.append((scheme, *texts))
    heads = ("scheme, in the order in which export tries them", "rest in float32")
    return table((*heads, "rest in bfloat16"), body)


def one_at_a_time(rows: Rows) -> str:
    tiny, small = (row["ratio"] for row in select(rows, how="dynamic, one at a time"))
    return f"{tiny:.2f} times with `tiny`, {small:.2f} with `dinov2-small`"


def accuracy_table(rows: Rows) -> str:
    columns = (*COLUMNS, ("openvino", "int8 and bf16"))
    body = []
    for task, prompt, method in dict.fromkeys((r["task"], r["prompt"], r["method"]) for r in rows):
        cells = []
        for runtime, precision in columns:
            group = select(rows, task=task, prompt=prompt, runtime=runtime, precision=precision)
            cells.append("".join(map(accuracy, group)))
        body.append(
            (f"{task}, kept ({method})" if prompt == "kept" else f"{task}, uniform", *cells)
        )
    return table(("task, prompt", *(" ".join(column) for column in columns)), body)


def accuracy(row: Row) -> str:
    change = "" if row["precision"] == "fp32" else f" ({0 - row['drop']:+.2f})"
    return f"{row['test_accuracy']:.2f}{change}"


def memory_table(rows: Rows) -> str:
    heads = ("model, form", "runtime", "on disk", "peak, median", "lowest")
    return table(
        (*heads, "median over `unprompted`"),
        (
            (
                f"{row['model']}, `{row['form']}`",
                f"{row['runtime']} {row['precision']}",
                *(f"{row[key]} MB" for key in ("file_mb", "peak_mb", "lowest_mb")),
                f"{row['over_unprompted_mb']:+.1f} MB",
            )
            for row in rows
        ),
    )


def formats_table(rows: Rows) -> str:
    heads = ("runtime", "batch 1", "batch 8")
    return table(
        heads,
        (
            (
                f"{row['runtime']} {row['precision']}",
                *(
                    "{:.3f} ({:.3f} to {:.3f})".format(
                        row[f"ratio_{batch}"], *row[f"quartiles_{batch}"]
                    )
                    for batch in (1, 8)
                ),
            )
            for row in rows
        ),
    )


def evaluate_table(rows: Rows) -> str:
    heads = ("images", "`evaluate` by `predict`, processor time", "on the clock")
    return table(
        (*heads, "peak memory of `predict`", "of `evaluate`"),
        (
            (
                f"{row['images']:,}",
                *(f"{row[key]:.2f}" for key in ("processor_ratio", "ratio")),
                *(f"{row[command]['peak_mb']:.0f} MB" for command in ("predict", "evaluate")),
            )
            for row in rows
        ),
    )


def device_figures(found: dict[str, Any]) -> dict[str, str]:
    """Figures of `device.py`: memory by model and command, and those of the second table."""
    figures = {}
    for model, title in (("tiny", "tiny"), (MODELS["S"], "small")):
        for command in ("predict", "adapt"):
            (free,) = select(found["memory"], model=model, command=command)
            (capped,) = select(found["capped"], model=model, command=command)
            figures[f"{title}_{command}"] = (
                f"{free['peak_mb']:.0f} MB | {capped['cap_mb']} MB: exit code "
                f"{capped['exit_code']}, {capped['peak_mb']:.0f} MB"
            )
    first, _ = steps = found["step"]
    sizes = found["environment_mb"]
    numpy = sum(size for name, size in sizes.items() if name.startswith("numpy"))
    return figures | {
        "import": f"{[*found['import'].values()][-1]:.2f}",
        "environment": f"{sizes['all']:.0f}",
        "parts": f"onnxruntime {sizes['onnxruntime']:.0f}, numpy {numpy:.0f}",
        "mixing": f"{found['mixing_ms']:.1f}",
        "steps": ", ".join(f"{row['ratio']:.2f}" for row in steps),
        "forward": ", ".join(f"{row['forward_ms'] / row['inference_ms']:.2f}" for row in steps),
        "step_ms": f"{first['step_ms']:.0f}",
        "forward_ms": f"{first['forward_ms']:.0f}",
        "inference_ms": f"{first['inference_ms']:.0f}",
    }


def packed_table(rows: Rows) -> str:
    heads = ("batch", "inference", "a step as it is", "packed", "memory of the session", "packed")
    return table(
        heads,
        (
            (
                row["batch"],
                f"{row['inference_ms']} ms",
                *(f"{row[f'{name}_ratio']:.2f}" for name in ("plain", "packed")),
                *(f"{row[f'{name}_mb']} MB" for name in ("plain", "packed")),
            )
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
