"""From parts to a task: choose, decode, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hgprompt_edge.data.parts import Entry, Parts, check_classes, check_parts, encode
from hgprompt_edge.data.split import VALIDATION_SHARE, Indices, sample, split, split_groups
from hgprompt_edge.data.task import Images, Task, make_task
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.picture_hash import PictureHash, hash_picture, stack
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, cut_away, to_array

Progress = Callable[[int, int], None]
"""Called with (images decoded, images in all)."""

UNREADABLE_SHARE = 0.01
"""Up to this part of the images, and always one, may be unreadable; they are skipped and named."""


def build_task(
    parts: Parts,
    preprocessing: Preprocessing,
    *,
    name: str,
    family: str = "",
    flips: bool = True,
    seed: int = 0,
    limit: int | None = 1000,
    progress: Progress | None = None,
) -> Task:
    """Choose, decode and split the images of `parts`.

    Raises
    ------
    UserError
        A single class; a class with one image (a warning where the splits are official); a class
        of the test part without training images (a warning where the classes are given); an image
        in two splits; more than one image and more than 1 % of them unreadable.
    """
    check_parts(parts)
    return decode_parts(
        parts,
        preprocessing,
        name=name,
        family=family,
        flips=flips,
        seed=seed,
        limit=limit,
        progress=progress,
    )


def decode_parts(
    parts: Parts,
    preprocessing: Preprocessing,
    *,
    name: str,
    family: str,
    flips: bool,
    seed: int,
    limit: int | None,
    progress: Progress | None,
) -> Task:
    """Do as `build_task` with parts that `check_parts` has taken."""
    train, classes = encode(parts.train, parts.classes)
    validation, _ = encode(parts.validation, classes)
    test, _ = encode(parts.test, classes)
    if limit is not None:
        held = round(VALIDATION_SHARE * limit) if parts.validation else 0
        chosen = sample(train, limit - held, seed, least=1 if parts.validation else 2)
        used = sample(validation, held, seed, least=1)
    else:
        chosen, used = np.arange(len(train)), np.arange(len(validation))
    decoder = _Decoder(preprocessing, len(chosen) + len(used) + len(test), progress)
    train_images = decoder.decode([parts.train[i] for i in chosen], train[chosen])
    validation_images = decoder.decode([parts.validation[i] for i in used], validation[used])
    cut = float(np.median(decoder.cut_away)) if decoder.cut_away else 0.0
    test_images = decoder.decode(parts.test, test)
    check_unreadable(decoder.unreadable, decoder.total, parts.origin)
    if not parts.validation:
        if decoder.unreadable:
            check_classes(parts, train_images.labels, classes)
        kept, held_out = _hold_out(parts, train_images, classes, seed)
        train_images, validation_images = train_images.subset(kept), train_images.subset(held_out)
    task = make_task(
        name=name,
        family=family,
        classes=classes,
        splits=(train_images, validation_images, test_images),
        flips=flips,
        unreadable=tuple(decoder.unreadable),
        left_out=parts.left_out,
    )
    return replace(task, cut_away=cut)


def _hold_out(
    parts: Parts, images: Images, classes: tuple[str, ...], seed: int
) -> tuple[Indices, Indices]:
    """Draw the validation part, group by group where images have groups: `(train, validation)`."""
    group_of = {entry.name: entry.group for entry in parts.train}
    groups = [group_of[name] for name in images.names]
    if not any(groups):
        return split(images.labels, seed)
    kept, held = split_groups(images.labels, numbers_of(groups), seed)
    for label in np.flatnonzero(np.bincount(images.labels) > 1):
        rows = np.flatnonzero(images.labels == label)
        if np.isin(rows, held).any() and np.isin(rows, kept).any():
            continue
        mine = {groups[i] or images.names[i] for i in rows}
        how = "one group" if len(mine) == 1 else "groups that hold other classes, too"
        raise FileError(
            parts.origin,
            f"the {len(rows):,} training images of the class {classes[label]} are {how} (such as "
            f"{images.names[rows[0]]} and {images.names[rows[1]]}), so that it cannot both train "
            "and validate; add images of other groups, or leave the groups out (`group_by_hash`, "
            "the column group)",
        )
    return kept, held


def numbers_of(groups: Sequence[str]) -> Indices:
    """Give each group, by its name, a number; an image without a group is one by itself."""
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(group or f"\0{i}", len(known)) for i, group in enumerate(groups)],
        np.int64,
    )


class _Decoder:
    """Decodes entries to arrays and keeps those that cannot be read."""

    def __init__(self, preprocessing: Preprocessing, total: int, progress: Progress | None) -> None:
        self.preprocessing = preprocessing
        self.total = total
        self.progress = progress
        self.done = 0
        self.unreadable: list[LeftOut] = []
        self.cut_away: list[float] = []

    def decode(self, entries: Sequence[Entry], labels: Indices) -> Images:
        size = self.preprocessing.image_size
        pixels = np.empty((len(entries), size, size, 3), np.uint8)
        good: list[int] = []
        hashes: list[PictureHash] = []
        for index, entry in enumerate(entries):
            try:
                image = entry.open()
                pixels[len(good)] = to_array(image, self.preprocessing, entry.name)
                self.cut_away.append(cut_away(*image.size, self.preprocessing))
                hashes.append(hash_picture(image))
                good.append(index)
            except UnreadableImageError as error:
                self.unreadable.append(LeftOut(entry.name, error.reason))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        names = tuple(entries[i].name for i in good)
        kept = labels[np.asarray(good, np.int64)]
        return Images(pixels[: len(good)], kept, names, stack(hashes))


def check_unreadable(unreadable: Sequence[LeftOut], total: int, origin: str) -> None:
    """Refuse more than one image and more than `UNREADABLE_SHARE` of `total` that is unreadable."""
    count = len(unreadable)
    if count > max(1, UNREADABLE_SHARE * total):
        some = "; ".join(map(str, unreadable[:3])) + ("; ..." if count > 3 else "")
        raise FileError(
            origin,
            f"{count:,} of {total:,} images cannot be read, more than "
            f"{100 * UNREADABLE_SHARE:.0f} % ({some}); repair or remove them",
        )
