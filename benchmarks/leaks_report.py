"""The figures of docs/copies.md from benchmarks/results/leaks.json.

python benchmarks/leaks_report.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaks import CHOSEN_ON, LARGER
from rows import read_rows

from hgprompt_edge.images.near_pairs import NEAR_BITS

ROWS = Path(__file__).parent / "results" / "leaks.json"
PAGE = Path(__file__).parents[1] / "docs" / "copies.md"
BEGIN, END = "<!-- from benchmarks/leaks_report.py -->", "<!-- end -->"
Row = dict[str, Any]

TEXT = """
## What is found

`benchmarks/leaks.py` ([rows](../benchmarks/results/leaks.json)) makes copies of 500 pictures of
each of {sets} data sets of photographs and drawings and looks for their originals. The limits were
chosen on other sets ({chosen}).
These nine had been run and seen before the last change of the rules,
so they are not untouched evidence.

{recall}

The rest of the first rows are pictures that show too little: of those with a hash of their look
{easy} are found re-encoded, resized, mirrored or darker. Crops are found by chance. A limit of
{larger} bits finds {crop2} of those cropped by 2 % and {crop5} of those by 5 %, and takes
signs of one shape, and hands in one pose, for copies.

{within}

Those that were looked at are true: one sky in several colours (weather4), recoloured or mirrored
drawings (caltech101, pacs-cartoon), objects photographed twice in a row (trashnet). Pairs between
two sets are always false: of {possible:.0f} million there {are} {false} at {bits} bits, {more} at
{larger} and {most} at 64.

False pairs are likeliest where pictures show little. The rules above were made for two such sets,
so that their figures are no evidence: {hard}.

## What it costs

Processor time of one core for {photos:,} JPEG photographs of {wide} x {high} pixels: decoding
{decode:.1f} s, hashing {hash:.1f} s, the search {search:.1f} s. `fit` decodes images anyway and
resizes them ({resize:.1f} s), so that hashing is {share:.0f} % of reading them; then each goes
through the backbone many times. The search among 20,000 pictures takes {search20:.1f} s, among
50,000 {search50:.0f} s. It goes by blocks, so that memory does not grow with the number of pairs.
"""


def main() -> None:
    head, rest = PAGE.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}{section(read_rows(ROWS))}{END}{tail}")
    print(PAGE)


def section(rows: list[Row]) -> str:
    copies = [row for row in rows if row["what"] == "copies" and not row["chosen_on"]]
    within = [row for row in rows if row["what"] == "within a set"]
    fresh = [row for row in within if not row["chosen_on"]]
    across = {row["bits"]: row for row in rows if row["what"] == "across sets"}
    search = {row["images"]: row for row in rows if row["what"] == "search"}
    (photos,) = (row for row in rows if row["what"] == "photographs")
    parts = {part: photos[f"{part}_seconds"] for part in ("decode", "resize", "hash", "search")}
    easy = [row for row in copies if not ("crop" in row["copy"] or "brighter" in row["copy"])]
    larger = f"found_at_{LARGER}"
    crops = [[row for row in copies if row["copy"] == f"cropped by {p} %"] for p in (2, 5)]
    return TEXT.format(
        bits=NEAR_BITS,
        larger=LARGER,
        sets=len(fresh),
        chosen=", ".join([*CHOSEN_ON, "scikit-learn's digits"]),
        recall="\n".join(recall(copies)),
        easy=percent(easy, "found", "with_look"),
        crop2=percent(crops[0], larger),
        crop5=percent(crops[1], larger),
        within="\n".join(within_table(fresh)),
        possible=across[NEAR_BITS]["possible"] / 1e6,
        are="is" if across[NEAR_BITS]["pairs"] == 1 else "are",
        false=across[NEAR_BITS]["pairs"] or "none",
        more=across[LARGER]["pairs"] or "none",
        most=across[64]["pairs"] or "none",
        hard="; ".join(hard(row) for row in within if row["chosen_on"]),
        photos=photos["images"],
        wide=photos["pixels"][0],
        high=photos["pixels"][1],
        share=100 * parts["hash"] / (parts["decode"] + parts["resize"] + parts["hash"]),
        search20=search[20_000]["processor_seconds"],
        search50=search[50_000]["processor_seconds"],
        **parts,
    )


def percent(rows: list[Row], key: str, of: str = "images") -> str:
    return f"{100 * sum(row[key] for row in rows) / sum(row[of] for row in rows):.1f} %"


def recall(copies: list[Row]) -> Iterator[str]:
    yield "| copy | found | worst set |"
    yield "| --- | --- | --- |"
    for kind in dict.fromkeys(row["copy"] for row in copies):
        mine = [row for row in copies if row["copy"] == kind]
        worst = min(mine, key=lambda row: row["found"] / row["images"])
        cells = (kind, percent(mine, "found"), f"{worst['set']}, {percent([worst], 'found')}")
        yield f"| {' | '.join(cells)} |"


def within_table(rows: list[Row]) -> Iterator[str]:
    yield "| set | pictures | that show too little | pairs of near-copies | of two classes |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        cells = (row["set"], f"{row['images']:,}", row["without_look"], row["pairs"])
        yield f"| {' | '.join(map(str, cells))} | {row['of_two_classes']} |"


def hard(row: Row) -> str:
    return (
        f"of {row['images']:,} pictures of {row['set']} {row['without_look']} show too little, and "
        f"{row['pairs']} pairs count as near-copies ({row['of_two_classes']} of two classes)"
    )


if __name__ == "__main__":
    main()
