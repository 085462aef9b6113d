"""Kill a process that writes a history at random moments, again and again, on one file.

    python benchmarks kills --json benchmarks/results/kills.json     # 500 kills
    python benchmarks kills --kills 25

A child commits versions without pause (some with a head, some rollbacks and resets) and announces
each after `commit` has returned. It is killed with SIGKILL up to 10 ms after it began to open the
history (a quarter of all), or after one of the first seven versions that it announced. Then the
file has to be sound, no announced version may be missing, the current one has to be the last
announced or the one after it, and each has to hold what was written, bit by bit. The next child
goes on with the same file; half the time nobody has tidied up before it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from hgprompt_edge.files import write_bytes
from hgprompt_edge.state.history import FILE, History, Version
from shared.commands import again
from shared.study import make_parser

BANK, ENTRIES, HEAD = "0" * 64, 12, (20, 64)
INITIAL = np.full(ENTRIES, 1 / ENTRIES, np.float32)
MOST, LONGEST = 7, 0.01
"""Announced versions, and seconds after the last of them, until a kill."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        write_without_end(options.child)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        counts = kill_often(Path(folder) / "state", options.kills, options.seed)
        document = {**counts, "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(document, indent=2))
    if options.json:
        write_bytes(options.json, (json.dumps(document, indent=2) + "\n").encode())
    sys.exit(1 if counts["lost"] or counts["unreadable"] or counts["wrong"] else 0)


def write_without_end(folder: Path) -> None:
    os.write(1, b"0\n")
    history = History(folder, BANK, INITIAL)
    while True:
        key = history.current().id + 1
        if key % 7 == 0:
            version = history.rollback(key // 2 if key < 1000 else key - 500)
        elif key % 11 == 0:
            version = history.reset()
        else:
            weights, head = content(key)
            version = history.commit(
                weights, method="labelled", images=key, figures={"key": key}, head_weight=head
            )
        os.write(1, f"{version.id}\n".encode())


def content(key: int) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(key)
    weights = rng.dirichlet(np.ones(ENTRIES)).astype(np.float32)
    return weights, rng.normal(size=HEAD).astype(np.float32) if key % 3 == 0 else None


def kill_often(folder: Path, kills: int, seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    names = ("kills", "versions", "before_a_commit", "in_a_commit", "lost", "unreadable", "wrong")
    counts, last = Counter(dict.fromkeys(names, 0)), 0
    for _ in range(kills):
        moment = max(0, int(rng.integers(-1, MOST + 1))), float(rng.uniform(0, LONGEST))
        announced = [key for key in run_and_kill(folder, *moment) if key]
        counts["kills"] += 1
        counts["before_a_commit"] += not announced
        last = max([last, *announced])
        try:
            with History(folder, BANK, INITIAL, read_only=bool(rng.integers(2))) as history:
                versions, current = history.versions(), history.current()
            sound = not (folder / FILE).exists() or is_sound(folder / FILE)
        except Exception as error:
            print(f"unreadable: {error!r}", file=sys.stderr)
            counts["unreadable"] += 1
            continue
        found = {version.id: version for version in versions}
        counts["unreadable"] += not sound
        counts["lost"] += len(set(announced) - set(found)) + (current.id < last)
        counts["wrong"] += current.id > max(last, 1) + 1
        counts["wrong"] += sum(not is_right(version, found) for version in versions)
        counts["in_a_commit"] += current.id == last + 1 and last > 0
        last = counts["versions"] = current.id
    return dict(counts)


def run_and_kill(folder: Path, versions: int, seconds: float) -> list[int]:
    """Let a child announce so many versions and go on for that long; what it announced."""
    with subprocess.Popen(again("kills", "--child", str(folder)), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = [child.stdout.readline() for _ in range(versions + 1)]  # a 0 comes before them
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        lines = b"".join([*first, child.stdout.read()]).split()
    if child.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the child ended by itself ({child.returncode})")
    return [int(line) for line in lines]


def is_sound(path: Path) -> bool:
    """Check a copy: the file itself is left to the next child, with nothing tidied up."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path.parent, folder, dirs_exist_ok=True)
        with closing(sqlite3.connect(Path(folder) / path.name)) as connection:
            return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def is_right(version: Version, found: dict[int, Version]) -> bool:
    """Whether a version holds, bit by bit, what its number says that was written."""
    if version.method == "rollback":
        target = found.get(version.figures["to"])
        return target is None or same(version, target.weights, target.head_weight)
    if version.method in ("initial", "reset"):
        return same(version, INITIAL, None)
    return version.images == version.id and same(version, *content(version.id))


def same(version: Version, weights: np.ndarray, head: np.ndarray | None) -> bool:
    if not np.array_equal(version.weights, weights):
        return False
    if head is None or version.head_weight is None:
        return head is version.head_weight
    return np.array_equal(version.head_weight, head)


if __name__ == "__main__":
    main()
