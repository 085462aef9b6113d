"""What an exported model says about itself: the metadata under `hgprompt.*`.

All values are strings, most of them JSON. The file may come from anywhere, so everything is
checked before it is used.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, field_validator

from hgprompt_edge.artifacts.training_images import TrainingImages
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import check_format
from hgprompt_edge.images.preprocess import RESAMPLING, Preprocessing
from hgprompt_edge.maths.parity import TOLERANCES

FORMAT = "hgprompt.model/1"
PREFIX = "hgprompt."
MAX_SIDE = 16_384
"""No image is resized to more than this many pixels a side, whatever a file says."""
PROBE_BYTES = 640 * 1024
"""Raw size of the probe images that a model carries: 16 of 64 pixels, 4 of 224."""


class Metadata(BaseModel):
    """Metadata of an exported model, each field from the key `hgprompt.<field>`.

    Attributes
    ----------
    resize
        The resize rule in words.
    pooling
        What the head sees: `token`, `avg` (mean of the patch tokens) or `both`.
    choice
        Which mix was chosen on held-out images, see `Bundle`.
    more
        Of each folded prompt beyond the first its `method` and the shares of the sources,
        `weights`; the probabilities of all are averaged.
    verification
        Figures of the comparison with PyTorch; written last, so a file without it is not whole.
    precision
        How weights are stored and products computed.
    bundle_sha256
        Of the bundle file that the model was made from.
    bank_sha256
        Of the bank beside the model, from which its prompt is mixed; empty where it is folded in.
    bank_content_sha256
        Over all of that bank, see `content_sha256`; empty as `bank_sha256`.
    file_sha256
        Over all of the file, see `model_digest`.
    bf16
        Whether an int8 model was held against float32 with what it leaves in float in bfloat16.
    quantization
        Of int8 models: validation accuracy in float32, and of each scheme that was tried; the CPU
        on which it was measured, and the model's own logits there on the probe images, `[p][K]`.
    probe_logits
        PyTorch's logits on the probe images, `[p][K]`.
    training_images
        Hashes of the images that it was trained on, see `trained`; empty: not recorded.
    reference
        What its own images look like, see `unpack_reference`; empty: not recorded.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str
    task: str
    classes: Json[tuple[str, ...]] = Field(min_length=1)
    preprocessing: Json[Preprocessing]
    image_size: int
    resize: str
    backbone: str
    backbone_sha256: str
    mode: str
    pooling: str
    choice: str
    weights: Json[tuple[float, ...]]
    sources: Json[tuple[dict[str, str], ...]]
    objective: Json[dict[str, Any]]
    table: Json[tuple[dict[str, Any], ...]]
    split_digest: str
    seed: int
    versions: Json[dict[str, str]]
    verification: Json[dict[str, Any]]
    probe_logits: Json[tuple[tuple[float, ...], ...]]
    probe_images: str
    precision: str = "fp32"
    bundle_sha256: str = ""
    bank_sha256: str = ""
    bank_content_sha256: str = ""
    file_sha256: str = ""
    bf16: Json[bool] = Field(default="false", validate_default=True)
    quantization: Json[dict[str, Any]] = Field(default="{}", validate_default=True)
    training_images: str = ""
    reference: str = ""
    more: Json[tuple[dict[str, Any], ...]] = Field(default="[]", validate_default=True)

    @property
    def folded_prompts(self) -> int:
        """How many folded prompts the model averages, no prompt counted as one; 1 for most."""
        return 1 + len(self.more)

    @field_validator("preprocessing")
    @classmethod
    def _known_rule(cls, value: Preprocessing) -> Preprocessing:
        if not (0 < value.image_size <= MAX_SIDE and 0 < value.resize <= MAX_SIDE):
            raise ValueError(f"sides must be 1 to {MAX_SIDE} pixels")
        if value.interpolation not in RESAMPLING:
            raise ValueError(f"unknown interpolation '{value.interpolation}'")
        return value

    @field_validator("precision")
    @classmethod
    def _known_precision(cls, value: str) -> str:
        if value not in TOLERANCES:
            raise ValueError(f"unknown precision '{value}'")
        return value

    @field_validator("sources")
    @classmethod
    def _named(cls, value: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
        if not all({"name", "sha256"} <= set(source) for source in value):
            raise ValueError("a source lacks its name or sha256")
        return value

    def trained(self) -> TrainingImages | None:
        """Hashes of the images that it was trained on; None: not recorded.

        Raises
        ------
        ValueError, TypeError, LookupError
            They are damaged.
        """
        return TrainingImages.from_json(self.training_images) if self.training_images else None

    def probe(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Images `[p, S, S, 3]` and the logits `[p, K]` that PyTorch gives for them.

        Raises
        ------
        ValueError
            The images do not unpack to that size.
        """
        logits = np.array(self.probe_logits, dtype=np.float32).reshape(-1, len(self.classes))
        side = self.preprocessing.image_size
        size = len(logits) * side * side * 3
        packed = zlib.decompressobj()
        try:
            raw = packed.decompress(base64.b64decode(self.probe_images), size + 1)
        except zlib.error as error:
            raise ValueError(f"probe images are damaged ({error})") from error
        if len(raw) != size:
            raise ValueError(f"probe images unpack to {len(raw)} bytes instead of {size}")
        return np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3), logits


def pack_images(images: npt.NDArray[np.uint8]) -> str:
    """Images `[n, S, S, 3]` as text, deflated; `probe_count` says how many a model carries."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(images).tobytes(), 9)).decode()


def probe_count(images: npt.NDArray[np.uint8]) -> int:
    """How many of the probe images `[n, S, S, 3]` go into a model."""
    return min(len(images), max(1, PROBE_BYTES // max(1, images[:1].nbytes)))


def assume_metadata(side: int, classes: int) -> Metadata:
    """Stand in for the metadata of a model of `side` pixels that says nothing of itself.

    Its classes are numbers, and images are resized and cropped to its size.
    """
    return Metadata.model_construct(
        format="",
        task="",
        classes=tuple(str(index) for index in range(classes)),
        preprocessing=Preprocessing(side, side),
        image_size=side,
        probe_logits=(),
        probe_images="",
        precision="fp32",
        bank_sha256="",
        more=(),
    )


NOT_OURS = (
    "not a model of `hgedge export` (no class names, resize rule or images to verify it on); "
    "give the file that it wrote"
)


def parse_metadata(path: Path, entries: Mapping[str, str], form: str = FORMAT) -> Metadata:
    """Check the metadata of a model file, or of another one that has them with its own `form`.

    Raises
    ------
    UserError
        Not a model of ours, one of a newer format, or damaged.
    """
    version = entries.get(f"{PREFIX}format", "")
    check_format(path, version, form, NOT_OURS)
    if f"{PREFIX}verification" not in entries:
        raise FileError(path, "its last part is missing; copy or export the model again")
    fields = {key.removeprefix(PREFIX): entries[key] for key in entries if key.startswith(PREFIX)}
    try:
        return Metadata.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = brief(".".join(str(part) for part in first["loc"]))
        raise FileError(
            path,
            f"'{PREFIX}{where}' is missing or malformed ({brief(first['msg'].lower())}); export "
            "the model again",
        ) from error
