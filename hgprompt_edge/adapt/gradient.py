"""Loss and gradient of the mix on a device, from the graph that `hgedge export --adapt` wrote.

The runtime is not trusted: `check_gradient` holds its gradient against differences of its loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hgprompt_edge.artifacts.device_bank import Bank, bank_path, difference
from hgprompt_edge.artifacts.external_weights import check_external_data
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.errors import CheckError, UserError, brief
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.runtime.engines.onnx_engine import FIXED_OPSET, explain
from hgprompt_edge.runtime.engines.onnx_session import open_session

ADAPT_FORMATS = "hgprompt.adapt/"
ADAPT_FORMAT = f"{ADAPT_FORMATS}2"
DIRECTIONS, STRIDE, HALVINGS, AGREEMENT = 3, 0.05, 2, 0.05
"""Of the check: how many directions, how far to go on either side, how often to halve that where it
does not agree, and how far off the slope may be, relative to the gradient's length."""
HEAD_AGREEMENT, HEAD_NOISE = 1e-3, 1e-5
"""How far off the head's gradient may be, relative to its largest entry and to the largest feature:
it is a product of what the runtime gives."""
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
class Head:
    """A linear head on the model's features: `weight [K, D]`, `bias [K]`."""

    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Logits `[n, K]` of `features [n, D]`."""
        return cast("Floats", features @ self.weight.T + self.bias)

    def following(self, features: Floats, mean: Floats) -> Head:
        """Move the bias by what takes the mean of `features [n, D]` to `mean [D]`.

        As FOA shifts activations (Niu et al., ICML 2024).
        """
        return Head(self.weight, self.bias + self.weight @ (mean - features.mean(axis=0)))


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
            raise UserError(
                f"{path}: no such file; export the model with `--adapt`, or use --method cma, "
                "which needs the model alone"
            )
        check_external_data(path)
        try:
            self._session = open_session(path, threads, SETTINGS)
            entries = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # the runtime's errors have no common base
            raise UserError(f"{path}: {explain(error, FIXED_OPSET)}") from error
        inputs = {given.name: given.shape for given in self._session.get_inputs()}
        _check_origin(path, entries, bank, inputs)
        self.side = int(inputs["image"][1])
        self.micro_batch = micro_batch or MICRO_BATCH
        self.bank = bank
        self.head = Head(bank.head_weight, bank.head_bias)

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
            "mix": np.asarray(mix, np.float32),
            "head.weight": head.weight,
            "head.bias": head.bias,
            "d_features": np.zeros((1, self.head.weight.shape[1]), np.float32),
            "backward": np.array(names != FORWARD),
        }
        for start in range(0, len(images), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            feeds |= {"image": images[rows], "label": labels[rows].astype(np.float32)}
            if d_features is not None:
                feeds["d_features"] = d_features[rows]
            yield cast("list[Floats]", self._session.run(names, feeds))


def _joined(parts: list[list[Floats]]) -> Forward:
    """Put the images of all micro-batches together."""
    loss, logits, features = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Forward(loss.astype(np.float64), logits, features)


def check_gradient(
    graph: AdaptGraph, images: Pixels, mix_logits: Doubles, rng: np.random.Generator
) -> None:
    """Hold the runtime's gradient against central differences of its loss (METHOD 7).

    Needs no labels: the model's own predictions stand in for them, half and half with all classes
    alike, since a sure model has no gradient from what it predicts. The loss has a linear term of
    the features besides, so that both ways into the backward pass are checked, that of labels and
    that of statistics. The head's gradient is computed again from the features.

    Raises
    ------
    CheckError
        They do not agree: this runtime computes the gradient wrongly on this machine.
    """
    a, head = softmax(mix_logits), graph.head
    classes = len(head.bias)
    predicted = np.eye(classes)[graph.forward(images, a).logits.argmax(axis=1)]
    labels = ((predicted + 1 / classes) / 2).astype(np.float32)
    (own,) = rng.spawn(1)  # so that the caller's next numbers do not depend on the model's classes
    pull = own.normal(size=classes)
    pull = (pull / np.linalg.norm(pull) @ head.weight).astype(np.float32)  # as strong as labels

    def loss(point: Doubles) -> float:
        look = graph.forward(images, softmax(point), labels)
        return float((look.loss + look.features @ pull).mean())

    step = graph(images, labels, a, None, np.tile(pull, (len(images), 1)))
    _check_head(step, labels)
    gradient = through_softmax(step.d_mix, a)
    directions = rng.normal(size=(DIRECTIONS, len(mix_logits)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def differences(stride: float) -> Doubles:
        """Slope of the loss along each direction, from central differences."""
        ends = [(loss(mix_logits + stride * u), loss(mix_logits - stride * u)) for u in directions]
        return np.array([(after - before) / (2 * stride) for after, before in ends])

    def off_by(slopes: Doubles) -> float:
        return float(np.abs(directions @ gradient - slopes).max())

    # Differences of float32 losses are this uncertain, whatever the gradient.
    terms = (1.0, step.loss.mean(), np.abs(step.features @ pull).mean())
    noise = 8 * float(np.finfo(np.float32).eps) * float(max(terms)) / STRIDE
    tolerance = AGREEMENT * float(np.linalg.norm(gradient))
    slopes = coarse = differences(STRIDE)
    error, bound = off_by(slopes), tolerance + noise
    for halving in range(HALVINGS):
        if error <= bound:
            break
        # A sure model's loss bends within the stride; half of it as well takes the bend out
        # (Richardson's extrapolation), for three times the noise.
        fine = differences(STRIDE / 2 ** (halving + 1))
        slopes, coarse = (4 * fine - coarse) / 3, fine
        error, bound = off_by(slopes), tolerance + 3 * 2**halving * noise
    if not error <= bound:
        raise _wrong("the gradient", error, float(np.linalg.norm(gradient)))


def _check_head(step: Step, labels: Floats) -> None:
    """Hold the head's gradient against the product that it is."""
    features = step.features.astype(np.float64)
    d_logits = (softmax(step.logits.astype(np.float64)) - labels) / len(labels)
    for found, wanted, scale in (
        (step.d_weight, d_logits.T @ features, np.abs(features).max()),
        (step.d_bias, d_logits.sum(axis=0), 1.0),
    ):
        error, length = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
        if not error <= HEAD_AGREEMENT * length + HEAD_NOISE * scale:
            raise _wrong("the head's gradient", error, length)


def _wrong(what: str, error: float, length: float) -> CheckError:
    return CheckError(
        f"onnxruntime {ort.__version__} computes {what} wrongly on this machine (off by "
        f"{error:.2g} where its length is {length:.2g}); nothing was changed; use --method cma or "
        "another version of onnxruntime"
    )


def through_softmax(d_mix: Doubles, a: Doubles) -> Doubles:
    """Gradient of the logits from that of the mix: `a (d - a . d)`."""
    return a * (d_mix - a @ d_mix)


def smoothed(a: npt.ArrayLike, floor: float = 0.05) -> Doubles:
    """`(1 - floor) a + floor / M`: away from the vertices, where a softmax has no gradient."""
    a = np.asarray(a, np.float64)
    return cast("Doubles", (1 - floor) * a / a.sum() + floor / len(a))


def _check_origin(
    path: Path, entries: dict[str, str], bank: Bank, inputs: dict[str, list[int]]
) -> None:
    found = entries.get(f"{PREFIX}format", "missing")
    if found != ADAPT_FORMAT:
        raise UserError(
            f"{path}: not a graph of this version that `hgedge export --adapt` writes (format "
            f"'{brief(found)}', not '{ADAPT_FORMAT}'); export it again"
        )
    sha256 = entries.get(f"{PREFIX}bank_sha256", "")
    content = entries.get(f"{PREFIX}bank_content_sha256", "")
    if found := difference(bank, sha256, content, inputs["head.bias"][0]):
        raise UserError(
            f"{path}: the graph of another bank than {bank_path(path.with_suffix('')).name} (which "
            f"has {found}); copy both files of one export"
        )
