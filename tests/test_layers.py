"""The house: who may import whom, how large rooms and files may be, and what an import costs."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hgprompt_edge"
FLOORS = (
    ("errors", "cores"),
    ("files", "models", "paths"),
    ("images", "maths"),
    ("prompts", "figures"),
    ("artifacts",),
    ("state", "data", "backbones", "heads"),
    ("runtime", "features"),
    ("adapt", "evaluate", "fit"),
    ("training", "export"),
    ("compare",),
    ("cli",),
)
"""From the ground up; a room may import from the floors below its own, and from itself."""
LEVELS = {room: level for level, floor in enumerate(FLOORS) for room in floor}
DEVICE = (
    *("errors", "cores", "files", "models", "paths", "images", "maths", "prompts"),
    *("artifacts", "state", "runtime", "adapt"),
)
"""What runs on a device; imports from nowhere else."""
SERVER_ONLY = {
    *("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "sklearn", "pyarrow"),
}

LONGEST, HALF = 300, 150
"""Lines: no file has more than the first, and half of the files have fewer than the second."""


def modules() -> dict[str, Path]:
    """All modules by their dotted names inside the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    del found["__init__"]
    return found


def imports_of(path: Path) -> set[str]:
    """Dotted names of what a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a module imports."""
    known = modules()
    inside = {name.removeprefix("hgprompt_edge.") for name in imports_of(path)}
    # `from x import y`: the module x.y where there is one, else x.
    deepest = {name for name in inside if name in known}
    return {name for name in deepest if not any(other.startswith(f"{name}.") for other in deepest)}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in modules()} == set(LEVELS)


@pytest.mark.parametrize("name", modules())
def test_imports_run_downwards(name: str) -> None:
    mine = room(name)
    for imported in own_imports(modules()[name]):
        theirs = room(imported)
        assert theirs == mine or LEVELS[theirs] < LEVELS[mine], f"{name} imports {imported}"
        assert mine not in DEVICE or theirs in DEVICE, f"{name} imports {imported}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: own_imports(path) - {name} for name, path in modules().items()}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


def test_files_are_one_idea_each() -> None:
    lengths = {
        name: len(path.read_text().splitlines())
        for name, path in modules().items()
        if path.name != "__init__.py"
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
    assert statistics.median(lengths.values()) < HALF


@pytest.mark.parametrize("name", [name for name in modules() if room(name) in DEVICE])
def test_a_device_imports_no_server_library(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports_of(modules()[name])}
    assert not roots & SERVER_ONLY


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
        "import hgprompt_edge, hgprompt_edge.data, hgprompt_edge.prompts.bank",
        "import hgprompt_edge.artifacts.bundle, hgprompt_edge.evaluate.run",
        "import hgprompt_edge.runtime.predictor, hgprompt_edge.maths.mixing",
        "import hgprompt_edge.evaluate.run, hgprompt_edge.data.labelled",
        "import hgprompt_edge.state.history, hgprompt_edge.state.update_file",
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
