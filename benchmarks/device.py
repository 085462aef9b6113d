"""Measure what a device needs: memory, one core, import time, the size of an install, one step.

    python benchmarks/device.py                 # all of it, into benchmarks/results/device.json
    python benchmarks/device.py --caps          # only: does it run in 512 MB (ViT-S: 1 GB)? exit 1
    python benchmarks/device.py --wheels        # only: are there wheels for aarch64? exit 1

Commands run in processes of their own. Models have the backbone `tiny`, and a ViT-S/16 at 224 with
random weights; heads are random, since nothing here depends on them.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import venv
from functools import partial
from importlib.metadata import requires
from pathlib import Path

import numpy as np

from fast.device_models import CLASSES, MODELS, Site, make_site
from hgprompt_edge.runtime.cpu import cpu_features
from shared.commands import hgedge
from shared.pages import ROOT
from shared.rows import Rows, results_file
from shared.study import make_parser
from shared.timing import in_turns, timed

RESULTS = results_file("device")
CAPS = dict(zip(MODELS, (512, 1024), strict=True))
"""Megabytes of address space that `predict` and `adapt` must do with, on one core."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""What a board with glibc 2.28 takes; pip does not know that older ones are among them."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--caps", action="store_true")
    parser.add_argument("--wheels", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.wheels:
        sys.exit(check_wheels())
    with tempfile.TemporaryDirectory() as folder:
        sites = {name: make_site(name, Path(folder) / name) for name in MODELS}
        capped = [row for name, site in sites.items() for row in run_capped(name, site)]
        if options.caps:
            sys.exit(any("failed" in row for row in capped))
        found = {
            "cpu_features": list(cpu_features()),
            "capped": capped,
            "memory": [row for name, site in sites.items() for row in run_free(name, site)],
            "import": import_seconds(),
            "step": [step_ratio(sites[MODELS[1]], batch, options.rounds) for batch in (1, 4)],
            "mixing_ms": mixing_ms(sites[MODELS[1]]),
            "environment_mb": environment_mb(),
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def commands(site: Site, state: str) -> dict[str, tuple[str, ...]]:
    """Both commands; `adapt` with a state folder of that name."""
    model = ("--model", str(site.model), "--threads", "1")
    adapt = ("adapt", *model, "--data", str(site.seen), "--steps", "2")
    adapt = (*adapt, "--state", str(site.model.with_name(state)))
    return {"predict": ("predict", *model, str(site.image)), "adapt": adapt}


def run_capped(name: str, site: Site) -> Rows:
    """Run both commands on one core with so much address space."""

    def cap() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        limit = CAPS[name] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    rows = []
    for command, words in commands(site, "capped").items():
        done = hgedge(*words, before=cap)
        row = {
            "model": name,
            "command": command,
            "cap_mb": CAPS[name],
            "exit_code": done.code,
            "peak_mb": round(done.peak / 2**20, 1),
            "seconds": round(done.seconds, 2),
        }
        rows.append(row | ({"failed": done.failure} if done.failure else {}))
        print(*rows[-1].values())
    return rows


def run_free(name: str, site: Site) -> Rows:
    """Peak memory of both commands without a cap, the median of three."""
    peaks: dict[str, list[float]] = {}
    for turn in range(3):
        for command, words in commands(site, f"free-{turn}").items():
            peaks.setdefault(command, []).append(round(hgedge(*words).peak / 2**20, 1))
    return [
        {"model": name, "command": command, "peak_mb": statistics.median(found)}
        for command, found in peaks.items()
    ]


def import_seconds() -> dict[str, float]:
    """Median seconds that the device layer takes to import beyond numpy and onnxruntime."""
    code = (
        "import time, numpy, onnxruntime; s = time.perf_counter(); import {}; "
        "print(time.perf_counter() - s)"
    )
    found = {}
    for module in (
        "hgprompt_edge.runtime.predictor",
        "hgprompt_edge.adapt.model",
    ):
        runs = [
            float(subprocess.check_output([sys.executable, "-c", code.format(module)]))
            for _ in range(7)
        ]
        found[module] = round(statistics.median(runs), 3)
    return found


def step_ratio(site: Site, batch: int, rounds: int) -> dict[str, float]:
    """Time a step, and a pass forwards alone, beside an inference of the folded model, in turns."""
    from hgprompt_edge.adapt.gradient import AdaptGraph
    from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank
    from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine

    bank = read_bank(bank_path(site.model))
    graph = AdaptGraph(adapt_path(site.model), bank, threads=1, micro_batch=batch)
    folded = OnnxEngine(site.model.with_name("folded.onnx"), threads=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, graph.side, graph.side, 3), dtype=np.uint8)
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(batch) % CLASSES]
    mix = np.full(len(bank.names), 1 / len(bank.names))
    calls = {
        "inference": lambda: folded.run(images),
        "forward": lambda: graph.forward(images, mix),
        "step": lambda: graph(images, labels, mix),
    }
    inference, forward, step = in_turns(calls, rounds).values()
    return {
        "batch": batch,
        "inference_ms": round(1e3 * inference, 2),
        "forward_ms": round(1e3 * forward, 2),
        "step_ms": round(1e3 * step, 2),
        "ratio": round(step / inference, 3),
    }


def mixing_ms(site: Site) -> float:
    """Median milliseconds from new weights to the keys and values of a running predictor."""
    from hgprompt_edge.runtime.predictor import Predictor

    predictor = Predictor(site.model, threads=1)
    drawn = list(np.random.default_rng(0).dirichlet(np.ones(8), size=50))
    runs = [timed(partial(predictor.set_weights, weights))[0] for weights in drawn]
    return round(1e3 * statistics.median(runs), 2)


def environment_mb() -> dict[str, float]:
    """Size of the base install in a new environment, without pip and setuptools."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT)], check=True)
        site = next((Path(folder) / "lib").glob("python*/site-packages"))
        sizes = {
            path.name: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 2**20
            for path in site.iterdir()
            if path.is_dir() and not path.name.startswith(("pip", "setuptools", "_distutils"))
        }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    return {"all": round(sum(sizes.values()), 1)} | {n: round(sizes[n], 1) for n in largest}


def check_wheels() -> int:
    """Download the base dependencies as wheels for aarch64; 0 where all of them exist."""
    needed = [line for line in requires("hgprompt-edge") or () if "extra ==" not in line]
    with tempfile.TemporaryDirectory() as folder:
        platforms = (f"--platform={name}_aarch64" for name in PLATFORMS)
        words = ("download", "-q", "--only-binary=:all:", "--python-version=3.11", "-d", folder)
        command = [sys.executable, "-m", "pip", *words, *platforms, *needed]
        code = subprocess.run(command).returncode
        print(f"{len(list(Path(folder).iterdir()))} wheels for aarch64, exit code {code}")
    return code


if __name__ == "__main__":
    main()
