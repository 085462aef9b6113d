"""Weights that an ONNX file keeps in other files: where they may lie."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from hgprompt_edge.artifacts.onnx_bytes import OnnxFacts, read_facts
from hgprompt_edge.errors import FileError, brief


def check_external_data(path: Path) -> OnnxFacts:
    """Refuse a model whose weights lie outside its folder; returns what else its file says.

    Raises
    ------
    UserError
        No protobuf to its end; or an absolute path, one with `..`, or one through a symbolic link.
    """
    facts = read_facts(path)
    for location in facts.locations:
        parts = PurePosixPath(location.replace("\\", "/")).parts
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        below = path.parent
        linked = False
        if not absolute:
            for part in parts:
                below = below / part
                linked = linked or below.is_symlink()
        if absolute or ".." in parts or linked:
            what = "a symbolic link" if linked else "outside its folder"
            raise FileError(
                path,
                f"wants weights from '{brief(location)}', {what}; take a model whose files lie in "
                "one folder",
            )
    return facts


def check_beside(path: Path, facts: OnnxFacts) -> None:
    """Refuse a model whose weights are to lie in files beside it, and do not.

    Raises
    ------
    UserError
        A file is missing; says which.
    """
    for location in facts.locations:
        if not (path.parent / location).is_file():
            raise FileError(
                path, f"needs {brief(location)} beside it, which is missing; copy both files"
            )
