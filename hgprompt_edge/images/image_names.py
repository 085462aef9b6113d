"""Which names are images, and which folders and files are a system's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".tif",
    ".tiff", ".bmp", ".dib", ".tga", ".vda", ".icb", ".vst", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".pcx", ".qoi", ".sgi", ".rgb", ".rgba",
    ".bw", ".ras", ".dds", ".psd", ".xbm", ".xpm",
})
# fmt: on
"""Raster formats that Pillow decodes by itself. Not PDF, PostScript, video, icons, or the
scientific formats for which it only has stubs."""

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Read where pillow-heif is installed."""

# fmt: off
SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@synoresource", "#recycle", "#snapshot",
    "__macosx", "$recycle.bin", "recycler", "lost+found", "__pycache__", "thumbnails",
    "_thumbnails", "_thumbs",
    "system volume information",
})
# fmt: on
"""Folders that devices and programs make beside the user's own, in lower case."""

SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Files that are nobody's data; not worth a word."""


def reads_heif() -> bool:
    """Whether HEIC photographs can be decoded here (the extra `heic`)."""
    return find_spec("pillow_heif") is not None


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as an image, by its suffix; dot files never are."""
    suffix = suffix_of(name)
    known = suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())
    return known and not name.startswith(".")


def why_not_folder(name: str) -> str | None:
    """Say why a folder of this name is not entered; None for one that is."""
    if name.startswith("."):
        return f"in a hidden folder ({name})"
    return f"in a system folder ({name})" if name.lower() in SYSTEM_FOLDERS else None


def why_not_file(path: Path) -> str | None:
    """Say why a file is no image; None for an image, empty where that is not worth a word."""
    suffix = suffix_of(path.name)
    pictured = suffix in IMAGE_SUFFIXES or suffix in HEIF_SUFFIXES
    if path.name.startswith("."):
        return "hidden" if pictured else ""
    if path.name.lower() in SYSTEM_FILES:
        return ""
    if not path.exists():
        return "a link that leads nowhere"
    if not pictured:
        return f"of a type that is not read ({suffix or 'no suffix'})"
    if suffix in HEIF_SUFFIXES and not reads_heif():
        return "HEIC without pillow-heif; install hgprompt-edge[heic]"
    return None if path.is_file() else "not a regular file"


def suffix_of(name: str) -> str:
    """Suffix of a file's name, in lower case."""
    return Path(name.lstrip(".")).suffix.lower()  # a hidden .jpg has one, too
