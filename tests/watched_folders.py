"""Models that know their own images, patches of colour for them, and folders to watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from small_vits import make_backbone

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.images.preprocess import read_image
from hgprompt_edge.maths.reference import fit_reference
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching import watch

Pixels = npt.NDArray[np.uint8]
CLASSES, OWN, GAIN = 4, 160, 0.85


def pictures(count: int, seed: int, *, only: int | None = None, gain: float = 1) -> Pixels:
    """Patches of one colour each, around those of four classes."""
    rng = np.random.default_rng(seed)
    palettes = np.random.default_rng(1).integers(40, 216, (CLASSES, 3, 3, 3))
    labels = labels_of(count, seed) if only is None else np.full(count, only)
    coarse = palettes[labels] + rng.normal(0, 22, (count, 3, 3, 3))
    pixels: Pixels = (gain * coarse.clip(0, 255)).astype(np.uint8)
    return pixels.repeat(8, axis=1).repeat(8, axis=2)


def labels_of(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 5]).integers(0, CLASSES, count)


def with_reference(bundle: Bundle, folder: Path, count: int = OWN) -> Bundle:
    """The bundle with what its own images look like."""
    path = folder / "plain.onnx"
    export_onnx(bundle, make_backbone(), path)
    predictor = Predictor(path)
    files = sorted(folder_of(folder / "own", pictures(count, 0)).iterdir())
    pixels = np.stack([read_image(file, predictor.preprocessing) for file in files])
    features = predictor.features(pixels)
    return replace(bundle, reference=fit_reference(features, labels_of(count, 0), CLASSES))


def exported(folder: Path, bundle: Bundle) -> Path:
    path = folder / "pets.onnx"
    export_onnx(bundle, make_backbone(), path)
    return path


def folder_of(path: Path, *parts: Pixels) -> Path:
    path.mkdir(exist_ok=True)
    for number, pixels in enumerate(np.concatenate(parts)):
        Image.fromarray(pixels).save(path / f"{number:05}.png")
    return path


def end_watch_when_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each watch of a folder end as by Ctrl-C once all that is there was served."""
    for name in ("watch", "watch_paths"):
        monkeypatch.setattr(watch, name, _ending(getattr(watch, name)))


def _ending(serve: Callable[..., Any]) -> Callable[..., Any]:
    def ending(*words: Any, **given: Any) -> Any:
        looks: list[int] = []

        def two_looks(_: float) -> None:
            if looks:
                raise KeyboardInterrupt
            looks.append(1)

        return serve(*words, **{"sleep": two_looks, **given})

    return ending
