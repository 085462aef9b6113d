"""The command line for tests, and small things that it works on."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import typer.testing
from PIL import Image
from typer.testing import CliRunner, Result

from hgprompt_edge import models
from hgprompt_edge.cli.main import app

# typer builds all commands anew for each one that is run, which takes longer than most of them.
typer.testing._get_command = functools.cache(typer.testing._get_command)

PETS = ("Abyssinian", "Birman", "Bombay")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def photo(path: Path, hue: int, seed: int) -> None:
    """Save a noisy square whose colour tells the class."""
    rng = np.random.default_rng([hue, seed])
    base = np.full((48, 56, 3), 60.0)
    base[..., hue] = 180
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (base + rng.normal(0, 25, base.shape)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


def class_folders(folder: Path, per_class: int = 8) -> Path:
    for hue, name in enumerate(PETS):
        for index in range(per_class):
            photo(folder / name / f"{index}.jpg", hue, index)
    return folder


def pets_archive(folder: Path) -> None:
    """Lay out images as the Oxford-IIIT Pet archive does."""
    base = folder / "oxford-iiit-pet"
    for part, numbers in (("trainval", range(1, 9)), ("test", range(9, 13))):
        lines = []
        for hue, name in enumerate(PETS):
            for i in numbers:
                photo(base / "images" / f"{name}_{i}.jpg", hue, i)
                lines.append(f"{name}_{i} {hue + 1} 1 1")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def small_bank(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(models.bank_folder("tiny").glob("*.safetensors"))[:count]:
        shutil.copy(path, folder)
    return folder


def hgedge(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    command = [sys.executable, "-m", "hgprompt_edge.cli.main", *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, "HGEDGE_CACHE": str(folder / "cache"), **environment},
    )
