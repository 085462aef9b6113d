"""Measure what a device needs: memory, one core, import time, the size of an install, one step.

    python benchmarks/device.py                 # all of it, into benchmarks/results/device.json
    python benchmarks/device.py --caps          # only: does it run in 512 MB (ViT-S: 1 GB)? exit 1
    python benchmarks/device.py --wheels        # only: are there wheels for aarch64? exit 1

Commands run in processes of their own. Models have the backbone `tiny`, and a ViT-S/16 at 224 with
random weights; heads are random, since nothing here depends on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hgprompt_edge.runtime.cpu import cpu_features

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "device.json"
HGEDGE = (sys.executable, "-m", "hgprompt_edge.cli.main")
CAPS = {"tiny": 512, "vit_small_patch16_224": 1024}
"""Megabytes of address space that `predict` and `adapt` must do with, on one core."""
CLASSES, IMAGES = 4, 12
MODELS = tuple(CAPS)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""What a board with glibc 2.28 takes; pip does not know that older ones are among them."""
MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, peak / 1024, done.stderr]))
"""
"""Runs a command from a small process: a child's peak starts at that of its parent."""


@dataclass(frozen=True)
class Site:
    """A folder with an exported model and images that a device has seen."""

    model: Path
    seen: Path
    image: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
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


def make_site(name: str, folder: Path) -> Site:
    """Export a model with its bank and its gradient, and save images into class folders."""
    import torch

    from hgprompt_edge import export_onnx, load_backbone, read_bank
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import wrap_backbone
    from hgprompt_edge.export.verify import reference_logits

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name == "tiny":
        backbone = load_backbone(name)
        tokens = read_bank(name).tokens
    else:
        import timm

        backbone = wrap_backbone(name, timm.create_model(name, num_classes=0))
        shape = (8, backbone.depth, 50, backbone.embed_dim)
        tokens = rng.normal(size=shape).astype(np.float32)
    side = backbone.image_size
    probe = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    bundle = Bundle(
        task=name,
        classes=tuple(f"class-{i}" for i in range(CLASSES)),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        preprocessing=backbone.preprocessing,
        mode="deep",
        pooling=backbone.pooling,
        choice="best_source",
        prompt=tokens[0],
        weights=np.eye(len(tokens), dtype=np.float32)[0],
        learned_weights=np.eye(len(tokens), dtype=np.float32)[0],
        head_weight=rng.normal(size=(CLASSES, backbone.embed_dim)).astype(np.float32),
        head_bias=np.zeros(CLASSES, np.float32),
        sources=tuple({"name": f"source-{i}", "sha256": ""} for i in range(len(tokens))),
        table=(),
        objective={},
        probe_images=probe,
        probe_logits=np.zeros((0, CLASSES), np.float32),
        source_tokens=tokens.astype(np.float16),
    )
    bundle = replace(bundle, probe_logits=reference_logits(bundle, backbone, probe))
    folder.mkdir()
    export_onnx(bundle, backbone, folder / "folded.onnx")
    export_onnx(bundle, backbone, folder / "m.onnx", runtime_weights=True, adapt=True)
    for index in range(IMAGES):
        place = folder / "seen" / f"class-{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return Site(folder / "m.onnx", folder / "seen", place / f"{index}.png")


def commands(site: Site) -> dict[str, tuple[str, ...]]:
    model = ("--model", str(site.model), "--threads", "1")
    adapt = ("adapt", *model, "--data", str(site.seen), "--steps", "2")
    return {"predict": ("predict", *model, str(site.image)), "adapt": adapt}


def run_capped(name: str, site: Site) -> list[dict[str, Any]]:
    """Run both commands on one core with so much address space."""

    def cap() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        limit = CAPS[name] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    rows = []
    for command, words in commands(site).items():
        code, peak, seconds, said = run(words, site.model.with_name("capped"), cap)
        rows.append(
            {"model": name, "command": command, "cap_mb": CAPS[name], "exit_code": code,
             "peak_mb": peak, "seconds": seconds, **({"failed": said} if said else {})}
        )  # fmt: skip
        print(f"{name} {command} in {CAPS[name]} MB: exit code {code}, peak {peak} MB {said}")
    return rows


def run_free(name: str, site: Site) -> list[dict[str, Any]]:
    """Peak memory of both commands without a cap, the median of three."""
    rows = []
    for command, words in commands(site).items():
        peaks = [run(words, site.model.with_name(f"free-{i}"))[1] for i in range(3)]
        rows.append({"model": name, "command": command, "peak_mb": statistics.median(peaks)})
    return rows


def run(
    words: Sequence[str], state: Path, before: Callable[[], None] | None = None
) -> tuple[int, float, float, str]:
    """Exit code, peak memory in MB, seconds, and what a failed command said, else nothing."""
    command = words[0]
    words = (*HGEDGE, *words, *(("--state", str(state)) if command == "adapt" else ()))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=before,
    )
    code, peak, said = json.loads(done.stdout)
    seconds = round(time.perf_counter() - began, 2)
    return code, round(peak, 1), seconds, failure(command, code, said)


def failure(command: str, code: int, said: str) -> str:
    """Return what a failed command said last, or its exit code; nothing of one that did its work.

    Exit code 1 is that of adapt's guard, and of Python for any exception.
    """
    raised = "Traceback" in said or "this is a bug" in said
    if code == 0 or (command == "adapt" and code == 1 and not raised):
        return ""
    return said[-300:].strip() or f"exit code {code}"


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
    seconds: dict[str, list[float]] = {"inference": [], "forward": [], "step": []}
    for _ in range(rounds + 2):
        for name, call in (
            ("inference", lambda: folded.run(images)),
            ("forward", lambda: graph.forward(images, mix)),
            ("step", lambda: graph(images, labels, mix)),
        ):
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    inference, forward, step = (statistics.median(taken[2:]) for taken in seconds.values())
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
    rng, runs = np.random.default_rng(0), []
    for _ in range(50):
        weights = rng.dirichlet(np.ones(8))
        began = time.perf_counter()
        predictor.set_weights(weights)
        runs.append(time.perf_counter() - began)
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
