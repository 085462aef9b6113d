"""The house: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hgprompt_edge"
LEVELS = {
    "cores": 0,
    "errors": 0,
    "listing": 1,
    "depth": 0,
    "exif": 0,
    "decode": 1,
    "watch_images": 0,
    "files": 1,
    "models": 1,
    "preprocess": 2,
    "picture_hash": 0,
    "near_pairs": 1,
    "training_images": 2,
    "prompts": 2,
    "clean": 2,
    "paired": 0,
    "proportions": 0,
    "folded": 2,
    "bundle": 3,
    "device": 4,
    "vit": 4,
    "tasks": 4,
    "transfer": 5,
    "evaluation": 5,
    "export": 6,
    "cli": 7,
}
SERVER_ONLY = {
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "sklearn",
    "pyarrow",
}
DEVICE_SIDE = (
    "device",
    "prompts",
    "bundle",
    "clean",
    "paired",
    "proportions",
    "folded",
    "preprocess",
    "files",
    "listing",
    "depth",
    "exif",
    "decode",
    "picture_hash",
    "near_pairs",
    "training_images",
    "models",
    "errors",
    "cores",
)


def modules() -> list[Path]:
    parts = [
        PACKAGE / name for name in LEVELS if (PACKAGE / name).is_dir()
    ]  # by name: rglob does not follow links
    return sorted(path for part in parts for path in part.rglob("*.py")) + [
        path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
    ]


def part_of(module: str) -> str:
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_part_has_a_level() -> None:
    assert {part_of(name_of(path)) for path in modules()} <= set(LEVELS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    mine = part_of(name_of(path))
    for imported in imports_of(path):
        if not imported.startswith("hgprompt_edge."):
            continue
        theirs = part_of(imported)
        if theirs == mine:
            continue
        assert LEVELS[theirs] < LEVELS[mine], f"{mine} imports {imported}"
        if mine == "device":
            assert theirs in DEVICE_SIDE, f"device imports {imported}"


@pytest.mark.parametrize("part", DEVICE_SIDE)
def test_the_device_side_imports_no_server_library(part: str) -> None:
    for path in modules():
        if part_of(name_of(path)) == part:
            roots = {name.split(".")[0] for name in imports_of(path)}
            assert not roots & SERVER_ONLY, path


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} must not be imported here")
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(
    "code",
    [
        "import hgprompt_edge, hgprompt_edge.tasks, hgprompt_edge.prompts, hgprompt_edge.bundle",
        "import hgprompt_edge.device.predictor, hgprompt_edge.device.mixing",
        "import hgprompt_edge.evaluation.run, hgprompt_edge.tasks.labelled",
        "import hgprompt_edge.device.journal, hgprompt_edge.device.parcel",
        "from hgprompt_edge.cli.main import app",
        "from hgprompt_edge.cli.main import app; app(['cache', 'show'])",
        "from hgprompt_edge.cli.main import app; app(['cache', 'clear'])",
    ],
)
def test_light_imports_need_no_server_library(code: str) -> None:
    names = SERVER_ONLY | {"scipy", "matplotlib", "huggingface_hub"}
    subprocess.run([sys.executable, "-c", BLOCK.format(names=names) + code], check=True)


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, hgprompt_edge; print('numpy' in sys.modules, 'typer' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == ["False", "False"]
