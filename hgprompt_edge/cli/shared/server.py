"""Commands that need the server extra say so before they fail deep inside an import."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

SERVER_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx_ir",
    "sklearn",
    "scipy",
    "matplotlib",
)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported here."""
    return find_spec(package) is not None


def load_pytorch() -> None:
    """Import what takes seconds, while a terminal shows that it goes on."""
    with working("loading PyTorch"):
        for package in ("timm", "matplotlib.figure"):  # timm imports torch and torchvision
            import_module(package)


def needs_server(command: Callable[P, R]) -> Callable[P, R]:
    """Refuse with one sentence where the server extra is not installed."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        require_server(command.__name__.strip("_"))  # import is Python's own word
        return command(*args, **kwargs)

    return wrapper


def require_server(name: str) -> None:
    """Refuse what is called `name` with one sentence where the server extra is not installed."""
    missing = [package for package in SERVER_PACKAGES if not is_installed(package)]
    if missing:
        raise UserError(
            f"`{name}` needs {', '.join(missing)}, which this device install "
            "leaves out; run `pip install 'hgprompt-edge[server]'`"
        )
