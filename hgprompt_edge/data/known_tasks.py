"""Tasks that are known by name: their families, mirroring, other names."""

from __future__ import annotations

from difflib import get_close_matches

from hgprompt_edge.data import generated
from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS
from hgprompt_edge.data.vtab import ALIASES, BENCHMARK, VTAB

FAMILIES = {
    "chars34-font": "characters",
    "chars34-poor": "characters",
    "chars34-scene": "characters",
    "cifar10": "cifar",
    "clothing10": "clothing",
    "deeppcb": "deeppcb",
    "digits": "digits",
    "dtd10": "texture",
    "fashion-mnist": "clothing",
    "flowers17": "flowers",
    "grocery81": "grocery81",
    "gtsrb": "signs",
    "houses4": "houses4",
    "magnetic-tile": "magnetic-tile",
    "magnetic-tile-bright": "magnetic-tile",
    "magnetic-tile-dark": "magnetic-tile",
    "neu-cls": "neu-cls",
    "pacs-art-painting": "pacs",
    "pacs-cartoon": "pacs",
    "pacs-photo": "pacs",
    "pacs-sketch": "pacs",
    "pneumonia-mnist": "pneumonia-mnist",
    "rsscn7": "aerial",
    "sign-language-digits": "digits",
    "trashnet": "trashnet",
    "weather4": "weather",
    **{alias: VTAB[name].family for alias, name in ALIASES.items()},
    **{kind: described.family for kind, described in generated.KINDS.items()},
}
"""Tasks of one family never serve each other as source and target."""

NO_FLIPS = {
    "chars34-font",
    "chars34-poor",
    "chars34-scene",
    "digits",
    "gtsrb",
    "sign-language-digits",
    *(name for name, task in VTAB.items() if not task.flips),
    *(kind for kind, description in generated.KINDS.items() if not description.flips),
}
"""A mirrored sign, digit or position is another one, or none."""

SET_FOLDERS = {BENCHMARK, *ALIASES, *(layout.folder for layout in LAYOUTS.values())}
"""What the folders of known data sets are called."""

BUILT_IN = {"digits", *LAYOUTS, *VTAB, *generated.KINDS}
"""Tasks whose images come from a known place."""


def own_name(name: str) -> str:
    """Return the task's own name where `name` is one that its folder goes by, else `name`."""
    return ALIASES.get(name, name)


def unknown_task(name: str) -> str:
    """Say that a task is not there under this name, and what is called nearly so."""
    if name in FAMILIES:
        return (
            "its images are not installed; name the folder that holds images.zip and labels.csv, "
            "or class folders, with `data`"
        )
    found = get_close_matches(name.lower(), FAMILIES, n=6, cutoff=0.5)
    near = list(dict.fromkeys(map(own_name, found)))[:3]
    own = "for your own images, give their folder with `data`"
    if near:
        return f"no such task; did you mean {' or '.join(near)}? {own[0].upper()}{own[1:]}"
    names = ["digits", *dict.fromkeys([*LAYOUTS, *VTAB]), *generated.KINDS]
    return f"no such task ({', '.join(names)}); {own}"
