"""Features and pull-backs of a frozen backbone, kept on disk so that no pass is run twice.

One safetensors file a result. Its name is the sha256 of everything it depends on, so an entry is
never out of date; the least recently used ones go when the cache exceeds its bound.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.linearize import Linearized, pixel_inputs, pull_parts
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cache import evict
from hgprompt_edge.files import cache_folder, read_safetensors, write_safetensors

Pixels = npt.NDArray[np.uint8]
Tokens = npt.NDArray[np.float32]
PullBack = Callable[[Tensor], Tensor]

FORM_VERSION = 2
"""Raise it whenever the forward pass changes what it computes."""
DEFAULT_MEGABYTES = 2048


class FeatureStore:
    """Features and pull-backs of one backbone.

    Parameters
    ----------
    enabled
        False: neither reads nor writes the disk.
    """

    def __init__(self, backbone: Backbone, *, enabled: bool = True) -> None:
        self.backbone, self.enabled = backbone, enabled
        self._limit = _limit_bytes()
        self._fingerprint = _fingerprint(backbone)
        self._memory: dict[str, Tensor] = {}
        self._digests: dict[int, tuple[Pixels, str]] = {}
        self._asked: dict[str, int] | None = None

    def in_precision(self, name: str) -> FeatureStore:
        """Return a store of the same backbone computing in `float32` or `bfloat16`."""
        backbone = self.backbone.in_precision(name)
        return self if backbone is self.backbone else FeatureStore(backbone, enabled=self.enabled)

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Note what is asked for, cached or not: image passes by the name of the result.

        A pull-back counts three passes, one forward and two back; the
        forward pass of `linearized` is that of its features.
        """
        asked: dict[str, int] = {}
        outer = self._asked
        self._asked = asked
        try:
            yield asked
        finally:
            self._asked = outer
            self.note(asked)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not note what is asked for in here."""
        outer, self._asked = self._asked, None
        try:
            yield
        finally:
            self._asked = outer

    def note(self, asked: dict[str, int]) -> None:
        """Count these results as asked for too."""
        if self._asked is not None:
            self._asked.update(asked)

    def features(self, pixels: Pixels, tokens: Tokens | None) -> Tensor:
        """Features `[n, D]` float32 of pixels `[n, S, S, 3]` under a prompt `[L, T, D]`.

        Without a prompt one pass gives those of all the backbone's poolings.
        """
        backbone = self.backbone
        if tokens is not None or len(backbone.poolings) == 1:
            return self._features(backbone, pixels, tokens)
        both = self._features(backbone.with_pooling("both"), pixels, None)
        parts = dict(zip(("token", "avg"), both.chunk(2, dim=1), strict=True))
        return parts[backbone.pooling].contiguous() if backbone.pooling in parts else both

    def with_pooling(self, name: str) -> FeatureStore:
        """Store of the same backbone with other features, which shares what is in memory."""
        other = copy.copy(self)
        other.backbone = self.backbone.with_pooling(name)
        return other

    def _features(
        self,
        backbone: Backbone,
        pixels: Pixels,
        tokens: Tokens | None,
        compute: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        def extract() -> Tensor:
            return extract_features(backbone, pixels, tokens)

        shape = (len(pixels), backbone.feature_dim)
        key = ("features", backbone.pooling, self._digest(pixels), digest(tokens))
        return self.cached(key, shape, compute or extract, passes=len(pixels))

    def pull_back(self, pixels: Pixels, tokens: Tokens, cotangent: Tensor) -> Tensor:
        """`dJ / dP [L, T, D]` for a `dJ / df [n, D]` at the prompt `tokens` (METHOD 5.2)."""

        def compute() -> Tensor:
            return pull_back(self.backbone, pixels, tokens, cotangent)

        key = self._pull_back_key(pixels, tokens, cotangent)
        return self.cached(key, tokens.shape, compute, passes=3 * len(pixels))

    def _pull_back_key(self, pixels: Pixels, tokens: Tokens, cotangent: Tensor) -> tuple[str, ...]:
        rest = (digest(tokens), digest(cotangent.numpy()))
        return "pull-back", self.backbone.pooling, self._digest(pixels), *rest

    def linearized(self, pixels: Pixels, tokens: Tokens) -> tuple[Tensor, PullBack]:
        """`features`, and the function that pulls one `dJ / df [n, D]` back to `dJ / dP [L, T, D]`.

        It counts two passes: the activations of the first one are kept, where memory allows.
        """
        found: list[Linearized] = []

        def run() -> Tensor:
            inputs = pixel_inputs(self.backbone, pixels)
            found.append(Linearized(self.backbone, inputs, len(pixels), torch.from_numpy(tokens)))
            return found[0].features

        def pull(cotangent: Tensor) -> Tensor:
            def compute() -> Tensor:
                if found:
                    return found.pop().pull(cotangent)
                return pull_back(self.backbone, pixels, tokens, cotangent)

            key = self._pull_back_key(pixels, tokens, cotangent)
            return self.cached(key, tokens.shape, compute, passes=2 * len(pixels))

        return self._features(self.backbone, pixels, tokens, run), pull

    def cached(
        self,
        key: tuple[str, ...],
        shape: tuple[int, ...],
        compute: Callable[[], Tensor],
        passes: int = 0,
    ) -> Tensor:
        """Value of `shape` stored under `key` and this backbone, computed where it is missing."""
        name = hashlib.sha256("|".join((self._fingerprint, *key)).encode()).hexdigest()
        self.note({name: passes})
        if name not in self._memory:
            path = _folder() / f"{name}.safetensors"
            found = _read(path, shape) if self.enabled else None
            if found is None:
                found = compute()
                if self.enabled:
                    self._write(path, found)
            self._memory[name] = found
        return self._memory[name]

    def _write(self, path: Path, value: Tensor) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, {"value": value.detach().numpy()}, {})
            evict(self._limit)
        except (OSError, UserError) as error:
            self.enabled = False
            warnings.warn(
                f"features are not kept, the cache cannot be written ({error}); "
                "set HGEDGE_CACHE to a folder that can",
                stacklevel=2,
            )

    def _digest(self, pixels: Pixels) -> str:
        # A split is digested once: fit passes the same few arrays again and again.
        known = self._digests.get(id(pixels))
        if known is None or known[0] is not pixels:
            known = self._digests[id(pixels)] = (pixels, digest(pixels))
        return known[1]


def pull_back(
    backbone: Backbone, pixels: Pixels, tokens: Tokens | Tensor, cotangent: Tensor
) -> Tensor:
    """`dJ / dP [L, T, D]` by vector-Jacobian products in micro-batches (METHOD 5.2).

    `cotangent` is `dJ / df [n, D]`. Memory does not depend on `n`. The result has the backbone's
    precision, at least float32; the sum over micro-batches is float64.
    """
    inputs = pixel_inputs(backbone, pixels)
    return pull_parts(backbone, inputs, len(pixels), torch.as_tensor(tokens), cotangent)


def _fingerprint(backbone: Backbone) -> str:
    # Weights alone say nothing about activations or heads; pooling is in the keys.
    model = backbone.model
    compute = f"{backbone.compute.precision} {backbone.compute.device}"
    form = f"{model!r}|{backbone.num_heads}|{backbone.image_size}|{compute}"
    parts = (backbone.sha256, backbone.preprocessing.to_json(), form, torch.__version__)
    return hashlib.sha256("|".join((str(FORM_VERSION), *parts)).encode()).hexdigest()


def digest(array: npt.NDArray[np.generic] | None) -> str:
    """Hexadecimal sha256 of an array's dtype, shape and bytes; `none` for none."""
    if array is None:
        return "none"
    data = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{data.dtype.str}|{data.shape}|".encode())
    digest.update(data.data if data.size else b"")
    return digest.hexdigest()


def _folder() -> Path:
    return cache_folder() / "features"


def _limit_bytes() -> int:
    text = os.environ.get("HGEDGE_CACHE_SIZE") or str(DEFAULT_MEGABYTES)
    if not text.isdecimal():
        raise UserError(f"HGEDGE_CACHE_SIZE: '{text}' is not a number of megabytes; give one")
    return int(text) * 1_000_000


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Read a stored value; None where there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        value = read_safetensors(path)[0].get("value")
        if value is None or value.dtype != np.float32 or value.shape != shape:
            return None
        os.utime(path)
    except (OSError, UserError):
        return None
    array = cast("npt.NDArray[np.float32]", value)
    return torch.from_numpy(array.copy()) if np.isfinite(array).all() else None
