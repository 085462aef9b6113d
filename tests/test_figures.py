"""Figures: texts in any script, and the file that is whole or absent."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

from hgprompt_edge.errors import UserError
from hgprompt_edge.figures.accuracies import AccuracyRow, draw_accuracies
from hgprompt_edge.figures.style import drawable, new_figure, save, style
from hgprompt_edge.maths.proportions import Proportion, wilson


def test_letters_without_a_font_become_question_marks() -> None:
    assert drawable("погода ä $x$") == "погода ä $x$"
    assert drawable("a\U0010fffd") == "a?"


def test_rows_of_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    rows = [
        AccuracyRow("天気 погода $x$", wilson(3, 4), wilson(30, 40), bold=True),
        AccuracyRow("held-out images only", Proportion(0.5, 0.5, 0.5), None),
        AccuracyRow("nothing is known", None, None),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "b.png"):
            with style():
                figure = new_figure(5, 3)
                axes = figure.subplots()
                draw_accuracies(axes, rows)
                save(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").getpixel((0, 0))[:3] == (255, 255, 255)
    low, high = axes.get_xlim()
    assert low <= 100 * wilson(30, 40).low
    assert high >= 100 * wilson(30, 40).high


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        save(new_figure(1, 1), tmp_path / "none" / "a.png")
    assert not list(tmp_path.iterdir())
