"""What commands that watch for a shift share: the monitors, and how their findings are worded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.shared.console import note

if TYPE_CHECKING:
    from hgprompt_edge.runtime.prediction import Prediction
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.runtime.watching.monitor import MixChange, Report, Share, Shift
    from hgprompt_edge.runtime.watching.monitored import Watched
    from hgprompt_edge.runtime.watching.serving import Serving
    from hgprompt_edge.state.version import Version

    Served = tuple[Prediction, Version | None]

EVERY = 50
"""Images after which a watched folder's state is written, beside when something was found."""
SHOWN = 3
"""Classes that are named of those that come more often, and less often."""


@contextmanager
def monitors_of(predictors: Sequence[Predictor], state: Path | None) -> Iterator[list[Watched]]:
    """Open the monitor of each of these models, for this process only.

    Raises
    ------
    UserError
        A model cannot be watched.
    """
    from hgprompt_edge.runtime.watching.monitored import watchable, watched

    for predictor in predictors:
        watchable(predictor)  # before any folder is made
    with ExitStack() as stack:
        yield [stack.enter_context(watched(predictor, state)) for predictor in predictors]


def kept(found: Iterable[Served], serving: Serving) -> Iterator[Served]:
    """Pass on what was made of each image of a watched folder; write the state, say an alarm."""
    watched, before = serving.watched, (False, False)
    try:
        for number, each in enumerate(found, start=1):
            serving.given(each[0].path)
            after = news(watched.monitor.report())
            if after != before or number % EVERY == 0:
                serving.write()
            if after[0] and not before[0]:
                note_alarm(watched)
            before = after
            yield each
    finally:
        serving.write()


def news(report: Report) -> tuple[bool, bool]:
    """Whether a shift was found, and whether another mix of classes."""
    return report.shift is not None, report.mix is not None


def note_alarm(watched: Watched) -> None:
    """Say a shift on stderr in one sentence, for which model where that is not plain."""
    shift = watched.monitor.shift
    if shift is not None:
        note(f"{watched.predictor.path}: {verdict(shift)}")


def document(watched: Watched) -> dict[str, Any]:
    """Make the JSON document of what a monitor has found."""
    metadata = watched.predictor.metadata
    return as_dict(watched.monitor.report(), metadata.task, metadata.classes)


def counts(report: Report) -> str:
    """Say how many images there were, and which were left aside."""
    one = report.images == 1
    text = f"{report.images:,} image{'' if one else 's'}"
    aside = []
    if report.skipped:
        aside.append(f"{report.skipped:,} skipped as frames of one scene")
    if report.unusable:
        aside.append(f"{report.unusable:,} without finite features")
    return f"{text} ({', '.join(aside)})" if aside else text


def verdict(shift: Shift | None) -> str:
    """Say what was found about the images."""
    if shift is None:
        return "no shift found"
    share = f"{100 * shift.rank:.0f} %"
    how = {
        "up": f"they lie further from the classes than {share} of the task's own, on average",
        "down": f"they lie nearer to the classes, at {share} of the task's own, on average",
        "spread": "their distances to the classes vary more",
        "narrow": "their distances to the classes vary less",
    }[shift.change]
    if shift.test == "direction":
        how = f"they all moved one way, beyond {share} of the task's own, on average"
    return (
        f"SHIFT, images look different since about image {shift.since:,} (alarm at image "
        f"{shift.at:,}): {how}"
    )


def mix_line(mix: MixChange, classes: Sequence[str], shifted: bool) -> str:
    """Say what was found about the mix of classes."""
    parts = [
        f"{word} {_shares(shares, classes)}"
        for word, shares in (("more", mix.more), ("less", mix.less))
        if shares
    ]
    why = "; the shift may be the cause" if shifted else ""
    return f"mix of classes changed since about image {mix.since:,}: {'; '.join(parts)}{why}"


def _shares(shares: Sequence[Share], classes: Sequence[str]) -> str:
    shown = [
        f"{classes[share.place]} ({100 * share.before:.0f} % -> {100 * share.now:.0f} %)"
        for share in shares[:SHOWN]
    ]
    rest = len(shares) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def as_dict(report: Report, task: str, classes: Sequence[str]) -> dict[str, Any]:
    """Make the JSON document of a report."""
    shift, mix = report.shift, report.mix
    return {
        "task": task,
        "images": report.images,
        "skipped": report.skipped,
        "unusable": report.unusable,
        "alarm": shift is not None,
        "evidence": round(report.evidence, 3),
        "needed": round(report.needed, 3),
        "shift": None if shift is None else {**vars(shift), "rank": round(shift.rank, 4)},
        "mix": None if mix is None else _mix_as_dict(mix, classes),
    }


def _mix_as_dict(mix: MixChange, classes: Sequence[str]) -> dict[str, Any]:
    def rows(shares: Sequence[Share]) -> list[dict[str, Any]]:
        return [
            {
                "class": classes[share.place],
                "before": round(share.before, 4),
                "now": round(share.now, 4),
            }
            for share in shares
        ]

    return {"at": mix.at, "since": mix.since, "more": rows(mix.more), "less": rows(mix.less)}
