"""The 19 tasks of VTAB-1k: names, classes, groups, and who distributes the images.

Zhai et al. 2019, "A large-scale study of representation learning with the visual task adaptation
benchmark". Of each task 1,000 images train (800 train, 200 choose) and the full test part tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attribute:
    """A column of raw data from which the benchmark takes its label.

    `values` levels of it are grouped, neighbours together, into the classes of the task.
    """

    column: str
    values: int


@dataclass(frozen=True)
class VtabTask:
    """A task of the benchmark.

    Attributes
    ----------
    name, title
        What `find_task` takes; what people call it.
    group
        `natural`, `specialized` or `structured`.
    classes
        How many, whether or not each has an image among the 1,000.
    family
        Tasks of one family never serve each other as source and target.
    folders
        Names under which people keep it; the first is that of the VTAB-1k archive.
    owner
        Who distributes the images.
    names
        What the classes 0, 1, ... are; empty: the lists do not say, numbers serve.
    flips
        Whether a horizontal flip keeps the class.
    attribute
        Where raw data carry the label in an attribute.
    like
        A generated task of the same kind, which needs no files.
    """

    name: str
    title: str
    group: str
    classes: int
    family: str
    folders: tuple[str, ...]
    owner: str
    names: tuple[str, ...] = ()
    flips: bool = True
    attribute: Attribute | None = None
    like: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the benchmark's order, `[classes]`."""
        return self.names or tuple(str(label) for label in range(self.classes))


_TASKS = (
    VtabTask(
        name="caltech101",
        title="Caltech 101",
        group="natural",
        classes=102,
        family="objects",
        folders=("caltech101", "caltech_101", "caltech_102"),
        owner="Caltech, CaltechDATA",
    ),
    VtabTask(
        name="cifar100",
        title="CIFAR-100",
        group="natural",
        classes=100,
        family="cifar",
        folders=("cifar", "cifar100", "cifar_100", "cifar-100"),
        owner="the University of Toronto",
    ),
    VtabTask(
        name="dtd",
        title="DTD",
        group="natural",
        classes=47,
        family="texture",
        folders=("dtd", "dtd_47"),
        owner="Oxford's Visual Geometry Group",
    ),
    VtabTask(
        name="flowers",
        title="Flowers 102",
        group="natural",
        classes=102,
        family="flowers",
        folders=("oxford_flowers102", "flowers102", "oxford_flowers_102", "flowers_102"),
        owner="Oxford's Visual Geometry Group",
    ),
    VtabTask(
        name="pets",
        title="Oxford-IIIT Pet",
        group="natural",
        classes=37,
        family="pets",
        folders=("oxford_iiit_pet", "oxford_iiit_pets", "oxford_pets", "oxford-iiit-pet"),
        owner="Oxford's Visual Geometry Group",
    ),
    VtabTask(
        name="svhn",
        title="SVHN",
        group="natural",
        classes=10,
        family="digits",
        folders=("svhn", "svhn_cropped"),
        owner="Stanford, house numbers",
        flips=False,
    ),
    VtabTask(
        name="sun397",
        title="SUN397",
        group="natural",
        classes=397,
        family="scenes",
        folders=("sun397", "SUN397"),
        owner="Princeton, the SUN database",
    ),
    VtabTask(
        name="camelyon",
        title="PatchCamelyon",
        group="specialized",
        classes=2,
        family="histology",
        folders=("patch_camelyon", "pcam"),
        owner="its authors, basveeling/pcam on GitHub",
    ),
    VtabTask(
        name="eurosat",
        title="EuroSAT",
        group="specialized",
        classes=10,
        family="satellite",
        folders=("eurosat",),
        owner="its authors, phelber/EuroSAT on GitHub",
    ),
    VtabTask(
        name="resisc45",
        title="RESISC45",
        group="specialized",
        classes=45,
        family="aerial",
        folders=("resisc45", "NWPU-RESISC45"),
        owner="Northwestern Polytechnical University, NWPU-RESISC45",
    ),
    VtabTask(
        name="retinopathy",
        title="Diabetic Retinopathy",
        group="specialized",
        classes=5,
        family="retina",
        folders=("diabetic_retinopathy", "diabetic_retinopathy_detection"),
        owner="Kaggle, Diabetic Retinopathy Detection, to those who sign in",
    ),
    VtabTask(
        name="clevr-count",
        title="Clevr-Count",
        group="structured",
        classes=8,
        family="clevr",
        folders=("clevr_count", "clevr_count_all"),
        owner="Stanford, CLEVR v1.0",
        names=tuple(str(objects) for objects in range(3, 11)),
        like="generated-solid-count",
    ),
    VtabTask(
        name="clevr-distance",
        title="Clevr-Distance",
        group="structured",
        classes=6,
        family="clevr",
        folders=("clevr_dist", "clevr_distance", "clevr_closest_object_distance"),
        owner="Stanford, CLEVR v1.0",
        names=("nearer than 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "farther than 10"),
        like="generated-solid-distance",
    ),
    VtabTask(
        name="dmlab",
        title="DMLab",
        group="structured",
        classes=6,
        family="dmlab",
        folders=("dmlab",),
        owner="the authors of VTAB, dmlab of TensorFlow Datasets",
    ),
    VtabTask(
        name="kitti",
        title="KITTI-Distance",
        group="structured",
        classes=4,
        family="driving",
        folders=("kitti", "kitti_distance", "kitti_closest_vehicle_distance"),
        owner="KIT and TTIC, the KITTI suite, object detection, to those who sign in",
        names=(
            "vehicle nearer than 8 m",
            "vehicle at 8 to 20 m",
            "vehicle farther than 20 m",
            "no vehicle",
        ),
    ),
    VtabTask(
        name="dsprites-location",
        title="dSprites-Location",
        group="structured",
        classes=16,
        family="dsprites",
        folders=("dsprites_loc", "dsprites_location", "dsprites_label_x_position"),
        owner="DeepMind, dsprites-dataset on GitHub",
        flips=False,
        attribute=Attribute("label_x_position", 32),
        like="generated-sprite-location",
    ),
    VtabTask(
        name="dsprites-orientation",
        title="dSprites-Orientation",
        group="structured",
        classes=16,
        family="dsprites",
        folders=("dsprites_ori", "dsprites_orientation", "dsprites_label_orientation"),
        owner="DeepMind, dsprites-dataset on GitHub",
        flips=False,
        attribute=Attribute("label_orientation", 40),
        like="generated-sprite-orientation",
    ),
    VtabTask(
        name="smallnorb-azimuth",
        title="SmallNORB-Azimuth",
        group="structured",
        classes=18,
        family="norb",
        folders=("smallnorb_azi", "smallnorb_azimuth", "smallnorb_label_azimuth"),
        owner="New York University, the small NORB data set",
        names=tuple(f"{20 * label} degrees" for label in range(18)),
        flips=False,
        attribute=Attribute("label_azimuth", 18),
        like="generated-object-azimuth",
    ),
    VtabTask(
        name="smallnorb-elevation",
        title="SmallNORB-Elevation",
        group="structured",
        classes=9,
        family="norb",
        folders=("smallnorb_ele", "smallnorb_elevation", "smallnorb_label_elevation"),
        owner="New York University, the small NORB data set",
        names=tuple(f"{30 + 5 * label} degrees" for label in range(9)),
        attribute=Attribute("label_elevation", 9),
        like="generated-object-elevation",
    ),
)

VTAB = {task.name: task for task in _TASKS}
"""The 19 tasks by name, in the order in which the benchmark lists them."""

ALIASES = {folder: task.name for task in _TASKS for folder in (task.name, *task.folders)}
"""Every name that a task or its folder goes by, to the task's name."""

BENCHMARK = "vtab-1k"
"""The folder of the benchmark's archive."""


def missing(task: VtabTask, base: Path) -> str:
    """Say, in one sentence, where to get a task by hand and into which folder below `base`."""
    like = f"; {task.like} is of its kind and needs no files" if task.like else ""
    root = base if base.name == BENCHMARK else base / BENCHMARK
    return (
        f"{task.title} is not in {base} and must be downloaded by hand: unpack its part of "
        "vtab-1k.zip, which luogen1996/RepAdapter on GitHub links to, into "
        f"{root / task.folders[0]}, or name a folder of parquet files or of class folders with "
        f"`data` (the images are from {task.owner}){like}"
    )
