"""The look of every figure: colours, fonts, and how it is saved."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hgprompt_edge.files import atomic_path

BLUE, ORANGE, GREY, GREEN, PURPLE = "#2a6f97", "#e07a1f", "#8a96a3", "#5b8c5a", "#8d5a97"
"""Blue and orange differ for colour-blind people, too."""

FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans"),
    *("Source Han Sans", "WenQuanYi Zen Hei", "IPAGothic", "NanumGothic", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic"),
    *("Malgun Gothic", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari"),
)
"""Names of tasks and classes come in any script: the first of these that has a letter draws it."""

RULES = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of that size in inches, white on any page."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def fonts() -> list[str]:
    """Return those of `FONTS` that this machine has."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FONTS if name in known]


def style() -> AbstractContextManager[None]:
    """Apply the look within a `with` block, in which axes are made and texts drawn."""
    rules: Any = {**RULES, "font.family": fonts()}  # newer stubs want each key by name
    context: AbstractContextManager[None] = rc_context(rules)
    return context


def drawable(text: str) -> str:
    """Return `text` with `?` for letters that no font here has, which would become boxes."""
    return "".join(letter if _has(letter) else "?" for letter in text)


@lru_cache(maxsize=4096)
def _has(letter: str) -> bool:
    paths = [font_manager.findfont(name) for name in fonts()]
    return any(font_manager.get_font(path).get_char_index(ord(letter)) for path in paths)


def legend_below(axes: Axes) -> None:
    """Put the legend under the right end of the axis, where it hides nothing."""
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.1), ncols=2)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all, the same bytes for the same figure."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
