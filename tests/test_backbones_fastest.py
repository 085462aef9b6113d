"""Which way of computing is taken: trials of precisions and workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import class_folders, run, small_bank
from small_vits import make_backbone

import hgprompt_edge.backbones.fastest as fastest_module
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.compute import Compute, usable_threads
from hgprompt_edge.backbones.fastest import choose_compute


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], float]:
    """Seconds of a trial by precision and workers, on a machine with four threads."""
    monkeypatch.setattr(fastest_module, "_known", {})
    monkeypatch.setattr(fastest_module, "usable_threads", lambda: 4)
    table: dict[tuple[str, int], float] = {}

    def seconds(_: Backbone, compute: Compute, images: int) -> float:
        assert compute.workers * compute.threads == 4
        assert images == 4 * fastest_module.CPU_IMAGES
        return table.pop((compute.precision, compute.workers))  # each is timed once

    monkeypatch.setattr(fastest_module, "_seconds", seconds)
    products = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(fastest_module, "product_seconds", products.__getitem__)
    return table


@pytest.mark.parametrize(
    ("wide", "half", "narrow", "expected"),
    [
        (1.0, 0.4, 0.2, Compute(precision="bfloat16", workers=4)),
        (1.0, 0.4, 0.6, Compute(precision="bfloat16", threads=4)),
        (1.0, 1.7, 0.9, Compute(precision="float32", workers=4)),
        (1.0, 0.9, 3.0, Compute(precision="float32", threads=4)),  # not clearly faster
    ],
)
def test_what_is_fastest_is_taken(
    backbone: Backbone, timed: dict, wide: float, half: float, narrow: float, expected: Compute
) -> None:
    timed |= {("float32", 1): wide, ("bfloat16", 1): half}
    timed |= {("float32", 4): narrow, ("bfloat16", 4): narrow}
    choice = choose_compute(backbone, "cpu")
    assert choice.compute == expected
    assert choose_compute(backbone, "cpu") is choice  # it is known now
    assert str(choice).startswith(f"computing in {expected.precision} on cpu, ")


def test_emulated_bfloat16_is_not_tried(
    backbone: Backbone, timed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials took 90 s of a fit on a CPU with AVX2."""
    products = {torch.float32: 1.0, torch.bfloat16: 3.0}
    monkeypatch.setattr(fastest_module, "product_seconds", products.__getitem__)
    timed |= {("float32", 1): 1.0, ("float32", 4): 0.9}
    assert choose_compute(backbone, "cpu").compute == Compute(precision="float32", workers=4)


def test_a_precision_that_is_asked_for_is_taken(backbone: Backbone, timed: dict) -> None:
    timed |= {("bfloat16", 1): 9.0, ("bfloat16", 4): 9.0}
    choice = choose_compute(backbone, "cpu", "bfloat16")
    assert choice.compute == Compute(precision="bfloat16", workers=4)
    images = 4 * fastest_module.CPU_IMAGES
    assert str(choice) == (
        f"computing in bfloat16 on cpu, 4 workers of 1 thread: {images / 9:.0f} training images/s"
    )


def test_a_real_trial_leaves_pytorch_as_it_was(backbone: Backbone) -> None:
    before = torch.get_num_threads()
    choice = choose_compute(backbone, "cpu")
    assert choice.images_per_second > 0
    assert choice.compute.workers * choice.compute.threads <= usable_threads()
    assert torch.get_num_threads() == before


def test_fit_says_what_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, bank = class_folders(tmp_path / "images", 4), small_bank(tmp_path / "bank", 1)
    words = ("--device", "cpu", "--precision", "bfloat16", "--steps", "1", "--json")
    result = run("fit", "--sources", str(bank), "--data", str(images), *words)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("computing in")]
    assert len(lines) == 1
    assert lines[0].startswith("computing in bfloat16 on cpu, ")
    assert json.loads(result.stdout)["table"]
