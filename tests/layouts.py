"""Small data sets in the layouts in which people hold VTAB-1k."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(label: int, index: int, side: int = 12) -> Image.Image:
    """Draw noise in a colour that tells the class; no two are alike."""
    rng = np.random.default_rng([label, index])
    base = np.full((side, side, 3), 40.0) + rng.normal(0, 20, (side, side, 3))
    base[..., label % 3] += 120 - 10 * (label // 3 % 8)
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def png(label: int, index: int) -> bytes:
    file = io.BytesIO()
    picture(label, index).save(file, "PNG")
    return file.getvalue()


def write_list(folder: Path, name: str, labels: Sequence[int], first: int = 0) -> list[str]:
    """Write `name`.txt and its images as the VTAB-1k archive does; its lines."""
    lines = []
    for index, label in enumerate(labels):
        path = f"images/{name}/{index:06d}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(label, first + index))
        lines.append(f"{path} {label}")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return lines


def listed(folder: Path, classes: int, per_class: int = 2) -> Path:
    """Lay out lists with `per_class` training images a class, and one to validate and to test."""
    every = list(range(classes))
    write_list(folder, "train800", every * per_class)
    write_list(folder, "val200", every, first=1000)
    write_list(folder, "test", every, first=2000)
    return folder


def write_parquet(
    path: Path,
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    image: str = "image",
    label: str = "label",
    first: int = 0,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write a file as Hugging Face does: images as bytes and path, classes in the metadata."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {
        image: [{"bytes": png(i % 7, first + i), "path": f"{i}.png"} for i in range(len(labels))],
        label: list(labels),
        **(more or {}),
    }
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if names is not None:
        features[label] = {"names": list(names), "_type": "ClassLabel"}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=5)
    return path
