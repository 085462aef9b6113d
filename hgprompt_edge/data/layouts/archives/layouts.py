"""How data sets lie on disk where their archives were unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
