"""docs/results/copies.md from the rows of `leaks`."""

from __future__ import annotations

from hgprompt_edge.images.near_pairs import NEAR_BITS
from shared.pages import fill, listed, percent, table
from shared.rows import Row, Rows, read_rows, results_file, select

RESULTS = results_file("leaks")
CHOSEN_ON = (
    "pacs-photo", "flowers17", "dtd10", "neu-cls", "gtsrb", "chars34-scene", "magnetic-tile",
    "cifar10", "chars34-font", "sign-language-digits", "deeppcb", "pacs-sketch",
)  # fmt: skip
"""And scikit-learn's digits. The last two are reported, too, and marked."""
REPORTED = (
    "caltech101", "grocery81", "rsscn7", "weather4", "trashnet", "clothing10", "houses4",
    "pacs-art-painting", "pacs-cartoon", "pacs-sketch", "deeppcb",
)  # fmt: skip
LARGER = 56
"""A limit that was tried: it finds more crops, and false pairs of things that look alike."""


def report() -> str:
    """Make the page."""
    rows = read_rows(RESULTS)
    copies, fresh = (
        select(rows, what=what, chosen_on=False) for what in ("copies", "within a set")
    )
    across = {row["bits"]: row for row in select(rows, what="across sets")}
    search = {row["images"]: row["processor_seconds"] for row in select(rows, what="search")}
    (photos,) = select(rows, what="photographs")
    parts = {part: photos[f"{part}_seconds"] for part in ("decode", "resize", "hash", "search")}
    easy = [row for row in copies if not ("crop" in row["copy"] or "brighter" in row["copy"])]
    larger = f"found_at_{LARGER}"
    return fill(
        "copies",
        bits=NEAR_BITS,
        larger=LARGER,
        sets=len(fresh),
        chosen=listed([*CHOSEN_ON, "scikit-learn's digits"]),
        recall=recall(copies),
        easy=found(easy, "found", "with_look"),
        crop2=found(select(copies, copy="cropped by 2 %"), larger),
        crop5=found(select(copies, copy="cropped by 5 %"), larger),
        within=within(fresh),
        possible=f"{across[NEAR_BITS]['possible'] / 1e6:.0f}",
        are="is" if across[NEAR_BITS]["pairs"] == 1 else "are",
        false=across[NEAR_BITS]["pairs"] or "none",
        more=across[LARGER]["pairs"] or "none",
        most=across[64]["pairs"] or "none",
        hard="; ".join(map(hard, select(rows, what="within a set", chosen_on=True))),
        photos=f"{photos['images']:,}",
        wide=photos["pixels"][0],
        high=photos["pixels"][1],
        share=f"{100 * parts['hash'] / (parts['decode'] + parts['resize'] + parts['hash']):.0f}",
        search20=f"{search[20_000]:.1f}",
        search50=f"{search[50_000]:.0f}",
        **{part: f"{seconds:.1f}" for part, seconds in parts.items()},
    )


def found(rows: Rows, key: str, of: str = "images") -> str:
    return percent(sum(row[key] for row in rows) / sum(row[of] for row in rows), 1)


def recall(copies: Rows) -> str:
    """Share of each kind of copy that is found, in all and in the worst set."""
    body = []
    for kind in dict.fromkeys(row["copy"] for row in copies):
        mine = select(copies, copy=kind)
        worst = min(mine, key=lambda row: row["found"] / row["images"])
        body.append((kind, found(mine, "found"), f"{worst['set']}, {found([worst], 'found')}"))
    return table(("copy", "found", "worst set"), body)


def within(rows: Rows) -> str:
    """Near-copies in each set itself."""
    keys = ("set", "images", "without_look", "pairs", "of_two_classes")
    heads = ("set", "pictures", "that show too little", "pairs of near-copies", "of two classes")
    return table(heads, ([row[k] if k == "set" else f"{row[k]:,}" for k in keys] for row in rows))


def hard(row: Row) -> str:
    return (
        f"of {row['images']:,} pictures of {row['set']} {row['without_look']} show too little, and "
        f"{row['pairs']} pairs count as near-copies ({row['of_two_classes']} of two classes)"
    )
