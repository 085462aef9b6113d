"""A device folder: one backbone for many tasks, and what its graph says of itself.

device/
backbone.onnx      the graph; prompt and head are inputs
backbone.weights   its weights, and those of default.onnx
default.onnx       the same graph with the first task folded in, for plain runtimes
NAME.hgtask        a task: keys and values, heads, classes, preprocessing
bank.safetensors   where tasks can be adapted: the prompts that they mix, each once
adapt.onnx         the graph of the gradient of all tasks

For OpenVINO the first three are `backbone.xml`, `backbone.bin` and `default.xml`. Tasks are the
same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Json, ValidationError

from hgprompt_edge.artifacts.device_bank import TASK, TASKS_ADAPT, TASKS_BANK
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import check_format
from hgprompt_edge.images.preprocess import Preprocessing

FORMAT = "hgprompt.backbone/1"
BANK, ADAPT = TASKS_BANK, TASKS_ADAPT
GRAPH, WEIGHTS, DEFAULT, SUFFIX = (
    "backbone.onnx",
    "backbone.weights",
    "default.onnx",
    TASK,
)


@dataclass(frozen=True)
class Files:
    """Names of the files of a device folder beside those of its tasks."""

    graph: str
    weights: str
    default: str

    @property
    def names(self) -> tuple[str, str, str]:
        """All of them, the weights first."""
        return self.weights, self.graph, self.default


ONNX = Files(GRAPH, WEIGHTS, DEFAULT)
OPENVINO = Files("backbone.xml", "backbone.bin", "default.xml")


class BackboneFacts(BaseModel):
    """What the graph of a device folder says of itself, under `hgprompt.*`.

    Attributes
    ----------
    backbone, backbone_sha256
        Name and fingerprint of the frozen weights.
    preprocessing
        What all tasks of the folder share.
    pooling
        What the features are: `token`, `avg` or `both`.
    default
        Task that is folded into `default.onnx` or `default.xml`; empty where there is none.
    precision
        How weights are stored and products computed.
    weights_sha256
        Of the file with the weights.
    quantized_sha256
        By which tasks name the int8 backbone on which their accuracy was measured; empty in float.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str
    backbone: str
    backbone_sha256: str
    preprocessing: Json[Preprocessing]
    pooling: str
    default: str
    precision: Literal["fp32", "fp16", "int8"]
    weights_sha256: str
    quantized_sha256: str = ""


def parse_facts(path: Path, entries: Mapping[str, str]) -> BackboneFacts:
    """Check what a graph says of itself.

    Raises
    ------
    UserError
        It is not that of a device folder, of another format, or damaged.
    """
    fields = {key.removeprefix(PREFIX): entries[key] for key in entries if key.startswith(PREFIX)}
    found = fields.get("format", "missing")
    otherwise = f"not the backbone of a device folder (format '{brief(found)}'); export it again"
    check_format(path, found, FORMAT, otherwise)
    try:
        return BackboneFacts.model_validate(fields)
    except ValidationError as error:
        where = brief(".".join(str(part) for part in error.errors()[0]["loc"]))
        raise FileError(
            path,
            f"'{PREFIX}{where}' is missing or malformed; export the folder again",
        ) from error


RESERVED = ("default", "backbone")


def bad_name(name: str) -> str:
    """Say why no file of a device folder can be named after this task; empty: it can."""
    if not name or name.startswith(".") or any(part in name for part in ("/", "\\", ":", "\0")):
        return "cannot be the name of a file in a device folder"
    return "is the name of another file of a device folder" if name in RESERVED else ""


def gives(pooling: str) -> tuple[str, ...]:
    """Features of a backbone that a head with this pooling can take."""
    return ("token", "both") if pooling == "token" else (pooling,)


def files_of(folder: Path) -> Files | None:
    """Return the names of the files of a device folder; None: it is none."""
    return next((files for files in (ONNX, OPENVINO) if (folder / files.graph).is_file()), None)


def graph_of(folder: Path) -> Path | None:
    """Return the graph of a device folder; None: it is none."""
    files = files_of(folder)
    return None if files is None else folder / files.graph


def adapts(folder: Path) -> bool:
    """Whether the tasks of a device folder were exported to be adapted."""
    return (folder / BANK).is_file()


def task_paths(folder: Path) -> dict[str, Path]:
    """Tasks of a device folder by name, in alphabetical order."""
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.is_file()}
