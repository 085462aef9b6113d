"""torchvision's data sets on small folders that are laid out as the archives are."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from layouts import listed
from PIL import Image

from hgprompt_edge.data import Task, load_task
from hgprompt_edge.data.layouts.archives.clevr import count_label, distance_label
from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS, find_root
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

datasets = pytest.importorskip("torchvision.datasets")
RULE = Preprocessing(8, 8)
CLASSES = ("Abyssinian", "american_bulldog", "Birman")


def jpg(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (12, 10, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for part, numbers in (("trainval", range(1, 11)), ("test", range(11, 15))):
        lines = []
        for index, name in enumerate(CLASSES, 1):
            for i in numbers:
                jpg(base / "images" / f"{name}_{i}.jpg")
                lines.append(f"{name}_{i} {index} {1 + (index == 2)} 1")
        text(base / "annotations" / f"{part}.txt", lines)


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for part, numbers in (("train1", (1, 2, 3)), ("val1", (4, 5, 6)), ("test1", (7, 8))):
        files = [f"{c}/{c}_{i:04d}.jpg" for c in ("banded", "dotted") for i in numbers]
        for file in files:
            jpg(base / "images" / file)
        text(base / "labels" / f"{part}.txt", files)


def caltech101(root: Path) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    for name, count in (("ant", 33), ("bass", 31), ("BACKGROUND_Google", 3)):
        for i in range(1, count + 1):
            jpg(base / name / f"image_{i:04d}.jpg")


def eurosat(root: Path) -> None:
    for name in ("Forest", "River"):
        for i in range(1, 11):
            jpg(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg")
        (root / "eurosat" / "2750" / name / f"._{name}_1.jpg").write_bytes(b"macOS")


def flowers(root: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    base = root / "flowers-102"
    for i in range(1, 13):
        jpg(base / "jpg" / f"image_{i:05d}.jpg")
    scipy_io.savemat(base / "imagelabels.mat", {"labels": [[1, 2] * 6]})
    ids = {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [[7, 8, 9, 10, 11, 12]]}
    scipy_io.savemat(base / "setid.mat", ids)


def svhn(root: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.resize([10, 1], (count, 1)).astype(np.uint8)
        scipy_io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})


def cifar100(root: Path) -> None:
    base = root / "cifar-100-python"
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [i % 2 for i in range(count)]
        (base / part).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))


def sun397(root: Path) -> None:
    base = root / "SUN397"
    text(base / "ClassName.txt", ["/a/abbey", "/b/bow_window/indoor"])
    for name in ("a/abbey", "b/bow_window/indoor"):
        for i in range(10):
            jpg(base / name / f"sun_{i}.jpg", seed=ord(name[0]))


def clevr(root: Path) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    for part, count in (("train", 16), ("val", 8)):
        scenes = []
        for i in range(count):
            name = f"CLEVR_{part}_{i:06d}.png"
            jpg(base / "images" / part / name)
            # 3 to 10 objects, the nearest at 7.75 to 10.375
            things = [
                {"pixel_coords": [0, 0, 7.75 + k + 0.375 * (i % 8)]} for k in range(3 + i % 8)
            ]
            scenes.append({"image_filename": name, "objects": things})
        path = base / "scenes" / f"CLEVR_{part}_scenes.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"scenes": scenes}))


def camelyon(root: Path) -> None:
    (root / "pcam").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("valid", 6), ("test", 8)):
        stem = root / "pcam" / f"camelyonpatch_level_2_split_{part}"
        for what, key, values in (
            ("x", "x", rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)),
            ("y", "y", np.resize([0, 1], (count, 1, 1, 1)).astype(np.uint8)),
        ):
            with Path(f"{stem}_{what}.h5").open("wb") as file:
                np.savez(file, **{key: values})


@pytest.fixture
def arrays_for_h5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let numpy's archives stand for HDF5 files: h5py is no dependency of ours."""
    module: Any = ModuleType("h5py")
    module.File = np.load
    monkeypatch.setitem(sys.modules, "h5py", module)


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take our small files for those whose md5 it knows."""
    none = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", none)
    splits = {key: [*entry[:2], None] for key, entry in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", None]])
    meta = {**datasets.CIFAR100.meta, "md5": None}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)


BUILDERS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...] | None, tuple[int, int]]] = {
    "pets": (pets, "pets", tuple(sorted(CLASSES)), (30, 12)),
    "dtd": (dtd, "texture", ("banded", "dotted"), (12, 4)),
    "caltech101": (caltech101, "objects", ("ant", "bass"), (60, 4)),
    "eurosat": (eurosat, "satellite", ("Forest", "River"), (16, 4)),
    "flowers": (flowers, "flowers", None, (6, 6)),
    "svhn": (svhn, "digits", ("0", "1"), (20, 6)),
    "cifar100": (cifar100, "cifar", ("apple", "bear"), (20, 6)),
    "sun397": (sun397, "scenes", ("abbey", "bow_window/indoor"), (16, 4)),
    "camelyon": (camelyon, "histology", ("0", "1"), (26, 8)),
    "clevr-count": (clevr, "clevr", tuple("3 4 5 6 7 8 9 10".split()), (16, 8)),
    "clevr-distance": (clevr, "clevr", VTAB["clevr-distance"].class_names, (16, 8)),
}


def check(task: Task, sizes: tuple[int, int]) -> None:
    assert (len(task.train) + len(task.validation), len(task.test)) == sizes
    counts = np.bincount(np.concatenate([task.train.labels, task.validation.labels]))
    assert len(task.validation) == max((counts > 1).sum(), round(0.2 * sizes[0]))
    names = [*task.train.names, *task.validation.names, *task.test.names]
    assert len(set(names)) == len(names)
    assert task.unreadable == ()


@pytest.mark.usefixtures("any_checksum", "arrays_for_h5")
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_layout_of_the_archive(tmp_path: Path, name: str) -> None:
    build, family, classes, sizes = BUILDERS[name]
    build(tmp_path)
    task = load_task(name, RULE, data=tmp_path)
    check(task, sizes)
    assert task.name == name
    assert task.family == family
    assert task.flips == (name != "svhn")
    assert len(task.classes) == len(classes or ("", ""))
    if classes is not None:
        assert task.classes == classes
    folder = tmp_path / LAYOUTS[name].folder
    assert load_task(name, RULE, data=folder).digest == task.digest
    shared = [layout for layout in LAYOUTS.values() if layout.folder == LAYOUTS[name].folder]
    if LAYOUTS[name].folder and len(shared) == 1:
        assert load_task(None, RULE, data=folder).name == name


def test_pets_labels_splits_and_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    task = load_task("pets", RULE)
    for images in (task.train, task.validation, task.test):
        for name, label in zip(images.names, images.labels, strict=True):
            assert name.startswith("oxford-iiit-pet/images/")
            stem = name.rsplit("/", 1)[1].removesuffix(".jpg")
            assert stem.rsplit("_", 1)[0] == task.classes[label]
            assert (int(stem.rsplit("_", 1)[1]) > 10) == (images is task.test)


def test_caltech_trains_on_thirty_a_class(tmp_path: Path) -> None:
    caltech101(tmp_path)
    task = load_task("caltech101", RULE, data=tmp_path)
    assert np.bincount(task.test.labels).tolist() == [3, 1]
    assert "BACKGROUND_Google" not in task.classes


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_missing_data_says_what_is_expected_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_task(name, RULE)
    message = str(caught.value)
    first = (Path(LAYOUTS[name].folder) / LAYOUTS[name].files[0]).as_posix()
    for part in (f"`task='{name}'`", "is not in data", first, "`data`", "`download=True`"):
        assert part in message
    assert "\n" not in message
    (tmp_path / "else").mkdir()
    with pytest.raises(UserError, match=r"is not in .*else"):
        load_task(name, RULE, data=tmp_path / "else")
    assert list(tmp_path.rglob("*")) == [tmp_path / "else"]


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickles_of_others_are_not_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    cifar100(tmp_path)
    for part in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / part).write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(UserError, match=r"the copy of CIFAR-100 is not usable .*`download=True`"):
        load_task("cifar100", RULE, data=tmp_path)
    assert not trap.exists()


def test_damaged_lists_and_missing_images(tmp_path: Path) -> None:
    pets(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "Birman_3.jpg").unlink()
    (found,) = load_task("pets", RULE, data=tmp_path).unreadable
    assert str(found) == "oxford-iiit-pet/images/Birman_3.jpg: no such file"
    text(tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt", ["Birman_11 x"])
    with pytest.raises(UserError, match="the copy of Oxford-IIIT Pet is not usable"):
        load_task("pets", RULE, data=tmp_path)


def test_image_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    pets(tmp_path)
    folder = tmp_path / "oxford-iiit-pet" / "annotations"
    (folder / "test.txt").write_text((folder / "trainval.txt").read_text())
    with pytest.raises(UserError, match=r"_1\.jpg, .* listed more than once"):
        load_task("pets", RULE, data=tmp_path)


def test_official_class_with_one_image_warns(tmp_path: Path) -> None:
    pets(tmp_path)
    path = tmp_path / "oxford-iiit-pet" / "annotations" / "trainval.txt"
    text(path, path.read_text().splitlines()[:21])
    with pytest.warns(UserWarning, match="only one image of Birman"):
        load_task("pets", RULE, data=tmp_path)


def test_download_is_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets.DTD, "_download", fetch)
    with pytest.raises(UserError, match="fetch it with `download=True`"):
        load_task("dtd", RULE, data=tmp_path)
    with pytest.raises(UserError, match=r"the download of DTD is not usable \(network is unreach"):
        load_task("dtd", RULE, data=tmp_path / "new", download=True)
    monkeypatch.setattr(datasets.DTD, "_download", lambda self: dtd(tmp_path / "new"))
    check(load_task("dtd", RULE, data=tmp_path / "new", download=True), (12, 4))


CUT_SHORT = {
    "eurosat": ("EuroSAT.download", "2750", "EuroSAT.zip", "River/River_10.jpg"),
    "sun397": ("SUN397._download", "", "../SUN397.tar.gz", "a/abbey/sun_9.jpg"),
    "caltech101": ("Caltech101.download", "101_ObjectCategories", "a.zip", "ant/image_0033.jpg"),
}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_download_cut_short_is_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method, unpacked, archive, last = CUT_SHORT[name]
    build, _, _, sizes = BUILDERS[name]
    base = tmp_path / LAYOUTS[name].folder

    def fetch(self: object) -> None:
        """Do nothing where the folder is there, as torchvision; stop short the first time."""
        if (base / unpacked).exists():
            return
        build(tmp_path)
        if not (base / archive).exists():
            (base / archive).touch()
            (base / unpacked / last).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(f"torchvision.datasets.{method}", fetch)
    with pytest.raises(KeyboardInterrupt):
        load_task(name, RULE, data=tmp_path, download=True)
    with pytest.raises(
        UserError, match=r"was cut short; fetch it again with `download=True`, or rem"
    ):
        load_task(name, RULE, data=tmp_path)
    with pytest.warns(UserWarning, match="was cut short; fetching the rest"):
        check(load_task(name, RULE, data=tmp_path, download=True), sizes)
    assert (base / archive).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(load_task(name, RULE, data=tmp_path), sizes)


@pytest.mark.usefixtures("any_checksum")
def test_the_part_of_svhn_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svhn(tmp_path / "whole")
    data = tmp_path / "data"
    fetched: list[str] = []

    def fetch(self: Any) -> None:
        if not (data / self.filename).exists():
            if fetched == ["train_32x32.mat"]:
                fetched.append("no network")
                raise OSError("network is unreachable")
            fetched.append(self.filename)
            (tmp_path / "whole" / self.filename).rename(data / self.filename)

    monkeypatch.setattr(datasets.SVHN, "download", fetch)
    with pytest.raises(UserError, match=r"the download of SVHN is not usable"):
        load_task("svhn", RULE, data=data, download=True)
    with pytest.warns(UserWarning, match="the download of SVHN was cut short"):
        check(load_task("svhn", RULE, data=data, download=True), (20, 6))
    assert fetched == ["train_32x32.mat", "no network", "test_32x32.mat"]


def test_what_a_download_did_not_write_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.DTD, "_download", lambda self: None)
    own = tmp_path / "dtd" / "dtd" / "images" / "mine.jpg"
    jpg(own)
    for _ in range(2):
        with pytest.raises(UserError, match="the download of DTD is not usable"):
            load_task("dtd", RULE, data=tmp_path, download=True)
    assert own.exists()


def test_class_folders_serve_where_the_archive_is_not(tmp_path: Path) -> None:
    own = tmp_path / "photographs"
    for name in ("banded", "dotted"):
        for i in range(10):
            jpg(own / name / f"{i}.jpg")
    task = load_task("dtd", RULE, data=own)
    assert (task.name, task.family) == ("dtd", "texture")
    assert len(task.test) == 4
    dtd(own)
    assert find_root("dtd", own) == own
    check(load_task("dtd", RULE, data=own), (12, 4))


def test_another_set_in_the_folder_is_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eurosat(tmp_path)
    dtd(tmp_path)
    monkeypatch.setattr(datasets.OxfordIIITPet, "_download", lambda self: pets(tmp_path))
    with pytest.raises(
        UserError, match=r"`task='pets'`: Oxford-IIIT Pet is not in .*`download=True`"
    ):
        load_task("pets", RULE, data=tmp_path)
    with pytest.raises(
        UserError, match=r"`data=.*`: holds 2 data set\(s\), such as dtd, instead of class"
    ):
        load_task("beach", RULE, data=tmp_path)
    assert load_task("pets", RULE, data=tmp_path, download=True).classes == tuple(sorted(CLASSES))


def test_own_classes_may_be_called_as_known_sets_are(tmp_path: Path) -> None:
    for name in ("flowers", "pets", "cars"):
        for i in range(5):
            jpg(tmp_path / name / f"{i}.jpg")
    for task in ("pets", "kitti", None):
        assert load_task(task, RULE, data=tmp_path).classes == ("cars", "flowers", "pets")


def test_every_archive_is_tested() -> None:
    assert {*BUILDERS} == {*LAYOUTS}


def test_clevr_trains_on_train_and_tests_on_val(tmp_path: Path) -> None:
    clevr(tmp_path)
    task = load_task("clevr-count", RULE, data=tmp_path)
    assert task.test.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert task.test.names[0] == "clevr/CLEVR_v1.0/images/val/CLEVR_val_000000.png"
    task = load_task("clevr-distance", RULE, data=tmp_path)
    assert task.test.labels.tolist() == [0, 1, 1, 2, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("nearest", "label"), [(7.0, 0), (8.0, 0), (8.01, 1), (8.5, 1), (9.2, 3), (10.0, 4), (11.0, 5)]
)
def test_clevr_labels_are_the_benchmarks(nearest: float, label: int) -> None:
    objects = [{"pixel_coords": [3, 4, distance]} for distance in (12.0, nearest, 13.0)]
    assert distance_label(objects) == label
    assert count_label(objects) == 0


def test_a_scene_of_no_class_is_a_damaged_copy(tmp_path: Path) -> None:
    clevr(tmp_path)
    scenes = tmp_path / "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json"
    content = json.loads(scenes.read_text())
    content["scenes"][0]["objects"] = content["scenes"][0]["objects"][:2]
    scenes.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the copy of CLEVR is not usable \(CLEVR_val_000000\.png"):
        load_task("clevr-count", RULE, data=tmp_path)


def test_camelyon_without_h5py_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camelyon(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        UserError,
        match="`task='camelyon'` needs h5py, which is not installed; run `pip install h5py`",
    ):
        load_task("camelyon", RULE, data=tmp_path)


def test_the_benchmarks_lists_come_before_the_archive(tmp_path: Path) -> None:
    dtd(tmp_path)
    listed(tmp_path / "vtab-1k" / "dtd", 47, per_class=1)
    assert len(load_task("dtd", RULE, data=tmp_path).classes) == 47
