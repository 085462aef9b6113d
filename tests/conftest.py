"""Fixtures that many tests share."""

from __future__ import annotations

import errno
import os

# On matrices this small two threads mostly wait for each other: one is several times faster where
# cores are shared. Set before anything imports PyTorch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Shared machines stall for seconds: an example may take as long as it takes.
settings.register_profile("product", deadline=None)
settings.load_profile("product")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "assets" / "datasets").is_dir():
        pytest.skip("needs ../shared/assets (real data sets), which is not here")
    return folder


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Keep every test's cache to itself."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HGEDGE_CACHE", str(folder))
    return folder


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk be full at the n-th move of a file into its place from now on."""

    def fill(fails_at: int) -> None:
        honest, moves = Path.replace, []

        def full(self: Path, target: Path) -> Path:
            moves.append(target)
            if len(moves) == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return honest(self, target)

        monkeypatch.setattr(Path, "replace", full)

    return fill
