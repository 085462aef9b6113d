"""Data sets in the layout of their archives, read by the classes that torchvision has for them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hgprompt_edge.data.layouts.clevr import scene_labels
from hgprompt_edge.data.parts import Entry, Parts, parts_without_test
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import UserError, first_line
from hgprompt_edge.images.listing import is_image_name
from hgprompt_edge.images.preprocess import UnreadableImageError, open_image

CALTECH_TRAIN_PER_CLASS = 30
TEST_SHARE = 0.2
"""Of eurosat and sun397, which have no official test part; the benchmark's is as large."""
DEFAULT_DATA = Path("data")


_CLEVR_FILES = tuple(
    f"CLEVR_v1.0/{path}"
    for part in ("train", "val")
    for path in (f"images/{part}", f"scenes/CLEVR_{part}_scenes.json")
)
_PCAM_FILES = tuple(
    f"camelyonpatch_level_2_split_{part}_{what}.h5"
    for part in ("train", "valid", "test")
    for what in "xy"
)


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk: `folder` in the data folder, and the files that must be there.

    An empty `folder`: the files lie in the data folder itself. `whole`: torchvision takes the
    folder, whatever is in it, for the unpacked data set, and keeps the archive beside it.
    """

    title: str
    folder: str
    files: tuple[str, ...]
    whole: bool = False


LAYOUTS = {
    "pets": Layout(
        "Oxford-IIIT Pet",
        "oxford-iiit-pet",
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
    ),
    "flowers": Layout("Flowers 102", "flowers-102", ("jpg", "imagelabels.mat", "setid.mat")),
    "dtd": Layout(
        "DTD",
        "dtd",
        ("dtd/images", "dtd/labels/train1.txt", "dtd/labels/val1.txt", "dtd/labels/test1.txt"),
    ),
    "cifar100": Layout("CIFAR-100", "cifar-100-python", ("train", "test", "meta")),
    "svhn": Layout("SVHN", "", ("train_32x32.mat", "test_32x32.mat")),
    "caltech101": Layout("Caltech 101", "caltech101", ("101_ObjectCategories",)),
    "eurosat": Layout("EuroSAT", "eurosat", ("2750",)),
    "sun397": Layout("SUN397", "SUN397", ("ClassName.txt",), whole=True),
    "camelyon": Layout("PatchCamelyon", "pcam", _PCAM_FILES),
    "clevr-count": Layout("CLEVR", "clevr", _CLEVR_FILES),
    "clevr-distance": Layout("CLEVR", "clevr", _CLEVR_FILES),
}


def find_root(name: str, data: Path) -> Path | None:
    """Find the folder that torchvision calls root; None where the data set does not lie there.

    `data` may be that folder, or the data set's own folder in it.
    """
    layout = LAYOUTS[name]
    roots = [data]
    if layout.folder and data.resolve().name == layout.folder:
        roots.append(data.resolve().parent)
    for root in roots:
        if all((root / layout.folder / file).exists() for file in layout.files):
            return root
    return None


def read_torchvision(name: str, data: Path | None, *, download: bool = False) -> Parts:
    """List a data set of `LAYOUTS` by torchvision's class for it.

    pets: trainval and test; flowers, dtd (split 1), camelyon: train with val, and test; cifar100,
    svhn: train and test; clevr-count, clevr-distance: train, and val as test. The other three have
    no official split: of caltech101 30 images a class train and the rest tests (without the
    background class, which the benchmark counts as one of 102), of eurosat and sun397 20 % test,
    seeded and stratified. A download that was cut short is unpacked again.

    Raises
    ------
    UserError
        Not there, damaged, or a download that failed or was cut short; or torchvision is not
        installed.
    """
    layout = LAYOUTS[name]
    base = DEFAULT_DATA if data is None else data
    root = find_root(name, base)
    mark = _mark(layout, root or base)
    if root is None and not download:
        raise UserError(_missing(name, base))
    if mark.exists() and not download:
        raise UserError(
            f"--data {base}: the download of {layout.title} was cut short; fetch it again with "
            f"--download, or remove {mark} if the copy is whole"
        )
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(
            f"--task {name} needs torchvision; install hgprompt-edge[server]"
        ) from error
    try:
        if root is None or mark.exists():
            return _fetch(name, datasets, root or base)
        return _READERS[name](datasets, root, False)
    except ImportError as error:
        package = "h5py" if error.name == "h5py" else "hgprompt-edge[server]"
        raise UserError(f"--task {name} needs {error.name}; install {package}") from error
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        where = (root or base) / layout.folder
        what = "the download of" if root is None else "the copy of"
        raise UserError(
            f"--data {where}: {what} {layout.title} is not usable ({first_line(error)}); "
            "remove it and fetch it again with --download"
        ) from error


def _mark(layout: Layout, root: Path) -> Path:
    """Return the file that lies in `root` as long as a download is not finished."""
    return root / f".{layout.folder or layout.title}.unfinished"


def _fetch(name: str, datasets: Any, root: Path) -> Parts:
    """Read a data set that torchvision downloads first.

    torchvision unpacks in place and takes any part of an archive for the whole, so a mark lies
    beside it until all of it is there.
    """
    layout = LAYOUTS[name]
    mark, unpacked = _mark(layout, root), _unpacked(layout, root)
    if mark.exists():
        where = root / layout.folder
        warnings.warn(
            f"{where}: the download of {layout.title} was cut short; fetching the rest and "
            "unpacking it again",
            stacklevel=2,
        )
        if layout.folder:  # SVHN's files are not unpacked: torchvision checks each by its md5
            _remove(unpacked)
    if not any(path.exists() for path in unpacked):
        # What lay there before is not ours to remove.
        root.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        parts = _READERS[name](datasets, root, True)
    except BaseException:
        if not any(path.exists() for path in unpacked):
            mark.unlink(missing_ok=True)
        raise
    mark.unlink(missing_ok=True)
    return parts


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _unpacked(layout: Layout, root: Path) -> set[Path]:
    """Return what torchvision unpacks, at the top; archives, which it checks, are not among it."""
    folder = root / layout.folder
    return {folder} if layout.whole else {folder / Path(file).parts[0] for file in layout.files}


def _missing(name: str, base: Path) -> str:
    layout = LAYOUTS[name]
    files = [(Path(layout.folder) / file).as_posix() for file in layout.files]
    return (
        f"--task {name}: {layout.title} is not in {base} (expected {', '.join(files)}, or the "
        f"benchmark's lists in vtab-1k/{VTAB[name].folders[0]}); name its folder with --data DIR "
        "or fetch it with --download"
    )


def _pets(datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        found = datasets.OxfordIIITPet(root, split=split, download=download)
        # The class is the name of the file without its number: Abyssinian_100.jpg.
        return _from_paths(root, found._images, [p.stem.rsplit("_", 1)[0] for p in found._images])

    return Parts(_origin(root, "pets"), entries("trainval"), (), entries("test"), official=True)


def _flowers(datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        found = datasets.Flowers102(root, split=split, download=download)
        names = getattr(found, "classes", None) or [f"{i:03d}" for i in range(1, 103)]
        return _from_paths(root, found._image_files, [names[label] for label in found._labels])

    train = entries("train") + entries("val")
    return Parts(_origin(root, "flowers"), train, (), entries("test"), official=True)


def _dtd(datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        found = datasets.DTD(root, split=split, partition=1, download=download)
        return _from_paths(root, found._image_files, [p.parent.name for p in found._image_files])

    train = entries("train") + entries("val")
    return Parts(_origin(root, "dtd"), train, (), entries("test"), official=True)


def _cifar100(datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        # torchvision checks the md5 of these pickles against the archive's before it loads them.
        found = datasets.CIFAR100(root, train=split == "train", download=download)
        return _from_arrays(split, found.data, [found.classes[i] for i in found.targets])

    return Parts(_origin(root, "cifar100"), entries("train"), (), entries("test"), official=True)


def _svhn(datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        found = datasets.SVHN(root, split=split, download=download)
        pixels = found.data.transpose(0, 2, 3, 1)
        return _from_arrays(split, pixels, [str(label) for label in found.labels])

    return Parts(_origin(root, "svhn"), entries("train"), (), entries("test"), official=True)


def _caltech101(datasets: Any, root: Path, download: bool) -> Parts:
    found = datasets.Caltech101(root, download=download)
    folder = Path(found.root) / "101_ObjectCategories"
    labels = [found.categories[i] for i in found.y]
    paths = [
        folder / label / f"image_{i:04d}.jpg" for label, i in zip(labels, found.index, strict=True)
    ]
    entries = _from_paths(root, paths, labels)
    return parts_without_test(
        _origin(root, "caltech101"), entries, train_per_class=CALTECH_TRAIN_PER_CLASS
    )


def _eurosat(datasets: Any, root: Path, download: bool) -> Parts:
    found = datasets.EuroSAT(root, download=download)
    # torchvision lists the ._ files of macOS, too.
    samples = [
        (Path(path), label) for path, label in found.samples if is_image_name(Path(path).name)
    ]
    paths = [path for path, _ in samples]
    labels = [found.classes[label] for _, label in samples]
    entries = _from_paths(root, paths, labels)
    return parts_without_test(_origin(root, "eurosat"), entries, share=TEST_SHARE)


def _sun397(datasets: Any, root: Path, download: bool) -> Parts:
    found = datasets.SUN397(root, download=download)
    # torchvision takes the files in the file system's order, which is not the same everywhere.
    images = sorted(zip(found._image_files, found._labels, strict=True))
    labels = [found.classes[label] for _, label in images]
    entries = _from_paths(root, [path for path, _ in images], labels)
    return parts_without_test(_origin(root, "sun397"), entries, share=TEST_SHARE)


def _camelyon(datasets: Any, root: Path, download: bool) -> Parts:
    import h5py  # torchvision reports its absence as a damaged copy

    def entries(split: str) -> list[Entry]:
        found = datasets.PCAM(root, split=split, download=download)
        with h5py.File(found._base_folder / found._FILES[split]["targets"][0]) as file:
            labels = file["y"][:].reshape(-1).tolist()
        names = [f"{split}/{i:06d}" for i in range(len(labels))]
        return [
            Entry(name, str(label), partial(_open_item, found, i, name))
            for i, (name, label) in enumerate(zip(names, labels, strict=True))
        ]

    train = entries("train") + entries("val")
    return Parts(_origin(root, "camelyon"), train, (), entries("test"), official=True)


def _clevr(name: str, datasets: Any, root: Path, download: bool) -> Parts:
    def entries(split: str) -> list[Entry]:
        found = datasets.CLEVRClassification(root, split=split, download=download)
        scenes = found._data_folder / "scenes" / f"CLEVR_{split}_scenes.json"
        labels = scene_labels(scenes, name)
        paths = found._image_files
        return _from_paths(root, paths, [labels[path.name] for path in paths])

    # The scenes of CLEVR's own test part are not published: val tests, as in the benchmark.
    classes, train, test = VTAB[name].class_names, entries("train"), entries("val")
    return Parts(_origin(root, name), train, (), test, official=True, classes=classes)


_READERS: dict[str, Callable[[Any, Path, bool], Parts]] = {
    "pets": _pets,
    "flowers": _flowers,
    "dtd": _dtd,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "caltech101": _caltech101,
    "eurosat": _eurosat,
    "sun397": _sun397,
    "camelyon": _camelyon,
    "clevr-count": partial(_clevr, "clevr-count"),
    "clevr-distance": partial(_clevr, "clevr-distance"),
}


def _origin(root: Path, name: str) -> str:
    return str(root / LAYOUTS[name].folder)


def _from_paths(root: Path, paths: Sequence[Path], labels: Sequence[str]) -> list[Entry]:
    entries = []
    for path, label in zip(paths, labels, strict=True):
        name = path.relative_to(root).as_posix()
        entries.append(Entry(name, label, partial(open_image, path, name)))
    return entries


def _from_arrays(split: str, pixels: Any, labels: Sequence[str]) -> list[Entry]:
    """Entries of `pixels [n, H, W, 3]` uint8."""
    return [
        Entry(f"{split}/{i:05d}", label, partial(Image.fromarray, pixels[i]))
        for i, label in enumerate(labels)
    ]


def _open_item(found: Any, index: int, name: str) -> Image.Image:
    """Image `index` of a data set of torchvision's that keeps them in one file."""
    try:
        image: Image.Image = found[index][0]
    except (OSError, LookupError) as error:
        raise UnreadableImageError(name, f"not readable ({first_line(error)})") from error
    return image
