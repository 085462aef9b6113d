"""Options that several commands take, declared once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

MAX_BATCH = 100_000
"""More images at a time fit into no memory."""


class DeviceName(str, Enum):
    """Where images run through the backbone."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class PrecisionName(str, Enum):
    """What images run through the backbone in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class SplitName(str, Enum):
    """Parts of a data set."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"
    ALL = "all"


class ResizeName(str, Enum):
    """Ways to make pictures square."""

    CROP = "crop"
    SQUASH = "squash"
    LETTERBOX = "letterbox"


class ResizeOrAuto(str, Enum):
    """The same, or whichever holds out best."""

    CROP = "crop"
    SQUASH = "squash"
    LETTERBOX = "letterbox"
    AUTO = "auto"


class Pixels(str, Enum):
    """Normalisation of the pixels that a prompt or a backbone was trained on."""

    IMAGENET = "imagenet"
    INCEPTION = "inception"
    NONE = "none"
    BACKBONE = "backbone"


MODEL_PANEL, COMPUTE_PANEL = "Backbone", "Computing"

Task = Annotated[
    str | None,
    typer.Option(
        help="A task that `hgedge tasks` lists, or a name for your images in --data.",
        show_default=False,
    ),
]
DeviceTask = Annotated[
    str | None, typer.Option("--task", help="Task of a device folder.", show_default=False)
]
Sources = Annotated[
    str | None,
    typer.Option(
        help="Folder of source prompts, a bundled bank (`dinov2-small`, `tiny`), or `none` to use "
        "no prompts (default: the backbone's bundled bank).",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of class folders, of VTAB-1k's lists or of parquet files, images.zip with "
        "labels.csv, or hf:ORG/NAME of the Hugging Face hub; for a known data set the folder that "
        "holds it (default: ./data).",
        show_default=False,
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a known data set if missing.")]
GroupByHash = Annotated[
    bool,
    typer.Option(
        "--group-by-hash",
        help="Keep copies of a picture, re-encoded, resized or mirrored ones among them, on one "
        "side of the split.",
    ),
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="`dinov2-small`, `tiny`, or a timm id (default: that of the prompts, else "
        "dinov2-small).",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Local file with the backbone's weights, of timm, transformers or the code of DINO, "
        "DINOv2 or DeiT; --backbone with a timm id then names the architecture.",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the images in pixels, a multiple of the patch (default: the backbone's).",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
_HOW = (
    "How pictures become square: crop shows the middle, squash distorts, letterbox adds a border "
    "in the mean colour"
)
Resize = Annotated[
    ResizeName | None,
    typer.Option(help=f"{_HOW} (default: as the backbone, mostly crop).", show_default=False),
]
ResizeAuto = Annotated[
    ResizeOrAuto | None,
    typer.Option(
        "--resize",
        help=f"{_HOW}, auto takes what held-out images prove better (default: as the backbone, "
        "mostly crop).",
        show_default=False,
    ),
]
Preprocessing = Annotated[
    Pixels | None,
    typer.Option(
        help="Pixels that the backbone was trained on: `imagenet` has mean 0.485 0.456 0.406, "
        "`inception` 0.5, `none` is pixels in [0, 1] (default: as its files or its prompts say).",
        show_default=False,
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(
        help="Where images run through the backbone; auto: cuda where there is one (mps is "
        "experimental).",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="Precision of the backbone; auto: the faster one here. What is kept is measured in "
        "float32.",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
# The search without gradients takes no larger seed.
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=2**32 - 1, help="Seed of every random choice.", rich_help_panel=COMPUTE_PANEL
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Images at a time.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="CPU threads (default: all that the process may use).", show_default=False
    ),
]
RuntimeDevice = Annotated[
    str, typer.Option(help="For OpenVINO models: CPU, GPU, AUTO or another of its devices.")
]
Bf16 = Annotated[
    bool | None,
    typer.Option(
        help="For OpenVINO models: compute in bfloat16 (default: what int8 models leave in float, "
        "on CPUs with AMX).",
        show_default=False,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="State folder of `hgedge adapt` (default: MODEL.state, if it is there).",
        show_default=False,
    ),
]
Split = Annotated[
    SplitName | None,
    typer.Option(
        help="Which part of the data (default: the test part, or all images of class folders "
        "without parts).",
        show_default=False,
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="CLASS=MODEL_CLASS: a class of the data that the model knows under another name; "
        "repeatable.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave a parameter, be it with its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
