"""`load_task`: how names and folders resolve, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hgprompt_edge.data as tasks
from hgprompt_edge.data.known_tasks import FAMILIES, NO_FLIPS
from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

RULE = Preprocessing(8, 8)


def fill(folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng([i, ord(label)]).integers(0, 256, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


def test_digits() -> None:
    pytest.importorskip("sklearn")
    first = tasks.load_task("digits", RULE)
    assert (first.name, first.family, first.flips) == ("digits", "digits", False)
    assert first.classes == tuple("0123456789")
    assert (len(first.train), len(first.validation), len(first.test)) == (800, 200, 797)
    names = [*first.train.names, *first.validation.names, *first.test.names]
    assert len(set(names)) == 1797
    from sklearn.datasets import load_digits

    found = load_digits()
    for images in (first.train, first.test):
        index = [int(name.split("/")[1]) for name in images.names]
        np.testing.assert_array_equal(images.labels, found.target[index])
        np.testing.assert_allclose(images.pixels[..., 0] / 255, found.images[index] / 16, atol=2e-3)
    other = tasks.load_task("digits", Preprocessing(24, 24), seed=1)
    assert other.test.names == first.test.names
    assert other.validation.names != first.validation.names
    assert other.train.pixels.shape[1:] == (24, 24, 3)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("petz", ["`task='petz'`: no such task; did you mean pets?", "`data`"]),
        ("Flowers102", ["did you mean flowers or", "`data`"]),
        ("generated-counts", ["did you mean generated-count or"]),
        ("qqqq", ["no such task (digits, pets, ", "`data`"]),
        ("cifar10", ["`task='cifar10'`: its images are not installed", "`data`"]),
        (None, ["no images given; name a task with `task`", "with `data`"]),
        ("", ["`task=''`: must be a name", "`data`"]),
        ("data/pets", ["`task='data/pets'`: must be a name without folders", "`data`"]),
    ],
)
def test_unknown_names(name: str | None, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        tasks.load_task(name, RULE)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_data_that_is_missing_or_not_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`data='.*nowhere'`: no such file or folder"):
        tasks.load_task("pets", RULE, data=tmp_path / "nowhere")
    with pytest.raises(UserError, match="generated-count is drawn by hgedge and reads no files"):
        tasks.load_task("generated-count", RULE, data=tmp_path)


def test_name_is_a_label_for_own_data(tmp_path: Path) -> None:
    folder = fill(tmp_path / "holiday.2024")
    own = tasks.load_task(None, RULE, data=folder)
    assert (own.name, own.family, own.flips) == ("holiday.2024", "", True)
    named = tasks.load_task("beach", RULE, data=folder)
    assert (named.name, named.family, named.digest) == ("beach", "", own.digest)
    digits = tasks.load_task("digits", RULE, data=folder)
    assert (digits.family, digits.flips, digits.classes) == ("digits", False, ("a", "b"))
    signs = tasks.load_task("x", RULE, data=fill(tmp_path / "gtsrb"))
    assert (signs.family, signs.flips) == ("signs", False)


def test_relative_folder_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path / "mine"))
    assert tasks.load_task(None, RULE, data=Path()).name == "mine"


def test_every_known_name_has_a_family() -> None:
    assert {*LAYOUTS, *NO_FLIPS} <= {*FAMILIES}
    assert all(FAMILIES.values())


def test_subset() -> None:
    images = tasks.Images(
        np.arange(12, dtype=np.uint8).reshape(4, 1, 1, 3), np.array([0, 1, 0, 1]), tuple("abcd")
    )
    part = images.subset([3, 0])
    assert part.names == ("d", "a")
    assert part.labels.tolist() == [1, 0]
    assert part.pixels[:, 0, 0, 0].tolist() == [9, 0]
    assert len(images.subset([])) == 0


def imported(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_lazy(tmp_path: Path) -> None:
    heavy = {"torch", "torchvision", "sklearn", "scipy"}
    bare = imported("import hgprompt_edge.data")
    assert not bare & {*heavy, "numpy", "PIL"}
    used = imported(
        "from pathlib import Path\n"
        "from hgprompt_edge.images.preprocess import Preprocessing\n"
        "from hgprompt_edge.data import Images, Task, load_task\n"
        f"load_task(None, Preprocessing(8, 8), data=Path({str(fill(tmp_path / 'x'))!r}))\n"
        "load_task('generated-count', Preprocessing(8, 8))"
    )
    assert not used & heavy
    with pytest.raises(AttributeError):
        _ = tasks.nothing
