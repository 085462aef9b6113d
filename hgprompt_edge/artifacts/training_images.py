"""Which images a model was trained on, as hashes: whether others are among them can be asked.

40 bytes an image, no pixels. Who has a picture can ask whether it is among them; nobody can make
the picture from its hash.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.files import Array
from hgprompt_edge.images.near_pairs import near_pairs
from hgprompt_edge.images.picture_hash import FLAT, HASH_BYTES, Hashes, join, sees_near_copies

MOST = 10_000
"""Hashes that are kept: of more images a sample, drawn with seed 0. 400 kB in a bundle, 540 kB as
text in a model."""

DIGESTS, LOOKS = "training.digests", "training.looks"
BYTES = 8 + HASH_BYTES


@dataclass(frozen=True)
class TrainingImages:
    """Hashes of the images that a model was trained on.

    Attributes
    ----------
    count
        How many there were.
    digests
        `[m]` uint64, of at most `MOST` of them.
    looks
        `[m, HASH_BYTES]` uint8, zero where an image has none.
    near
        Whether looks were taken: ImageHash was installed at the fit.
    """

    count: int
    digests: npt.NDArray[np.uint64]
    looks: npt.NDArray[np.uint8]
    near: bool

    @property
    def facts(self) -> dict[str, int | bool]:
        """What a bundle says of them beside the tensors, for JSON."""
        return {"count": self.count, "near": self.near}

    def tensors(self) -> dict[str, Array]:
        """Return what a bundle holds of them."""
        return {DIGESTS: self.digests, LOOKS: self.looks}

    def to_json(self) -> str:
        """Return what a model's metadata hold of them; `from_json` reads it back."""
        data = self.digests.astype("<u8").tobytes() + self.looks.tobytes()
        return json.dumps({**self.facts, "hashes": base64.b64encode(data).decode()})

    @classmethod
    def from_json(cls, text: str) -> TrainingImages:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError, TypeError, LookupError
            It is damaged.
        """
        fields = json.loads(text)
        data = base64.b64decode(fields["hashes"], validate=True)
        kept, rest = divmod(len(data), BYTES)
        if rest or kept > MOST or kept > int(fields["count"]):
            raise ValueError(f"{len(data)} bytes of hashes for {fields['count']} images")
        digests = np.frombuffer(data, "<u8", kept).astype(np.uint64)
        looks = np.frombuffer(data, np.uint8, offset=8 * kept).reshape(kept, HASH_BYTES)
        return cls(int(fields["count"]), digests, looks, bool(fields["near"]))


@dataclass(frozen=True)
class Known:
    """Which of some images a model was trained on.

    Attributes
    ----------
    same, near
        Places of images with equal pixels, and of further ones that look like a training image.
    """

    same: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]


def remember(*parts: Hashes | None) -> TrainingImages | None:
    """Keep the hashes of training images, those of several parts; None where a part has none."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    hashes = join(found)
    count = len(hashes)
    if count > MOST:
        hashes = hashes.subset(np.sort(np.random.default_rng(0).permutation(count)[:MOST]))
    return TrainingImages(count, hashes.digests, hashes.looks, sees_near_copies())


def find_known(hashes: Hashes, trained: TrainingImages) -> Known:
    """Find the pictures that a model was trained on, or near-copies of which it was."""
    same = (hashes.digests != FLAT) & np.isin(hashes.digests, trained.digests)
    near = np.zeros(len(hashes), bool)
    others = Hashes(trained.digests, trained.looks, trained.looks)
    for pairs in near_pairs(hashes, others):
        near[pairs.first] = True
    return Known(np.flatnonzero(same), np.flatnonzero(near & ~same))


def read_training_images(tensors: Mapping[str, Array], facts: str) -> TrainingImages | None:
    """Read and check what a bundle holds of them and says in `facts`; None: nothing.

    Raises
    ------
    ValueError, TypeError, LookupError
        They do not fit each other, or a part is missing.
    """
    if not facts and DIGESTS not in tensors and LOOKS not in tensors:
        return None
    fields = json.loads(facts)
    count = int(fields["count"])
    digests, looks = tensors[DIGESTS], tensors[LOOKS]
    if digests.dtype != np.uint64 or digests.ndim != 1 or len(digests) > min(count, MOST):
        raise ValueError(f"'{DIGESTS}' is {digests.dtype} {list(digests.shape)} of {count} images")
    if looks.dtype != np.uint8 or looks.shape != (len(digests), HASH_BYTES):
        raise ValueError(f"'{LOOKS}' is {looks.dtype} {list(looks.shape)}")
    return TrainingImages(
        count,
        cast("npt.NDArray[np.uint64]", digests),
        cast("npt.NDArray[np.uint8]", looks),
        bool(fields["near"]),
    )
