"""A history loses nothing that it has committed, whatever happens to its process or its disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from histories import BANK, INITIAL, in_child, learn, mix, open_history
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hgprompt_edge.errors import UserError
from hgprompt_edge.state import history as module
from hgprompt_edge.state.history import RETURN, History


def test_a_new_history_holds_the_initial_mix(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        version = history.current()
        assert [found.id for found in history.versions()] == [1]
    assert (version.id, version.parent, version.method, version.images) == (1, None, "initial", 0)
    assert version.weights.tolist() == INITIAL.tolist()
    assert version.head_weight is version.head_bias is None


def test_each_history_has_a_number_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b", "none"):
        (tmp_path / name).mkdir()
    with open_history(tmp_path / "a") as one, open_history(tmp_path / "b") as other:
        number = one.device()
        assert len(number) == 16
        assert number != other.device()
    with open_history(tmp_path / "a", read_only=True) as one:
        assert one.device() == number
    with open_history(tmp_path / "none", read_only=True) as missing:
        assert missing.device() == ""


def test_what_was_committed_is_there_after_opening_it_again(tmp_path: Path) -> None:
    head = np.arange(6, dtype=np.float32).reshape(2, 3)
    with open_history(tmp_path) as history:
        figures = {"before": 1.25, "after": np.float32(0.5), "n": 3, "note": "é", "none": None}
        given = history.commit(
            mix(0.75),
            method="labelled",
            images=40,
            figures=figures,
            head_weight=head,
            head_bias=head[:, 0],
        )
    with open_history(tmp_path) as history:
        version = history.current()
        assert len(history.versions()) == 2
    assert (version.id, version.parent, version.method, version.images) == (2, 1, "labelled", 40)
    assert version.figures == given.figures == figures
    assert version.time == given.time
    assert version.weights.tolist() == mix(0.75).tolist()
    assert version.head_weight is not None
    assert version.head_weight.tolist() == head.tolist()
    assert version.head_bias is not None
    assert version.head_bias.tolist() == [0, 3]


def test_a_closed_history_says_nothing(tmp_path: Path) -> None:
    history = open_history(tmp_path)
    history.close()
    for ask in (history.current, history.reset):
        with pytest.raises(ValueError, match="closed"):
            ask()


@given(
    weights=hnp.arrays(np.float32, 3, elements=st.floats(-1e9, 1e9, width=32)),
    head=st.none() | hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e9, 1e9, width=32)),
    time=st.floats(0, 1e12),
    method=st.text(max_size=20),
    figures=st.dictionaries(
        st.text(max_size=9),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    ),
)
@settings(max_examples=40)
def test_a_version_comes_back_bit_by_bit(
    weights: npt.NDArray[np.float32],
    head: npt.NDArray[np.float32] | None,
    time: float,
    method: str,
    figures: Any,
) -> None:
    bias = None if head is None else head[:, 0]
    with tempfile.TemporaryDirectory() as name:
        with open_history(Path(name), clock=lambda: time) as history:
            wanted = history.commit(
                weights,
                method=method,
                images=9,
                figures=figures,
                head_weight=head,
                head_bias=bias,
            )
        with open_history(Path(name), read_only=True) as history:
            found = history.versions()[-1]
    assert repr(found) == repr(wanted)
    assert found.weights.tobytes() == weights.tobytes()
    assert (found.time, found.method, found.figures) == (time, method, figures)
    if head is not None and bias is not None:
        assert found.head_weight is not None
        assert found.head_bias is not None
        assert found.head_weight.tobytes() == head.tobytes()
        assert found.head_bias.tobytes() == bias.tobytes()


def test_rolling_back_goes_further_each_time_and_adds_to_the_history(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        learn(history, 0.6), learn(history, 0.7), learn(history, 0.8)
        first, second = history.rollback(), history.rollback()
        assert (first.method, first.figures["to"]) == ("rollback", 3)
        assert first.weights.tolist() == mix(0.7).tolist()
        assert second.weights.tolist() == mix(0.6).tolist()
        assert history.current().id == second.id == 6
        assert learn(history, 0.9).parent == 6
        assert history.rollback().weights.tolist() == mix(0.6).tolist()
        assert history.rollback().weights.tolist() == INITIAL.tolist()
        with pytest.raises(UserError, match="version 1 is the first"):
            history.rollback()
        assert history.rollback(4).weights.tolist() == mix(0.8).tolist()
        assert [version.id for version in history.versions()] == list(range(1, 11))
        with pytest.raises(UserError, match=r"has no version 99; `hgedge state history`"):
            history.rollback(99)


def test_a_reset_serves_the_initial_and_can_be_undone(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        learn(history, 0.6, head_bias=np.ones(2, np.float32))
        version = history.reset()
        assert (version.method, version.head_bias, version.images) == ("reset", None, 0)
        assert version.weights.tolist() == INITIAL.tolist()
        back = history.rollback()
        assert back.weights.tolist() == mix(0.6).tolist()
        assert back.head_bias is not None


@given(steps=st.lists(st.sampled_from(["learn", "rollback", "reset", "open"]), max_size=12))
@settings(max_examples=15)
def test_any_sequence_leaves_a_history_with_the_newest_in_force(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        history = open_history(Path(name))
        made = [history.current()]
        for number, step in enumerate(steps):
            if step == "open":
                history.close()
                history = open_history(Path(name))
            elif step == "learn":
                made.append(learn(history, number / 16))
            elif step == "reset":
                made.append(history.reset())
            else:
                try:
                    made.append(history.rollback())
                except UserError:
                    assert all(version.parent != version.id for version in made)
            assert repr(history.versions()) == repr(made)
            assert repr(history.current()) == repr(made[-1])
            assert all(v.parent is None or v.parent < v.id for v in made)
        history.close()


def test_the_oldest_are_dropped_from_a_large_history_but_never_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    with open_history(tmp_path) as history:
        for number in range(5):
            learn(history, number / 8)
        assert [version.id for version in history.versions()] == [1, 4, 5, 6]
        history.rollback(4)
        assert history.rollback().weights.tolist() == INITIAL.tolist()


def test_a_new_initial_mix_is_served_until_something_is_learned(tmp_path: Path) -> None:
    open_history(tmp_path).close()
    other = np.array([0.1, 0.2, 0.7], np.float32)
    state = tmp_path / "state"
    with History(state, BANK, other, read_only=True) as history:
        assert history.current().weights.tolist() == other.tolist()
        assert [v.weights.tolist() for v in history.versions()] == [other.tolist()]
        assert not history.learned()
    with History(state, BANK, other) as history:
        assert [version.method for version in history.versions()] == ["initial", "initial"]
        assert history.current().weights.tolist() == other.tolist()
        learn(history, 0.6)
    with History(state, BANK, np.roll(other, 1), read_only=True) as history:
        assert history.learned()
        assert history.versions()[-1].weights.tolist() == mix(0.6).tolist()
        assert history.versions()[-2].weights.tolist() == other.tolist()
    with open_history(tmp_path) as history:
        assert history.current().weights.tolist() == mix(0.6).tolist()
        assert history.reset().weights.tolist() == INITIAL.tolist()


def test_a_return_to_the_initial_mix_follows_a_new_one(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        learned = learn(history, 0.6)
        history.commit(INITIAL, method=RETURN, images=8, figures={})
    other = np.array([0.1, 0.2, 0.7], np.float32)
    with History(tmp_path / "state", BANK, other) as history:
        assert history.current().weights.tolist() == other.tolist()
        history.rollback(learned.id)
    with open_history(tmp_path) as history:
        assert history.current().weights.tolist() == learned.weights.tolist()


def test_a_clock_that_jumps_back_is_held_and_noted(tmp_path: Path) -> None:
    now = [1000.0]
    with open_history(tmp_path, clock=lambda: now[0]) as history:
        now[0] = 400.0
        version = learn(history, 0.6)
        assert (version.time, version.figures["clock_went_back_seconds"]) == (1000.0, 600.0)
        now[0] = 1001.0
        assert learn(history, 0.7).time == 1001.0


def test_numbers_that_are_no_mix_are_refused(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        with pytest.raises(ValueError, match=r"must be \[3\]"):
            history.commit(np.ones(2, np.float32), method="x", images=0, figures={})
        with pytest.raises(ValueError, match="finite"):
            history.commit(INITIAL * np.nan, method="x", images=0, figures={})
        with pytest.raises(ValueError, match="JSON"):
            history.commit(INITIAL, method="x", images=0, figures={"loss": float("inf")})
        assert len(history.versions()) == 1


def test_a_missing_history_is_read_as_the_initial_until_somebody_makes_it(tmp_path: Path) -> None:
    with open_history(tmp_path, read_only=True) as reader:
        assert not (tmp_path / "state").exists()
        assert reader.current().weights.tolist() == INITIAL.tolist()
        assert len(reader.versions()) == 1
        assert not reader.changed()
        with open_history(tmp_path) as writer:
            learn(writer, 0.6)
            assert reader.changed()
            assert reader.current().id == 2
        with pytest.raises(ValueError, match="read_only"):
            learn(reader, 0.7)


def test_a_reader_sees_each_commit_at_once_and_never_waits(tmp_path: Path) -> None:
    with open_history(tmp_path) as writer, open_history(tmp_path, read_only=True) as reader:
        reader.current()
        assert not reader.changed()
        for number in range(5):
            learn(writer, number / 8)
            assert reader.changed()
            assert reader.changed()
            assert reader.current().weights.tolist() == mix(number / 8).tolist()
            assert not reader.changed()
        with writer._transaction(), writer.exclusive():
            start = time.perf_counter()
            assert reader.current().id == 6
            assert time.perf_counter() - start < 5  # not the ten seconds of a lock


def test_one_process_adapts_at_a_time_and_a_killed_one_is_no_hindrance(tmp_path: Path) -> None:
    code = """
with History(state, BANK, INITIAL) as history, history.exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""
    child = in_child(code, tmp_path, stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with open_history(tmp_path) as history:
        using = rf"state: another `hgedge adapt` is using it \(pid {child.pid}\)"
        with pytest.raises(UserError, match=using):
            history.exclusive().__enter__()
        assert history.current().id == 1
        child.kill()
        child.wait()
        with history.exclusive():
            assert (tmp_path / "state" / "adapt.pid").read_text() == str(os.getpid())
        with history.exclusive():
            pass


def test_processes_that_open_and_commit_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
with History(state, BANK, INITIAL) as history:
    for number in range(10):
        history.commit(INITIAL, method="labelled", images=number, figures={})
"""
    children = [in_child(code, tmp_path) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    with open_history(tmp_path) as history:
        versions = history.versions()
    assert [version.id for version in versions] == list(range(1, 32))
    assert [version.parent for version in versions] == [None, *range(1, 31)]
