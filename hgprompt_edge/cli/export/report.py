"""What `hgedge export` prints of the files that it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hgprompt_edge.cli.export.choices import Precision
from hgprompt_edge.cli.shared.console import note, out

if TYPE_CHECKING:
    from hgprompt_edge.export.int8.quantize import Int8
    from hgprompt_edge.export.verify import Verification


def print_file(path: Path, checked: Verification, precision: Precision, prompts: int) -> None:
    """Name the model, its size, and how near its logits are to PyTorch's."""
    from hgprompt_edge.runtime.bench import file_bytes

    several = f"{prompts} folded prompts, " if prompts > 1 else ""
    how = "near" if precision is not Precision.FP32 else "equal to"
    out.print(
        f"{path}: {file_bytes(path) / 1e6:.1f} MB, {several}{how} PyTorch on {checked.images} "
        f"images (largest difference {checked.max_abs_diff:.1e}, bound {checked.bound:.1e})",
        soft_wrap=True,
    )


def print_others(path: Path, runtime: bool, adapt: bool) -> None:
    """Name what was written beside the model, which has to go with it."""
    from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank

    if runtime:
        bank = bank_path(path)
        size = bank.stat().st_size / 1e6
        content = read_bank(bank)
        mixes = f"what the device mixes: {', '.join(content.names)}"
        what = mixes if content.mixer else "the head, which the device can move"
        out.print(f"{bank}: {size:.1f} MB, {what}", soft_wrap=True)
    if adapt:
        graph = adapt_path(path)
        size = graph.stat().st_size / 1e6
        out.print(f"{graph}: {size:.1f} MB, its gradient equal to PyTorch's", soft_wrap=True)


def int8_document(result: Int8) -> dict[str, Any]:
    """Make the part of the JSON document that is about int8."""
    test = result.test and vars(result.test) | {"images": result.test_images}
    return {
        "images": result.images,
        "accuracy_fp32": result.float_accuracy,
        "tried": [vars(trial) for trial in result.tried],
        "proven": result.proven,
        "images_needed": result.needed,
        "test": test,
    }


def print_trials(result: Int8, max_drop: float) -> None:
    """Print the int8 schemes that were tried, and what each changes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("int8 scheme")
    table.add_column(f"{result.images} held-out images", justify="right")
    table.add_column("change (90 % interval)", justify="right")
    table.add_row("(float32)", f"{100 * result.float_accuracy:.1f} %", "")
    tests = [result.test] if result.test else []
    for trial in [*result.tried, *([result.bf16] if result.bf16 else []), *tests]:
        name = f"{result.test_images} test images" if trial is result.test else trial.scheme
        table.add_row(name, f"{100 * trial.accuracy:.1f} %", trial.change)
    out.print(table)
    if not result.proven:
        would = f"about {result.needed:,}" if result.needed else "no number of"
        note(
            f"not proven to keep within --max-drop {max_drop:g} on so few images; {would} images "
            "would decide"
        )
