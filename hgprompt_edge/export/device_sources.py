"""Which bundles one device folder can serve together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.tasks.device_files import BackboneFacts, bad_name, gives
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import FileError, MismatchError, brief


@dataclass(frozen=True)
class Source:
    """A bundle to be served, and the file that it comes from."""

    path: Path
    bundle: Bundle
    sha256: str = ""


def check_together(sources: Sequence[Source]) -> None:
    """Refuse bundles that one backbone cannot serve together, by name.

    Raises
    ------
    UserError
        Two of one name, shallow prompts, other backbones, image sizes, rules or features.
    """
    first = sources[0]
    names: dict[str, Path] = {}
    for source in sources:
        _check_deep(source)
        bundle, like = source.bundle, first.bundle
        if bundle.task in names:
            raise FileError(
                source.path,
                f"its task is called {bundle.task}, as that of "
                f"{names[bundle.task]}; fit one of them under another name",
            )
        names[bundle.task] = source.path
        if bundle.backbone_sha256 != like.backbone_sha256:
            raise MismatchError(
                source.path,
                first.path,
                f"it was fitted on {bundle.backbone} ({bundle.backbone_sha256[:12]}), not on "
                f"{like.backbone} ({like.backbone_sha256[:12]})",
                "a device folder has one backbone, so export them to two",
            )
        if bundle.preprocessing != like.preprocessing or {bundle.pooling, like.pooling} in (
            {"avg", "token"},
            {"avg", "both"},
        ):
            raise MismatchError(
                source.path,
                first.path,
                _difference(bundle, like),
                "all tasks of a device folder share these, so export them to two",
            )


def shared_backbone(bundles: Sequence[Bundle], backbone: Backbone) -> Backbone:
    """Return the backbone with the features that all heads can take.

    These are class token and patch mean, or one of them where all take that: the class token alone
    spares the last block all other rows.
    """
    backbone = replace(backbone, preprocessing=bundles[0].preprocessing)
    needed = {bundle.pooling for bundle in bundles}
    return backbone.with_pooling(needed.pop() if len(needed) == 1 else "both")


def check_addition(source: Source, folder: Path, facts: BackboneFacts) -> None:
    """Refuse a bundle that the backbone of a device folder cannot serve.

    Raises
    ------
    UserError
        It is of another backbone, takes images otherwise, or has shallow prompts.
    """
    bundle = source.bundle
    _check_deep(source)
    if bundle.backbone_sha256 != facts.backbone_sha256:
        raise MismatchError(
            source.path,
            folder,
            f"it was fitted on {bundle.backbone} ({bundle.backbone_sha256[:12]}), not on "
            f"{facts.backbone} ({facts.backbone_sha256[:12]})",
            "export it to a folder of its own",
        )
    if bundle.preprocessing != facts.preprocessing or facts.pooling not in gives(bundle.pooling):
        raise MismatchError(
            source.path, folder, _difference(bundle, facts), "export it to a folder of its own"
        )


def _check_deep(source: Source) -> None:
    """Refuse what cannot be a task: its name, or its prompts."""
    if why := bad_name(source.bundle.task):
        raise FileError(
            source.path,
            f"its task is called '{brief(source.bundle.task)}', which {why}; fit it under another "
            "name",
        )
    if source.bundle.mode == "shallow":
        raise FileError(
            source.path,
            "has shallow prompts, which are tokens of the sequence and cannot be "
            "handed in; export it as a model of its own",
        )


def _difference(bundle: Bundle, other: Bundle | BackboneFacts) -> str:
    """Say in which of their rules for images two differ, for a sentence."""
    own, theirs = vars(bundle.preprocessing), vars(other.preprocessing)
    differing = [
        f"{name} {own[name]} and not {theirs[name]}" for name in own if own[name] != theirs[name]
    ]
    if not differing:
        differing = [f"features {bundle.pooling} and not {other.pooling}"]
    return f"its images are taken otherwise ({', '.join(differing)})"
