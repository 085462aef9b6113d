"""One reader for each data set that torchvision has a class for: `READERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hgprompt_edge.data.layouts.archives.clevr import scene_labels
from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS
from hgprompt_edge.data.parts import Entry, Parts, parts_without_test
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import first_line
from hgprompt_edge.images.image_names import is_image_name
from hgprompt_edge.images.preprocess import UnreadableImageError, open_image

CALTECH_TRAIN_PER_CLASS = 30
TEST_SHARE = 0.2
"""Of eurosat and sun397, which have no official test part; the benchmark's is as large."""


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


READERS: dict[str, Callable[[Any, Path, bool], Parts]] = {
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
