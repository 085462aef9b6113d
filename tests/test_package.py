"""What is shipped: both links, the backbone and the bank are in the wheel; the bank is worth it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.prompts import bundled_bank

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_holds_cli_export_backbone_and_bank(tmp_path: Path) -> None:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("cli/main.py", "export/graph.py", "py.typed", "bundled/backbone.safetensors"):
        assert f"hgprompt_edge/{name}" in names
    for path in bundled_bank().iterdir():
        assert f"hgprompt_edge/bundled/bank/{path.name}" in names


def test_the_bundled_bank_fits_the_bundled_backbone() -> None:
    bank, backbone = read_bank("bundled"), load_backbone("bundled")
    assert bank.backbone == "bundled"
    assert bank.backbone_sha256 == backbone.sha256
    assert bank.matched == ()  # one start for all
    assert not {prompt.family for prompt in bank.prompts} & {"flowers", "texture", "weather"}


def test_each_bundled_prompt_beats_the_unprompted_backbone_by_its_standard_error() -> None:
    for prompt in read_bank("bundled").prompts:
        assert prompt.test_accuracy is not None
        assert prompt.test_accuracy_unprompted is not None
        gain = prompt.test_accuracy - prompt.test_accuracy_unprompted
        assert gain > prompt.recipe["test_standard_error"], prompt.name


def test_the_banks_readme_says_what_the_files_say() -> None:
    text = (bundled_bank() / "README.md").read_text()
    for prompt in read_bank("bundled").prompts:
        assert f"| {prompt.name} |" in text
        assert f"{100 * prompt.test_accuracy:.1f} %" in text
