"""Which files of a folder are images, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hgprompt_edge.images import image_names
from hgprompt_edge.images.image_names import IMAGE_SUFFIXES, is_image_name
from hgprompt_edge.images.listing import files_in, list_folders, list_images, summary


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(folder: Path, *, of: Path | None = None) -> list[str]:
    found = list_images([folder]).images
    return [path.relative_to(of or folder).as_posix() for path in found]


def test_every_suffix_is_one_that_pillow_decodes() -> None:
    Image.init()
    known = Image.registered_extensions()
    formats = {known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known}
    assert formats - {"MPO"} <= set(Image.OPEN)  # several JPEGs in a file, opened as JPEG
    assert not formats & {"PDF", "EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS", "MCIDAS"}
    assert {suffix for suffix in IMAGE_SUFFIXES if suffix not in known} <= {".avif", ".pnm", ".qoi"}


def test_a_folder_and_its_files_by_name_are_the_same_images(tmp_path: Path) -> None:
    kinds = ["png", "jfif", "jpe", "avif", "gif", "tga", "TIF"]
    touch(*(tmp_path / f"{i}.{kind}" for i, kind in enumerate(kinds)))
    by_name = list_images(sorted(tmp_path.iterdir()))
    by_folder = list_images([tmp_path])
    assert by_folder == by_name
    assert len(by_folder.images) == 7
    touch(tmp_path / "a.pdf", tmp_path / "b.pdf", tmp_path / "c.mp4", tmp_path / "d")
    assert list_images([tmp_path]).images == by_folder.images
    assert summary(list_images([tmp_path]).left_out) == (
        "2 of a type that is not read (.pdf), 1 of a type that is not read (.mp4), "
        "1 of a type that is not read (no suffix)"
    )


FILE_NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12)


@given(FILE_NAMES, st.sampled_from(sorted(IMAGE_SUFFIXES)))
def test_a_name_is_an_images_by_its_suffix_unless_a_dot_leads(stem: str, suffix: str) -> None:
    assert is_image_name(stem + suffix) is not stem.startswith(".")
    assert is_image_name(stem + suffix.upper()) is not stem.startswith(".")
    assert not is_image_name(stem + suffix + ".part")


def test_photographs_in_heic_need_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.HEIC", tmp_path / "b.png")
    monkeypatch.setattr(image_names, "find_spec", lambda name: None)
    assert names(tmp_path) == ["b.png"]
    (left,) = list_images([tmp_path]).left_out
    assert left.reason == "HEIC without pillow-heif; install hgprompt-edge[heic]"
    monkeypatch.setattr(image_names, "find_spec", lambda name: object())
    assert names(tmp_path) == ["a.HEIC", "b.png"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    data, more = tmp_path / "d", tmp_path / "more"
    touch(*(data / label / f"{i}.png" for label in ("dots", "ring") for i in range(6)))
    touch(*(more / f"{i}.png" for i in range(8)))
    (data / "dots" / "more").symlink_to(more, target_is_directory=True)
    (data / "ring" / "again").symlink_to(more, target_is_directory=True)
    (more / "up").symlink_to(data, target_is_directory=True)
    (more / "round").symlink_to(more, target_is_directory=True)
    dots, ring = list_folders([data / "dots", data / "ring"])
    assert (len(dots.images), len(ring.images)) == (14, 6)
    assert summary(ring.left_out) == "1 a link to a folder that is read already"
    assert len(names(data)) == 20
    assert len(names(data / "dots")) == 14


def test_a_link_into_a_listed_folder_takes_nothing_from_it(tmp_path: Path) -> None:
    touch(tmp_path / "b" / "0.png", tmp_path / "a" / "0.png")
    (tmp_path / "a" / "more").symlink_to(tmp_path / "b", target_is_directory=True)
    first, second = list_folders([tmp_path / "a", tmp_path / "b"])
    assert [path.parent.name for path in first.images + second.images] == ["a", "b"]


def test_links_to_files_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    touch(tmp_path / "pool" / "0.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").symlink_to(tmp_path / "pool" / "0.png")
    (tmp_path / "d" / "b.png").symlink_to(tmp_path / "pool" / "1.png")
    (tmp_path / "d" / "old").symlink_to(tmp_path / "gone", target_is_directory=True)
    assert names(tmp_path / "d") == ["a.png"]
    assert summary(list_images([tmp_path / "d"]).left_out) == "2 a link that leads nowhere"


def test_folders_of_systems_and_dot_files_are_left_out_and_counted(tmp_path: Path) -> None:
    touch(
        tmp_path / "0.png",
        tmp_path / "._0.png",
        tmp_path / ".DS_Store",
        tmp_path / "Thumbs.db",
        tmp_path / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg",
        tmp_path / ".thumbnails" / "0.jpg",
        tmp_path / "__MACOSX" / "._0.png",
        tmp_path / "$RECYCLE.BIN" / "old.png",
    )
    assert names(tmp_path) == ["0.png"]
    assert {(Path(item.name).name, item.reason) for item in list_images([tmp_path]).left_out} == {
        ("._0.png", "hidden"),
        ("SYNOPHOTO_THUMB_M.jpg", "in a system folder (@eaDir)"),
        ("0.jpg", "in a hidden folder (.thumbnails)"),
        ("._0.png", "in a system folder (__MACOSX)"),
        ("old.png", "in a system folder ($RECYCLE.BIN)"),
    }
    # Who names such a folder wants what is in it.
    assert names(tmp_path / "@eaDir") == ["0.png/SYNOPHOTO_THUMB_M.jpg"]


def test_missing_paths_and_empty_folders_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "notes" / "x.txt")
    found = list_images([tmp_path / "gone.png", tmp_path / "a.png", tmp_path / "notes"])
    assert found.images == (tmp_path / "a.png",)
    assert [str(item) for item in found.missing] == [
        f"{tmp_path / 'gone.png'}: no such file or folder",
        f"{tmp_path / 'notes'}: no images in this folder (1 of a type that is not read (.txt))",
    ]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a" / "0.png", tmp_path / "b" / "0.png")
    honest = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return honest(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list_images([tmp_path])
    assert [path.parent.name for path in found.images] == ["a"]
    assert summary(found.left_out) == "1 a folder that cannot be read (permission denied)"


def test_files_of_ours_are_listed_without_dot_files(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.json", "a.json", "._a.json", "a.txt")))
    (tmp_path / "c.json").mkdir()
    assert [path.name for path in files_in(tmp_path, ".json")] == ["a.json", "b.json"]
    assert files_in(tmp_path / "gone", ".json") == []
