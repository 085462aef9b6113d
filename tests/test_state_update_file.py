"""What a device sends home is small, says nothing of its images, and is not believed unread."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgprompt_edge.errors import UserError
from hgprompt_edge.state.history import Version
from hgprompt_edge.state.update_file import LIMIT, read_update, write_update

BANK = "ab" * 32
NAMES = ("no prompt", "cifar10", "gtsrb", "dark")


def make_version(entries: int = 4, classes: int = 10, **fields: Any) -> Version:
    rng = np.random.default_rng(entries)
    content = {
        "id": 12,
        "parent": 11,
        "time": 1_790_000_000.123,
        "method": "unlabelled",
        "weights": rng.dirichlet(np.ones(entries)).astype(np.float32),
        "head_weight": rng.normal(size=(classes, 384)).astype(np.float32),
        "head_bias": rng.normal(size=classes).astype(np.float32),
        "images": 100,
        "figures": {"log_loss_before": 1.25, "log_loss_after": np.float32(0.5), "note": "private"},
    }
    return Version(**{**content, **fields})


def test_it_comes_back_as_it_was_without_the_head_or_any_words(tmp_path: Path) -> None:
    path, version = tmp_path / "one.json", make_version()
    size = write_update(path, version, BANK, NAMES, classes=("cat", "dog"))
    assert size == path.stat().st_size < 1000
    update = read_update(path)
    assert update.weights.tobytes() == version.weights.tobytes()
    assert update.head_bias is not None
    assert version.head_bias is not None
    assert update.head_bias.tobytes() == version.head_bias.tobytes()
    assert (update.bank_sha256, update.images, update.method) == (BANK, 100, "unlabelled")
    assert (update.version, update.time, update.names) == (12, version.time, NAMES)
    assert update.figures == {"log_loss_before": 1.25, "log_loss_after": 0.5}
    assert len(update.classes_sha256) == 16
    assert "private" not in path.read_text()


@given(
    entries=st.integers(1, 100),
    classes=st.integers(1, 300),
    figures=st.dictionaries(st.text(max_size=40), st.floats(-1e300, 1e300), max_size=30),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
)
def test_it_is_always_under_1_kb_and_holds_the_mix(
    entries: int, classes: int, figures: dict[str, float], name: str
) -> None:
    version = make_version(entries, classes, figures=figures)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.json"
        write_update(path, version, BANK, [name] * entries, classes=("a", "b"))
        assert path.stat().st_size <= LIMIT
        update = read_update(path)
    assert update.weights.tobytes() == version.weights.tobytes()
    assert update.images == version.images
    assert update.names in ((), (name,) * entries)
    assert update.figures.items() <= version.figures.items()


def test_a_bank_too_large_for_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mix of 300 entries does not fit into 1,000 bytes"):
        write_update(tmp_path / "one.json", make_version(300), BANK, classes=("a",))
    assert not list(tmp_path.iterdir())


def test_what_is_no_mix_is_not_sent(tmp_path: Path) -> None:
    for weights in ([0.5, 0.6], [1.5, -0.5], [np.nan, 1]):
        version = make_version(weights=np.array(weights, np.float32))
        with pytest.raises(ValueError, match="weights"):
            write_update(tmp_path / "one.json", version, BANK, classes=("a",))


HALF = "AAAAPwAAAD8="  # 0.5, 0.5

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "newer format": ({"format": "hgprompt.version/2"}, "upgrade hgprompt-edge"),
    "no format": ({"format": None}, "not what `hgedge state send` writes"),
    "other format": ({"format": "hgprompt.bundle/1"}, "not what `hgedge state send` writes"),
    "no digest": ({"bank_sha256": "../../etc"}, "'bank_sha256' is missing or malformed"),
    "negative count": ({"images": -5}, "'images' is missing or malformed"),
    "huge count": ({"images": 10**12}, "'images' is missing or malformed"),
    "infinite count": ({"images": float("inf")}, "'images' is missing or malformed"),
    "no time": ({"time": float("nan")}, "'time' is missing or malformed"),
    "a list of weights": ({"weights": [0.5, 0.5]}, "'weights' is missing or malformed"),
    "not base64": ({"weights": "0.5 0.5"}, "not float32 in base64"),
    "cut": ({"weights": HALF[:8]}, "not float32 in base64"),
    "no weights": ({"weights": ""}, "must not be below 0 and sum to 1"),
    "a half alone": ({"weights": "AAAAPw=="}, "must not be below 0 and sum to 1"),
    "NaN": ({"weights": "AADAfwAAAD8="}, "holds nan or inf"),
    "no number": ({"device": "kitchen"}, "'device' is missing or malformed"),
    "an image": ({"image": "abc"}, "'image' is missing or malformed"),
    "NaN figure": ({"figures": {"loss": float("nan")}}, "malformed"),
    "a figure in words": ({"figures": {"loss": "much"}}, "malformed"),
}


def test_it_says_of_which_device_it_is_and_how_pictures_became_square(tmp_path: Path) -> None:
    path, number = tmp_path / "device7.json", "0123456789abcdef"
    write_update(path, make_version(), BANK, classes=("a",), device=number, resize="squash")
    update = read_update(path)
    assert (update.device, update.resize) == (number, "squash")
    document = json.loads(path.read_text())
    for field in ("classes_sha256", "device", "resize"):
        path.write_text(json.dumps({name: x for name, x in document.items() if name != field}))
        with pytest.raises(UserError, match=f"'{field}' is missing or malformed"):
            read_update(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    change, message = HOSTILE[case]
    path = tmp_path / "device7.json"
    write_update(path, make_version(head_bias=None, figures={}), BANK, classes=("a",))
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": HALF, **change}))
    with pytest.raises(UserError, match=r"device7.json: ") as caught:
        read_update(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 999, b"[1]", b"1" * 900])
def test_what_is_not_even_an_object_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "device7.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"device7\.json: (truncated or not JSON|not what)"):
        read_update(path)


def test_a_large_file_is_not_parsed_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "device7.json"
    path.write_text(" " * 10_000)
    with pytest.raises(UserError, match="larger than 1,000 bytes, so `hgedge state send` did not"):
        read_update(path)
    with pytest.raises(UserError, match=r"nowhere.json: cannot be read \(no such file"):
        read_update(tmp_path / "nowhere.json")
