"""A monitor finds shifts, tells them from another mix of classes, and is quiet otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.errors import UserError
from hgprompt_edge.maths.drift.martingale import ALL, Capital, log_winnings
from hgprompt_edge.maths.drift.urns import Urns
from hgprompt_edge.maths.reference import Reference, Seen, fit_reference
from hgprompt_edge.maths.reference_file import pack_reference, unpack_reference
from hgprompt_edge.runtime.watching.monitor import FEWEST, Monitor, Report, why_not
from hgprompt_edge.runtime.watching.monitor_file import FILE, read_monitor, state_of, write_monitor

Floats = npt.NDArray[np.float32]
WIDTH, CLASSES, OWN = 24, 4, 200
MEANS = np.random.default_rng(7).normal(0, 1.2, (CLASSES, WIDTH))
STEP = np.random.default_rng(8).normal(0, 1, WIDTH)


SHIFT = {"test": "distance", "change": "up", "at": 8, "since": 2, "rank": 0.9}


def draw(
    count: int,
    seed: int,
    *,
    mix: tuple[float, ...] = (1 / CLASSES,) * CLASSES,
    step: float = 0,
    spread: float = 1,
) -> Floats:
    """Features of images of four classes, not well apart, moved and spread out."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, count, p=mix)
    noise = spread * rng.normal(0, 1, (count, WIDTH))
    return (5 + MEANS[labels] + noise + step * STEP).astype(np.float32)


def make_reference(count: int = OWN, seed: int = 0) -> Reference:
    rng = np.random.default_rng([seed, 99])
    labels = rng.integers(0, CLASSES, count)
    features = 5 + MEANS[labels] + rng.normal(0, 1, (count, WIDTH))
    reference = fit_reference(features.astype(np.float32), labels, CLASSES)
    assert reference is not None
    return reference


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference()


def watched(reference: Reference, *streams: Floats) -> Report:
    return Monitor(reference).observe(np.concatenate(streams))


class TestBets:
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=16))
    def test_no_bet_wins_on_average(self, counts: list[int]) -> None:
        """Each cell comes with the probability of what is in it, if nothing has changed."""
        ends = np.cumsum(counts) / sum(counts)
        starts = ends - np.array(counts) / sum(counts)
        won = np.exp(log_winnings(starts, ends, ALL))
        np.testing.assert_allclose((ends - starts) @ won, 1, rtol=1e-9)

    def test_all_stakes_together_are_the_capital(self) -> None:
        """Bets on p-values from 0 to 1 win nothing and lose nothing."""
        capital = Capital(2, ALL)
        for number in range(1, 500):
            capital.bet(np.zeros(2), np.ones(2), number, np.zeros(2))
            np.testing.assert_allclose(capital.log_total(), 0, atol=1e-9)

    def test_urns_count_as_chance_does(self) -> None:
        """The smallest of n + 1 values that come by chance is each of them as often."""
        urns = Urns(Seen(np.zeros((1, 1), np.float32), np.zeros(1, np.int64)), 1)
        above = np.ones(1, np.float32)
        for seen in range(5):  # all of them above the one held-out value
            drawn = urns.draw(above, 0)
            np.testing.assert_allclose((drawn.low[0], drawn.high[0]), (1 / (seen + 2), 1))

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(0, 40))
    def test_cells_of_a_stream_follow_the_urn(self, seed: int, held: int) -> None:
        """Ranks of a long stream are uniform, whatever held-out images chance has given."""
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(held, 1)).astype(np.float32)
        urns = Urns(Seen(values, np.zeros(held, np.int64)), 1)
        p = []
        for value in rng.normal(size=(3000, 1)).astype(np.float32):
            drawn = urns.draw(value, 0)
            p.append(rng.uniform(drawn.low[0], drawn.high[0]))
        largest = np.abs(np.sort(p) - np.arange(1, 3001) / 3000).max()
        assert largest < 2.6 / np.sqrt(3000)  # Kolmogorov-Smirnov, one in 400,000


class TestCleanStreams:
    @pytest.mark.parametrize("seed", range(8))
    def test_a_clean_stream_raises_nothing(self, seed: int) -> None:
        """Each one against held-out images of its own."""
        report = watched(make_reference(seed=seed), draw(600, seed + 100))
        assert (report.images, report.shift, report.mix) == (600, None, None)
        assert report.evidence < report.needed

    @pytest.mark.slow
    def test_of_200_stable_streams_of_1000_none_raises_a_shift(self) -> None:
        """At most 1 in 1,000 may."""
        alarms = sum(
            watched(make_reference(seed=seed), draw(1000, seed + 1000)).shift is not None
            for seed in range(200)
        )
        assert alarms <= 1

    def test_frames_of_a_few_scenes_raise_nothing(self, reference: Reference) -> None:
        scenes = draw(40, 1).repeat(30, axis=0)
        noise = np.random.default_rng(0).normal(0, 0.1, scenes.shape)
        report = watched(reference, (scenes + noise).astype(np.float32))
        assert report.shift is None
        assert report.skipped == 40 * 29

    @pytest.mark.parametrize("place", range(CLASSES))
    def test_one_class_alone_is_another_mix_and_no_shift(
        self, reference: Reference, place: int
    ) -> None:
        mix = tuple(float(k == place) for k in range(CLASSES))
        report = watched(reference, draw(300, 2, mix=mix))
        assert report.shift is None
        assert report.mix is not None
        assert report.mix.more[0].place == place
        assert report.mix.more[0].now > 0.8

    def test_a_mix_that_changes_late_is_found_where_it_changed(self, reference: Reference) -> None:
        report = watched(reference, draw(300, 3), draw(300, 4, mix=(0.5, 0.5, 0, 0)))
        assert report.shift is None
        assert report.mix is not None
        assert 250 < report.mix.since < 350
        assert {share.place for share in report.mix.more} <= {0, 1}


class TestShifts:
    @pytest.mark.parametrize(
        ("how", "change"),
        [({"step": 0.5}, "up"), ({"step": -0.5}, "up"), ({"spread": 1.3}, "up"),
         ({"spread": 0.75}, "down")],
    )  # fmt: skip
    def test_every_kind_of_shift_is_found(
        self, reference: Reference, how: dict[str, Any], change: str
    ) -> None:
        """A step either way, images that vary more, and images that vary less."""
        report = watched(reference, draw(400, 5, **how))
        assert report.shift is not None
        assert report.shift.at <= 150
        assert report.shift.change == change
        assert (report.shift.rank > 0.5) == (change == "up")

    def test_a_late_shift_is_found_where_it_began(self, reference: Reference) -> None:
        report = watched(reference, draw(500, 6), draw(200, 7, step=0.6))
        assert report.shift is not None
        assert 500 < report.shift.at < 600
        assert 400 < report.shift.since < 560

    def test_what_was_found_stays(self, reference: Reference) -> None:
        monitor = Monitor(reference)
        first = monitor.observe(draw(200, 7, step=0.6)).shift
        assert first is not None
        assert monitor.observe(draw(300, 8)).shift == first

    def test_features_of_nothing_are_counted_apart(self, reference: Reference) -> None:
        features = draw(10, 9)
        features[3], features[4, 0] = np.nan, np.inf
        report = watched(reference, features)
        assert (report.images, report.unusable) == (10, 2)
        assert np.isfinite(report.evidence)

    def test_features_times_100_give_the_same(self, reference: Reference) -> None:
        features = draw(200, 10, step=0.3)
        assert watched(reference, features) == watched(reference, 100 * features)


def test_too_few_images_are_not_watched() -> None:
    assert why_not(make_reference(FEWEST)) is None
    assert f"records {FEWEST - 1} of its own images" in (why_not(make_reference(FEWEST - 1)) or "")
    assert "does not record" in (why_not(None) or "")


def test_a_reference_comes_back_as_it_was(reference: Reference) -> None:
    again = unpack_reference(pack_reference(reference), CLASSES, WIDTH)
    assert again is not None
    for name, array in reference.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], array)
    assert Monitor(again).digest == Monitor(reference).digest


class TestState:
    def test_a_stream_goes_on_where_it_ended(self, reference: Reference, tmp_path: Path) -> None:
        features = np.concatenate([draw(150, 11), draw(90, 12, step=0.6)])
        whole = Monitor(reference)
        whole.observe(features)
        path = tmp_path / "pets.state" / FILE
        for part in np.array_split(features, 9):
            monitor = read_monitor(path, reference)
            monitor.observe(part)
            write_monitor(path, monitor)
        assert read_monitor(path, reference).report() == whole.report()
        assert state_of(read_monitor(path, reference)) == json.loads(json.dumps(state_of(whole)))
        assert whole.shift is not None
        assert [each.name for each in path.parent.iterdir()] == [FILE]

    def test_memory_does_not_grow(self, reference: Reference) -> None:
        monitor = Monitor(reference)
        monitor.observe(draw(100, 13))
        before = len(json.dumps(state_of(monitor)))
        monitor.observe(draw(1000, 14))
        assert len(json.dumps(state_of(monitor))) < 1.1 * before
        assert before < 40_000

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda d: d.update(format="hgprompt.monitor/2"), "another version of hgedge"),
            (lambda d: d.update(format="other"), "damaged"),
            (lambda d: d.update(reference="0" * 64), "about another model"),
            (lambda d: d.pop("urns"), "damaged"),
            (lambda d: d["urns"].pop(), "damaged"),
            (lambda d: d["urns"].__setitem__(0, -1), "damaged"),
            (lambda d: d["urns"].__setitem__(0, 0.5), "damaged"),
            (lambda d: d["mix"].__setitem__(0, 0), "damaged"),
            (lambda d: d["distance"]["wealth"][0].__setitem__(0, float("nan")), "damaged"),
            (lambda d: d["steps"].pop(), "damaged"),
            (lambda d: d["steps"][0].update(summed=99), "damaged"),
            (lambda d: d["steps"][0]["along"].pop(), "damaged"),
            (lambda d: d.update(images="many"), "damaged"),
            (lambda d: d.update(images=-1), "damaged"),
            (lambda d: d.update(shift={"at": 1}), "damaged"),
            (lambda d: d.update(shift={**SHIFT, "test": "a"}), "there is no test 'a'"),
            (lambda d: d.update(shift={**SHIFT, "change": "sideways"}), "no change 'sideways'"),
            (lambda d: d.update(shift={**SHIFT, "since": 9}), "images that were not seen"),
            (lambda d: d.update(shift={**SHIFT, "at": 51}), "images that were not seen"),
            (lambda d: d.update(images=5, skipped=16), "more images were left aside"),
            (lambda d: d.update(served=["a"]), "damaged"),
            (lambda d: d.update(served={"a.png": [1]}), "damaged"),
            (lambda d: d.update(served={"a.png": [1, 0.5]}), "are no numbers"),
            (lambda d: d.update(last=[1.0]), "damaged"),
        ],
    )
    def test_a_state_that_is_wrong_is_refused(
        self,
        reference: Reference,
        tmp_path: Path,
        edit: Callable[[dict[str, Any]], object],
        said: str,
    ) -> None:
        monitor = Monitor(reference)
        monitor.observe(draw(50, 15))
        document = state_of(monitor)
        edit(document)
        path = tmp_path / FILE
        path.write_text(json.dumps(document))
        with pytest.raises(UserError, match=said) as caught:
            read_monitor(path, reference)
        assert "to start anew" in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000])
    def test_what_is_no_state_is_refused(
        self, reference: Reference, tmp_path: Path, text: str
    ) -> None:
        path = tmp_path / FILE
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            read_monitor(path, reference)

    def test_the_state_of_another_fit_is_refused(
        self, reference: Reference, tmp_path: Path
    ) -> None:
        write_monitor(tmp_path / FILE, Monitor(make_reference(seed=1)))
        with pytest.raises(UserError, match="an earlier fit of this one"):
            read_monitor(tmp_path / FILE, reference)


def test_a_class_without_images_is_no_class_of_a_stream(reference: Reference) -> None:
    """Such a class has no mean, so that no image is nearest to it."""
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 2, 3], OWN)
    features = (5 + MEANS[labels] + rng.normal(0, 1, (OWN, WIDTH))).astype(np.float32)
    gap = fit_reference(features, labels, CLASSES)
    assert gap is not None
    report = watched(replace(gap), draw(300, 16, mix=(1 / 3, 0, 1 / 3, 1 / 3)))
    assert report.shift is None
