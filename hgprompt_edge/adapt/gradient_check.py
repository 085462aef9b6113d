"""Hold the runtime's gradient against differences of its loss: the runtime is not trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hgprompt_edge.adapt.gradient import AdaptGraph, Step
from hgprompt_edge.errors import CheckError
from hgprompt_edge.maths.simplex import through_softmax
from hgprompt_edge.maths.softmax import softmax

DIRECTIONS, STRIDE, HALVINGS, AGREEMENT = 3, 0.05, 2, 0.05
"""Of the check: how many directions, how far to go on either side, how often to halve that where it
does not agree, and how far off the slope may be, relative to the gradient's length."""
HEAD_AGREEMENT, HEAD_NOISE = 1e-3, 1e-5
"""How far off the head's gradient may be, relative to its largest entry and to the largest feature:
it is a product of what the runtime gives."""

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


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
        f"{error:.2g} where its length is {length:.2g}); nothing was changed; use "
        "`forward_only=True` or another version of onnxruntime"
    )
