"""How commands show progress: bars of stages, which move with the images that pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from hgprompt_edge.backbones.image_count import watch_images
from hgprompt_edge.cli.shared.console import err

if TYPE_CHECKING:
    pass


Report = Callable[[str, int, int], None]

SPEED_SECONDS = 1800.0
"""Steps of the last half hour say how long the rest takes: a step may take minutes."""


class Stages:
    """Bars of the stages of a command, which move with the images that pass between two reports."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.lock = bars, Lock()
        self.known: dict[str, TaskID] = {}
        self.stage, self.done, self.total = "", 0, 0
        self.images = self.per_step = 0.0

    def report(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar; a total of 0 stands for an unknown one."""
        with self.lock:
            if stage != self.stage:
                self.stage, self.done, self.per_step = stage, done, 0.0
            elif done > self.done:
                self.per_step = self.images / (done - self.done)
            self.done, self.total, self.images = done, total, 0.0
            self._show(stage, done, total)

    def passed(self, images: int) -> None:
        """Count images: within a step where it is known how many a step takes."""
        with self.lock:
            self.images += images
            if not self.stage or self.done >= self.total:
                self._show(self.stage if not self.total else "images", 0, 0)
            elif self.per_step:
                part = min(self.images / self.per_step, 0.99)
                self._show(self.stage, self.done + part, self.total)
            else:
                self._show(self.stage, self.done, self.total)

    def _show(self, stage: str, done: float, total: int) -> None:
        stage = stage or "images"
        if stage not in self.known:
            self.known[stage] = self.bars.add_task(stage, total=total or None, images="")
        count = f"{self.images:,.0f} images" if self.images else ""
        self.bars.update(self.known[stage], completed=done, total=total or None, images=count)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Bars with an ETA on a terminal, nothing elsewhere: yields `report(stage, done, total)`."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[images]}", markup=False),
    )
    with Progress(
        *columns,
        console=err,
        disable=not err.is_terminal,
        transient=True,
        speed_estimate_period=SPEED_SECONDS,
    ) as bars:
        stages = Stages(bars)
        with watch_images(stages.passed):
            yield stages.report


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something goes on whose length is not known."""
    with progress_bar() as report:
        report(what, 0, 0)
        yield
