"""What a step would gain from weights that the runtime lays out in advance, and what that takes.

    python benchmarks packed_step       # prints, and writes results/packed_step.json

`adapt` turns packing off (`AdaptGraph`). ViT-S/16 at 224 with random weights, one thread; an
inference of the folded model, a step as it is and a packed one in turns. Memory is what loading the
graph and two steps add, in a process for each.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fast.device_models import CLASSES, MODELS, make_site
from fast.speed_report import packed_table
from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from shared.commands import again
from shared.rows import Row, results_file, write_rows
from shared.study import make_parser
from shared.timing import in_turns

RESULTS = results_file("packed_step")
BATCHES, ROUNDS = (1, 4), 21


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    child = parser.parse_args().child
    if child:
        print(memory(Path(child[0]), int(child[1]), packed=child[2] == "packed"))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_site(MODELS[1], Path(folder) / "site").model
        rows = [compare(model, batch) for batch in BATCHES]
    write_rows(RESULTS, rows)
    print(packed_table(rows))


def compare(model: Path, batch: int) -> Row:
    """Time the three in turns, and weigh both steps."""
    folded = OnnxEngine(model.with_name("folded.onnx"), threads=1)
    images = inputs(model, batch)["image"]
    calls: dict[str, Callable[[], Any]] = {"inference": lambda: folded.run(images)}
    for name in ("plain", "packed"):
        calls[name] = step(model, batch, packed=name == "packed")
    inference, *steps = in_turns(calls, ROUNDS).values()
    row: Row = {"batch": batch, "inference_ms": round(1e3 * inference, 1)}
    for name, median in zip(("plain", "packed"), steps, strict=True):
        words = again("packed_step", "--child", str(model), str(batch), name)
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        row |= {f"{name}_ratio": round(median / inference, 2), f"{name}_mb": round(float(printed))}
    return row


def memory(model: Path, batch: int, *, packed: bool) -> float:
    """MB that loading and two steps add to this process."""
    before = resident()
    call = step(model, batch, packed=packed)
    call()
    call()
    return resident() - before


def resident() -> float:
    """Give the MB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def step(model: Path, batch: int, *, packed: bool) -> Callable[[], Any]:
    """Make a step in a session as `AdaptGraph` has it, but for packing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "0" if packed else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(adapt_path(model), options, providers=["CPUExecutionProvider"])
    given = inputs(model, batch)
    return lambda: session.run(None, given)


def inputs(model: Path, batch: int) -> dict[str, Any]:
    """Random images with labels, and the model's own head under the uniform mix."""
    bank = read_bank(bank_path(model))
    classes, width = bank.head.weight.shape
    side = 224  # MODELS[1]
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8),
        "label": np.eye(CLASSES, dtype=np.float32)[np.arange(batch) % classes],
        "mix": np.full(len(bank.names), 1 / len(bank.names), np.float32),
        "head.weight": bank.head.weight,
        "head.bias": bank.head.bias,
        "d_features": np.zeros((1, width), np.float32),
        "backward": np.array(True),
    }


if __name__ == "__main__":
    main()
