"""What the check for copies finds, what it takes for one, and what it costs.

    python benchmarks leaks --data ../shared/assets/datasets
    python benchmarks leaks                     # docs/results/copies.md from the rows

Copies of real pictures are made and looked for: re-encoded, resized, mirrored, cropped, brighter,
darker. False pairs are counted where none can be true: between different data sets. The threshold
was chosen on the sets in CHOSEN_ON, the rows are of others. Takes about three minutes on one core.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hgprompt_edge.images.near_pairs import NEAR_BITS, near_pairs, near_pairs_within
from hgprompt_edge.images.picture_hash import HASH_BYTES, Hashes, hash_picture, stack
from hgprompt_edge.images.preprocess import Preprocessing, open_image, to_array
from hgprompt_edge.runtime.cpu import cpu_features
from safe.leaks_report import CHOSEN_ON, LARGER, REPORTED, RESULTS, report
from shared.pages import write_page
from shared.rows import Row, Rows, write_rows
from shared.study import make_parser

COPIED = 500
"""Pictures of each set that copies are made of."""
PHOTOGRAPHS, PHOTO_SIZE = 10_000, (500, 375)
MODEL_SIZE = 112
Copy = Callable[[Image.Image, np.random.Generator], Image.Image]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    if options.data is not None:
        write_rows(RESULTS, measure(options.data))
    write_page("copies", report())


def measure(data: Path) -> Rows:
    print(f"cpu: {' '.join(cpu_features())}")
    rows: Rows = []
    known: dict[str, Hashes] = {}
    for name in REPORTED:
        pictures, labels = read(data / name)
        hashes = known[name] = stack([hash_picture(picture) for picture in pictures])
        rows.append(within(name, hashes, labels))
        rows += copies(name, pictures, hashes)
        print(rows[-1 - len(COPIES)], flush=True)
    rows += across(known)
    rows += search_times()
    return [*rows, photograph_time(data)]


def read(folder: Path) -> tuple[list[Image.Image], list[str]]:
    with zipfile.ZipFile(folder / "images.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".jpg", ".png")))
        pictures = [open_image(io.BytesIO(archive.read(name)), name) for name in names]
    return pictures, [name.split("/")[1] for name in names]


def jpeg(quality: int) -> Copy:
    def make(image: Image.Image, _: np.random.Generator) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return open_image(data)

    return make


def resized(scale: float) -> Copy:
    def make(image: Image.Image, _: np.random.Generator) -> Image.Image:
        size = (round(scale * image.width), round(scale * image.height))
        return image.resize(size, Image.Resampling.BICUBIC)

    return make


def cropped(share: float) -> Copy:
    """Cut `share` of each side off, at a random place."""

    def make(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
        left = rng.integers(0, image.width - width + 1)
        top = rng.integers(0, image.height - height + 1)
        return image.crop((left, top, left + width, top + height))

    return make


def brightness(factor: float) -> Copy:
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


COPIES: dict[str, Copy] = {
    "JPEG, quality 80": jpeg(80),
    "JPEG, quality 50": jpeg(50),
    "resized to 0.75": resized(0.75),
    "resized to half": resized(0.5),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "mirrored, JPEG 80": lambda image, rng: jpeg(80)(ImageOps.mirror(image), rng),
    "20 % brighter": brightness(1.2),
    "20 % darker": brightness(0.8),
    "cropped by 2 %": cropped(0.02),
    "cropped by 3 %": cropped(0.03),
    "cropped by 5 %": cropped(0.05),
}


def copies(name: str, pictures: list[Image.Image], hashes: Hashes) -> Rows:
    """Make copies of some pictures of a set and count those that are found."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(pictures))[:COPIED])
    originals = hashes.subset(chosen)
    rows = []
    for kind, make in COPIES.items():
        made = stack([hash_picture(make(pictures[i], rng)) for i in chosen])
        bits = np.full(len(chosen), 256)
        for block in near_pairs(made, originals, limit=LARGER):
            own = block.first == block.second
            bits[block.first[own]] = block.bits[own]
        row = {"what": "copies", "set": name, "chosen_on": name in CHOSEN_ON, "copy": kind}
        rows.append(
            {
                **row,
                "images": len(chosen),
                "with_look": int(originals.looks.any(1).sum()),
                "found": int((bits <= NEAR_BITS).sum()),
                f"found_at_{LARGER}": int((bits <= LARGER).sum()),
            }
        )
    return rows


def within(name: str, hashes: Hashes, labels: list[str]) -> Row:
    """Count the near-copies in a set itself; those of two classes apart."""
    pairs = [
        (int(i), int(j))
        for block in near_pairs_within(hashes)
        for i, j in zip(block.first, block.second, strict=True)
    ]
    return {
        "what": "within a set",
        "set": name,
        "chosen_on": name in CHOSEN_ON,
        "images": len(hashes),
        "without_look": int((~hashes.looks.any(1)).sum()),
        "pairs": len(pairs),
        "of_two_classes": sum(labels[i] != labels[j] for i, j in pairs),
    }


def across(known: dict[str, Hashes]) -> Iterator[Row]:
    """Count pairs of pictures of different sets, which are all false, by the limit on bits."""
    names = list(known)
    bits = [
        found.bits
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        for found in near_pairs(known[first], known[second], limit=88)
    ]
    least = np.concatenate(bits)
    sizes = np.array([int(hashes.looks.any(1).sum()) for hashes in known.values()])
    possible = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    for limit in (NEAR_BITS, 48, LARGER, 64, 72, 80, 88):
        count = int((least <= limit).sum())
        yield {"what": "across sets", "bits": limit, "pairs": count, "possible": possible}


def search_times() -> Iterator[Row]:
    """Time the search among random hashes, and the memory that it adds."""
    rng = np.random.default_rng(0)
    for count in (10_000, 20_000, 50_000):
        looks = rng.integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
        hashes = Hashes(np.arange(1, count + 1, dtype=np.uint64), looks, looks[:, ::-1].copy())
        before, start = peak_mb(), time.process_time()
        pairs = sum(len(block.first) for block in near_pairs_within(hashes))
        yield {
            "what": "search",
            "images": count,
            "pairs": pairs,
            "processor_seconds": round(time.process_time() - start, 2),
            "added_peak_mb": round(peak_mb() - before, 1),
        }


def photograph_time(data: Path) -> Row:
    """Time reading, hashing and searching 10,000 photographs, and what hashing adds to a fit."""
    pictures, _ = read(data / "caltech101")
    rule = Preprocessing(MODEL_SIZE, MODEL_SIZE)
    spent = dict.fromkeys(("decode", "resize", "hash"), 0.0)
    hashes = []
    with tempfile.TemporaryDirectory() as name:
        paths = []
        for place, picture in enumerate(pictures):
            path = Path(name) / f"{place}.jpg"
            picture.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
            paths.append(path)
        began = time.perf_counter()
        for path in islice(cycle(paths), PHOTOGRAPHS):
            clock = time.process_time()
            image = open_image(path)
            spent["decode"] += time.process_time() - clock
            clock = time.process_time()
            to_array(image, rule)
            spent["resize"] += time.process_time() - clock
            clock = time.process_time()
            hashes.append(hash_picture(image))
            spent["hash"] += time.process_time() - clock
    clock = time.process_time()
    for _ in near_pairs_within(stack(hashes)):
        pass
    spent["search"] = time.process_time() - clock
    return {
        "what": "photographs",
        "images": PHOTOGRAPHS,
        "pixels": list(PHOTO_SIZE),
        "seconds": round(time.perf_counter() - began, 1),
        **{f"{part}_seconds": round(seconds, 2) for part, seconds in spent.items()},
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
