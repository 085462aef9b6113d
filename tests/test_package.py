"""What is shipped: code in one wheel, weights in the other; each bank is worth it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hgprompt_edge import load_backbone, models, read_bank

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheels_hold_code_without_weights_and_weights_without_code(tmp_path: Path) -> None:
    code = built(ROOT, tmp_path / "code")
    for name in ("cli/main.py", "export/graph/inference.py", "py.typed"):
        assert f"hgprompt_edge/{name}" in names_in(code)
    assert code.stat().st_size < 1_000_000
    assert not [name for name in names_in(code) if name.endswith(".safetensors")]
    data = built(ROOT / "models", tmp_path / "data")
    assert data.stat().st_size < 60_000_000
    folder = models.models_folder()
    wanted = {str(path.relative_to(folder)) for path in folder.glob("[!_]*/**/*") if path.is_file()}
    assert {f"hgprompt_edge_models/{name}" for name in wanted} <= names_in(data)
    assert [name for name in names_in(data) if name.endswith(".py")] == [
        "hgprompt_edge_models/__init__.py"
    ]


def built(project: Path, folder: Path) -> Path:
    """Build the wheel of a project."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(project)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("name", models.NAMES)
def test_a_bundled_bank_fits_its_backbone(name: str) -> None:
    bank, backbone = read_bank(name), load_backbone(name)
    assert bank.backbone == name
    assert bank.backbone_sha256 == backbone.sha256
    assert bank.image_size == backbone.image_size
    assert bank.matched == ()  # one start for all
    for prompt in bank.prompts:
        worth, without = prompt.test_accuracy, prompt.test_accuracy_unprompted
        assert worth is not None
        assert without is not None
        if name == models.DEFAULT:  # one that does not surely gain is not shipped
            assert worth - without > 1.96 * prompt.recipe["test_standard_error"]
            assert prompt.recipe["terms"]


@pytest.mark.parametrize("name", models.NAMES)
def test_each_bundled_prompt_beats_the_unprompted_backbone_by_its_standard_error(name: str) -> None:
    for prompt in read_bank(name).prompts:
        assert prompt.test_accuracy is not None
        assert prompt.test_accuracy_unprompted is not None
        gain = prompt.test_accuracy - prompt.test_accuracy_unprompted
        assert gain > prompt.recipe["test_standard_error"], prompt.name


@pytest.mark.parametrize("name", models.NAMES)
def test_a_banks_readme_says_what_the_files_say(name: str) -> None:
    text = (models.bank_folder(name) / "README.md").read_text()
    for prompt in read_bank(name).prompts:
        assert f"| {prompt.name} |" in text
        assert f"{100 * prompt.test_accuracy:.1f} %" in text
