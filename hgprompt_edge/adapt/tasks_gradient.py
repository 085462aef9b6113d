"""The gradient of a task's mix, from the one graph that all tasks of a device folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hgprompt_edge.adapt.gradient import AdaptGraph, Floats, check_adapt_format
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.errors import FileError, MismatchError, brief
from hgprompt_edge.runtime.device_folder import check_weights

TASKS_ADAPT_FORMAT = "hgprompt.tasks-adapt/1"


class TasksAdaptGraph(AdaptGraph):
    """`adapt.onnx` of a device folder for one of its tasks: what is mixed comes in with the image.

    Parameters
    ----------
    path, bank, threads, micro_batch
        As of `AdaptGraph`.
    backbone_sha256
        That the graph must be of.
    """

    def __init__(
        self,
        path: Path,
        bank: Bank,
        backbone_sha256: str,
        *,
        threads: int | None = None,
        micro_batch: int | None = None,
    ) -> None:
        if bank.mixer is None:
            raise ValueError("The 'bank' must hold prompts.")
        if not path.is_file():
            raise FileError(
                path,
                "no such file; copy it from the folder of the export, or use `forward_only=True`, "
                "which needs only the backbone",
            )
        self._backbone = backbone_sha256
        self._prompts = {
            "keys": np.asarray(bank.mixer.keys),
            "values": np.asarray(bank.mixer.values),
            "gram": bank.mixer.gram.astype(np.float32),
        }
        super().__init__(path, bank, threads=threads, micro_batch=micro_batch)

    def _mixed(self, mix: Floats) -> dict[str, Floats]:
        none = [] if self.bank.gated else [np.zeros(1, np.float32)]
        return {"mix": np.concatenate([*none, mix]), **self._prompts}

    def _widened(self, x: Floats) -> Floats:
        return np.pad(x, ((0, 0), (0, self._width - x.shape[1])))

    def _own(self, name: str, output: Floats) -> Floats:
        if name == "d_mix":
            return output if self.bank.gated else output[1:]
        if name in ("features", "d_head.weight"):
            return output[:, : self.head.weight.shape[1]]
        return output

    def _check_origin(
        self, path: Path, entries: dict[str, str], inputs: dict[str, list[int]], bank: Bank
    ) -> None:
        check_adapt_format(path, entries, TASKS_ADAPT_FORMAT)
        found = entries.get(f"{PREFIX}backbone_sha256", "")
        if found != self._backbone:
            raise MismatchError(
                path,
                path.parent,
                f"it was made for the backbone {brief(found)[:12]}, not for {self._backbone[:12]}",
                "copy all files of one export",
            )
        check_weights(path, entries)
        self._width = int(inputs["head.weight"][1])
        wanted, own = bank.head.weight.shape[1], inputs["keys"][3]
        if self._width not in (wanted, 2 * wanted) or own != self._prompts["keys"].shape[3]:
            raise FileError(path, "does not fit the tasks of its folder; export the folder again")
