"""Loss and gradient of the mix on a device, from the graph of a model that adapts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.device_bank import Bank, bank_path
from hgprompt_edge.artifacts.external_weights import check_external_data
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import check_format
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.contract import check_same_export
from hgprompt_edge.runtime.engines.onnx_engine import FIXED_OPSET, explain
from hgprompt_edge.runtime.engines.onnx_session import open_session

ADAPT_FORMATS = "hgprompt.adapt/"
ADAPT_FORMAT = f"{ADAPT_FORMATS}1"

MICRO_BATCH = 1
"""Images at a time: more are hardly faster, and each takes the memory of its activations."""

SETTINGS = {
    # Weights are multiplied by as they lie, forwards and backwards: packed copies of both would
    # double the memory for a few percent of speed.
    "session.disable_prepacking": "1",
    "session.intra_op.allow_spinning": "0",  # not alone here
}

FORWARD = ("loss", "logits", "features")
BACKWARD = ("d_mix", "d_head.weight", "d_head.bias")

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Forward:
    """What one pass over some images gives.

    Attributes
    ----------
    loss
        Cross-entropy of each image with its label, `[n]`.
    logits, features
        `[n, K]`, `[n, D]`.
    """

    loss: Doubles
    logits: Floats
    features: Floats


@dataclass(frozen=True)
class Step(Forward):
    """The same, and back.

    Attributes
    ----------
    d_mix, d_weight, d_bias
        Gradients of the mean loss, `[M]`, `[K, D]`, `[K]` float64.
    """

    d_mix: Doubles
    d_weight: Doubles
    d_bias: Doubles


class AdaptGraph:
    """The graph of the gradient in onnxruntime, one small batch at a time.

    Parameters
    ----------
    path
        `NAME.adapt.onnx`. It may come from anywhere, is checked.
    bank
        Of the model; the graph must have been written for it.
    threads
        CPU threads; None: as many as this process may use.
    micro_batch
        Images at a time; None: `MICRO_BATCH`.

    Raises
    ------
    UserError
        No such file, not ours, of another bank, with weights outside its folder, or the runtime
        does not load it.
    """

    def __init__(
        self,
        path: Path,
        bank: Bank,
        *,
        threads: int | None = None,
        micro_batch: int | None = None,
    ) -> None:
        if not path.is_file():
            raise FileError(
                path,
                "no such file; export the model with `adapt=True`, or use `forward_only=True`, "
                "which needs only the model",
            )
        check_external_data(path)
        try:
            self._session = open_session(path, threads, SETTINGS)
            entries = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # the runtime's errors have no common base
            raise FileError(path, explain(error, FIXED_OPSET)) from error
        inputs = {given.name: given.shape for given in self._session.get_inputs()}
        self._check_origin(path, entries, inputs, bank)
        self.side = int(inputs["image"][1])
        self.micro_batch = micro_batch or MICRO_BATCH
        self.bank = bank
        self.head = bank.head

    def __call__(
        self,
        images: Pixels,
        labels: Floats,
        mix: npt.ArrayLike,
        head: Head | None = None,
        d_features: Floats | None = None,
    ) -> Step:
        """Forward and backward over `images [n, S, S, 3]` with `labels [n, K]`.

        Parameters
        ----------
        labels
            One-hot or any other rows. A row that sums to zero is minus the gradient that the
            logits are to get, which makes any loss on logits possible.
        mix
            `[M]`.
        head
            None: the model's own.
        d_features
            `[n, D]`, added to the gradient of the features; None: nothing.
        """
        parts = list(self._run(FORWARD + BACKWARD, images, labels, mix, head, d_features))

        def mean(output: int) -> Doubles:
            total: Doubles = np.stack([part[output] for part in parts]).sum(
                axis=0, dtype=np.float64
            )
            return total / len(images)

        look = _joined(parts)
        return Step(look.loss, look.logits, look.features, mean(3), mean(4), mean(5))

    def forward(
        self,
        images: Pixels,
        mix: npt.ArrayLike,
        labels: Floats | None = None,
        head: Head | None = None,
    ) -> Forward:
        """Forward alone, at half the price; without `labels [n, K]` all losses are zero."""
        if labels is None:
            labels = np.zeros((len(images), len(self.head.bias)), np.float32)
        return _joined(list(self._run(FORWARD, images, labels, mix, head)))

    def _run(
        self,
        names: tuple[str, ...],
        images: Pixels,
        labels: Floats,
        mix: npt.ArrayLike,
        head: Head | None,
        d_features: Floats | None = None,
    ) -> Iterator[list[Floats]]:
        """Yield the outputs of each micro-batch."""
        head = head or self.head
        feeds = {
            **self._mixed(np.asarray(mix, np.float32)),
            "head.weight": self._widened(head.weight),
            "head.bias": head.bias,
            "d_features": self._widened(np.zeros((1, self.head.weight.shape[1]), np.float32)),
            "backward": np.array(names != FORWARD),
        }
        for start in range(0, len(images), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            feeds |= {"image": images[rows], "label": labels[rows].astype(np.float32)}
            if d_features is not None:
                feeds["d_features"] = self._widened(d_features[rows])
            found = cast("list[Floats]", self._session.run(names, feeds))
            yield [self._own(name, array) for name, array in zip(names, found, strict=True)]

    def _mixed(self, mix: Floats) -> dict[str, Floats]:
        """Return what the graph takes to mix."""
        return {"mix": mix}

    def _widened(self, x: Floats) -> Floats:
        """Bring what goes with the head's features to those of the graph."""
        return x

    def _own(self, name: str, output: Floats) -> Floats:  # noqa: ARG002
        """Bring an output of the graph back to the bank."""
        return output

    def _check_origin(
        self, path: Path, entries: dict[str, str], inputs: dict[str, list[int]], bank: Bank
    ) -> None:
        """Refuse a graph that was not written for the bank."""
        check_adapt_format(path, entries, ADAPT_FORMAT)
        check_same_export(
            bank_path(path.with_suffix("")),
            bank,
            path,
            sha256=entries.get(f"{PREFIX}bank_sha256", ""),
            content=entries.get(f"{PREFIX}bank_content_sha256", ""),
            classes=inputs["head.bias"][0],
        )


def _joined(parts: list[list[Floats]]) -> Forward:
    """Put the images of all micro-batches together."""
    loss, logits, features = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Forward(loss.astype(np.float64), logits, features)


def check_adapt_format(path: Path, entries: dict[str, str], wanted: str) -> None:
    """Refuse what is not a graph of the gradient of the `wanted` format."""
    found = entries.get(f"{PREFIX}format", "missing")
    check_format(
        path,
        found,
        wanted,
        f"not a gradient graph that this version reads (format '{brief(found)}', not '{wanted}'); "
        "export it again",
    )
