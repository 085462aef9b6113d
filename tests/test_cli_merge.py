"""`hgedge merge`: from files that devices sent to a bundle that exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from small_vits import make_bundle

from hgprompt_edge.artifacts.bank_entries import bank_sha256
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.state.history import Version
from hgprompt_edge.state.update_file import write_update


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle `pets.hgbundle`, and `sent/` with what four devices learned, one of them broken."""
    monkeypatch.chdir(tmp_path)
    backbone = load_backbone("tiny")
    tokens = np.random.default_rng(3).normal(size=(2, backbone.depth, 4, backbone.embed_dim))
    fitted = replace(make_bundle(backbone, "deep"), source_tokens=tokens.astype(np.float16))
    write_bundle(tmp_path / "pets.hgbundle", fitted)
    (tmp_path / "sent").mkdir()
    for number, first in enumerate((0.6, 0.62, 0.64, 0.0)):
        send(tmp_path / "sent" / f"device{number}.json", fitted, [first, 1 - first])
    return fitted


def send(path: Path, bundle: Bundle, weights: list[float], bias: list[float] | None = None) -> None:
    mix = np.array(weights, np.float32)
    moved = None if bias is None else np.array(bias, np.float32)
    version = Version(2, 1, 5.0, "labelled", mix, None, moved, 20, {})
    write_update(path, version, bank_sha256(bundle), classes=bundle.classes)


def test_what_devices_sent_becomes_a_bundle_that_exports(fleet: Bundle, tmp_path: Path) -> None:
    result = run("merge", "sent")
    assert result.exit_code == 0, result.stderr
    assert "merging into pets.hgbundle, the newest bundle here" in result.stderr
    assert "left out sent/device3.json: too far from what most" in result.stderr
    assert "0.620" in result.stdout
    assert "pets.merged.hgbundle: the mix of 3 devices, 60 images" in result.stdout
    assert "next: hgedge export pets.merged.hgbundle\n" in result.stdout
    assert "head's bias" not in result.stderr
    merged = read_bundle(tmp_path / "pets.merged.hgbundle")
    assert merged.initial is not None
    np.testing.assert_allclose(merged.initial, [0.62, 0.38], rtol=1e-6)
    assert merged.objective["merged"] == {"devices": 3, "left_out": 1, "images": 60}
    exported = run("export", "pets.merged.hgbundle")
    assert exported.exit_code == 0, exported.stderr
    assert run("verify", "pets.merged.onnx").exit_code == 0


def test_json_names_each_files_share_and_merging_again_keeps_the_name(fleet: Bundle) -> None:
    (Path("sent") / "cut.json").write_text('{"format"')
    for _ in range(2):  # the second time into the bundle of the first
        result = run("merge", "sent", "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["bundle"] == "pets.merged.hgbundle"
        assert document["folded"] is True
        assert document["shares"]["sent/device3.json"] == 0
        assert sum(document["shares"].values()) == pytest.approx(1)
        assert "sent/cut.json: truncated" in document["refused"][0]
    assert document["left_out"] == 2


def test_a_bundle_without_a_prompt_says_where_the_mix_goes(fleet: Bundle, tmp_path: Path) -> None:
    plain = replace(fleet, choice="none", prompt=None)
    write_bundle(tmp_path / "plain.hgbundle", plain)
    send(tmp_path / "one.json", plain, [0.5, 0.25, 0.25], [0.1] * len(plain.classes))
    result = run("merge", "one.json", "--bundle", "plain.hgbundle", "-o", "new.hgbundle")
    assert result.exit_code == 0, result.stderr
    assert "fitted to no prompt, so only models exported with --adapt use the mix" in result.stderr
    assert "next: hgedge export new.hgbundle --adapt" in result.stdout
    assert (
        "some devices also changed the bias of their head; only the mix is merged" in result.stderr
    )
    assert read_bundle(tmp_path / "new.hgbundle").prompt is None
