"""Damage a file many times over and read it: `mutate.py KIND FILE COUNT SEED`.

In a process of its own, since a reader that kills its process must fail the test, not end it.
Prints how many of the damaged files were refused.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small_vits import make_backbone

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.artifacts.device_bank import bank_path, read_bank
from hgprompt_edge.artifacts.keys import check_public_key
from hgprompt_edge.artifacts.tasks.folder_bank import read_folder_bank
from hgprompt_edge.artifacts.tasks.task_file import read_task
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.prompts.prompt import read_prompt
from hgprompt_edge.runtime.verify import describe_signature, verify_model
from hgprompt_edge.state.history import History
from hgprompt_edge.state.update_file import read_update

INSERTS = (b"9", b"[", b"x", b"\xff", b"\x00")


def reader(kind: str, good: Path) -> Callable[[Path], object]:
    simple: dict[str, Callable[[Path], object]] = {
        "prompt": read_prompt,
        "bundle": read_bundle,
        "bank": read_bank,
        "update file": read_update,
        "task": read_task,
        "key": lambda path: check_public_key(path, "--key"),
    }
    if kind in simple:
        return simple[kind]
    if kind == "tasks bank":
        sha256 = make_backbone().sha256
        return lambda path: read_folder_bank(path, sha256)
    if kind == "adapt graph":
        bank = read_bank(bank_path(good.parent / "m.onnx"))
        return lambda path: AdaptGraph(path, bank, threads=1)
    if kind == "state":
        bank = read_bank(bank_path(good.parent.parent / "m.onnx"))

        def read_state(path: Path) -> None:
            with History(
                path.parent,
                bank.sha256,
                bank.initial,
                classes=("a", "b"),
                resize="center",
                read_only=True,
            ) as history:
                history.current()
                history.versions()

        return read_state
    return read_model


def read_model(path: Path) -> None:
    model = path.with_suffix(".xml") if path.suffix == ".bin" else path
    checks = verify_model(model)
    assert all(len(check.detail) < 1000 for check in checks), checks
    describe_signature(model, checks)


def mutate(good: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, drop, repeat or insert; as often near the start, where headers are."""
    data = bytearray(good)
    for _ in range(int(rng.integers(1, 4))):
        stop = len(data) if rng.random() < 0.5 else min(len(data), 4096)
        a, how = int(rng.integers(stop)), int(rng.integers(7))
        if how < 2:
            data[a] ^= 1 << int(rng.integers(8))
        elif how == 2:
            data[a : a + 8] = int(rng.integers(2**63)).to_bytes(8, "little")
        elif how == 3:
            del data[a + 1 :]
        elif how == 4:
            del data[a : a + int(rng.integers(1, 9))]
        elif how == 5:
            data[a:a] = data[a : a + int(rng.integers(1, 64))]
        else:
            data[a:a] = INSERTS[rng.integers(len(INSERTS))] * int(rng.integers(1, 5000))
        data = data or bytearray(b"x")
    return bytes(data)


def main() -> None:
    kind, path, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    warnings.simplefilter("ignore")
    read, good, refused = reader(kind, path), path.read_bytes(), 0
    for index in range(count):
        path.write_bytes(mutate(good, np.random.default_rng([seed, index])))
        try:
            read(path)
        except (UserError, CheckError) as error:
            refused += 1
            text = str(error)
            if "\n" in text or len(text) > 600 + 2 * len(str(path)):
                raise AssertionError(f"mutation {index}: {text}") from error
        except BaseException:
            print("mutation", index, file=sys.stderr)
            raise
    print(refused)


if __name__ == "__main__":
    main()
