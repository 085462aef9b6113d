"""Images that a device has seen: which are read, which are refused and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from planted import Planted

from hgprompt_edge.adapt.images import read_labelled, read_unlabelled
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import read_image


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


class TestSeen:
    def folder(self, root: Path, names: dict[str, int]) -> Path:
        rng = np.random.default_rng(0)
        for name, count in names.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
        return root

    def read(self, folder: Path, planted: Planted, **options: Any) -> Any:
        predictor = planted.predictor
        return read_labelled(folder, predictor.classes, predictor.preprocessing, **options)

    def test_labels_follow_the_models_classes(self, tmp_path: Path, planted: Planted) -> None:
        classes = planted.predictor.classes
        folder = self.folder(tmp_path / "seen", {classes[2]: 2, classes[0]: 1})
        (folder / classes[0] / "broken.png").write_bytes(b"no image")
        seen = self.read(folder, planted)
        assert sorted(seen.labels) == [0, 2, 2]
        assert seen.pixels.shape == (3, 24, 24, 3)
        assert len(seen.unreadable) == 1
        assert len(self.read(folder, planted, limit=3).pixels) in (2, 3)

    def test_a_picture_in_two_classes_is_named(self, tmp_path: Path, planted: Planted) -> None:
        first, second = planted.predictor.classes[:2]
        folder = self.folder(tmp_path / "seen", {first: 4, second: 3})
        assert self.read(folder, planted).twice == ()
        with Image.open(folder / first / "2.png") as image:
            image.save(folder / second / "also.bmp")
        for name in (first, second):  # flat: a copy of nothing
            Image.new("RGB", (30, 30)).save(folder / name / "black.png")
        pair = (folder / first / "2.png", folder / second / "also.bmp")
        assert self.read(folder, planted).twice == (tuple(map(str, pair)),)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_limit_takes_of_all_classes_alike(
        self, tmp_path: Path, planted: Planted, seed: int
    ) -> None:
        first, second, third = planted.predictor.classes[:3]
        folder = self.folder(tmp_path / "seen", {first: 9, second: 1, third: 3})
        for limit, counts in ((2, (1, 1)), (6, (1, 2, 3)), (99, (1, 3, 9))):
            labels = self.read(folder, planted, limit=limit, seed=seed).labels
            assert sorted(np.unique(labels, return_counts=True)[1]) == list(counts)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({}, "holds no class folders"),
            ({"zebra": 1}, "'zebra' is not a class of the model"),
            ({"class 0, ä": 3}, "learning from one class would make the model predict only that"),
        ],
    )
    def test_bad_labels(
        self, names: dict[str, int], message: str, tmp_path: Path, planted: Planted
    ) -> None:
        folder = self.folder(tmp_path / "seen", names)
        folder.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            self.read(folder, planted)
        with pytest.raises(UserError, match="no such folder"):
            self.read(tmp_path / "missing", planted)

    def test_any_folder_without_labels(self, tmp_path: Path, planted: Planted) -> None:
        folder = self.folder(tmp_path / "x", {"a": 2, "b": 1})
        rule = planted.predictor.preprocessing
        (folder / "a" / "00.png").write_bytes(b"no image")
        seen = read_unlabelled(folder, rule)
        good = [folder / name for name in ("a/0.png", "a/1.png", "b/0.png")]
        np.testing.assert_array_equal(seen.pixels, [read_image(path, rule) for path in good])
        assert len(seen.unreadable) == 1
        with pytest.raises(UserError, match="fewer than two"):
            read_unlabelled(folder / "b", rule)
