"""`hgedge doctor`: what is installed, what runs here, what is missing for what."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import out, print_json, reports_errors
from hgprompt_edge.runtime.cpu import cpu_features

NEEDS = {
    "numpy": "everything",
    "onnxruntime": "predict",
    "pillow": "predict",
    "cmaes": "adapt --method cma, compare",
    "torch": "fit, export, prompt train",
    "torchvision": "fit, export, prompt train",
    "timm": "fit, export, prompt train",
    "hgprompt-edge-models": "the bundled backbones and prompts",
    "huggingface_hub": "backbones of the hub, --data hf:ORG/NAME",
    "onnx": "export",
    "onnx-ir": "export",
    "scikit-learn": "fit with --task digits",
    "scipy": "banks of several init seeds, --task svhn",
    "matplotlib": "the figure of fit",
    "pyarrow": "parquet files",
    "h5py": "--task camelyon as torchvision lays it out",
    "openvino": "export --format openvino, predict and bench on .xml",
    "nncf": "export --format openvino --precision int8",
    "model-signing": "export --sign, verify --key",
}
SERVER = "hgprompt-edge[server]"
BROUGHT_BY = {
    **dict.fromkeys(("numpy", "onnxruntime", "pillow", "cmaes"), "hgprompt-edge"),
    "hgprompt-edge-models": "hgprompt-edge-models",
    "h5py": "h5py",
    "openvino": "hgprompt-edge[openvino]",
    "nncf": "hgprompt-edge[int8]",
    "model-signing": "hgprompt-edge[sign]",
}
"""What to install for a package; for the others it is `SERVER`."""


@reports_errors
def doctor(json: options.Json = False) -> None:
    """Print what is installed, what this machine can do, and what is missing for what."""
    packages = {name: _version(name) for name in NEEDS}
    machine = {
        "hgprompt-edge": version("hgprompt-edge"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cpu_features": cpu_features(),
    }
    if json:
        print_json({**machine, "packages": packages})
        return
    for name, value in machine.items():
        text = " ".join(value) if isinstance(value, list) else str(value)
        out.print(f"{name}: {text}", soft_wrap=True)
    table = Table("package", "version", "needed for", box=None, pad_edge=False)
    for name, found in packages.items():
        table.add_row(name, found or "missing", NEEDS[name])
    out.print(table)
    missing = [name for name, found in packages.items() if found is None]
    for source in dict.fromkeys(BROUGHT_BY.get(name, SERVER) for name in missing):
        lacking = ", ".join(name for name in missing if BROUGHT_BY.get(name, SERVER) == source)
        out.print(f"{lacking}: pip install '{source}'", soft_wrap=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
