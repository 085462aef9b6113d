"""Hold an exported model against PyTorch's token form, equal as METHOD 8 defines it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.device.engine import Engine, LoadError, OnnxEngine
from hgprompt_edge.device.parity import TOLERANCE, compare
from hgprompt_edge.errors import CheckError
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import features_token, normalize

BATCHES = (1, 2, 7)

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Verification:
    """What `verify_onnx` found.

    Attributes
    ----------
    ok
        Equal to PyTorch at every batch size, and to the logits that fit stored.
    max_abs_diff, bound, top1_agreement
        The worst over the batch sizes, see `Comparison`.
    probe_max_abs_diff
        Largest difference from the bundle's stored logits; None where it has none.
    images, batches
        Number of different images, and the batch sizes that were run.
    runtime
        Name and version of the runtime.
    """

    ok: bool
    max_abs_diff: float
    bound: float
    top1_agreement: float
    probe_max_abs_diff: float | None
    images: int
    batches: tuple[int, ...]
    runtime: str

    def __str__(self) -> str:
        probe = ""
        if self.probe_max_abs_diff is not None:
            probe = f", {self.probe_max_abs_diff:.3g} from the logits that fit stored"
        return (
            f"largest difference of the logits from PyTorch {self.max_abs_diff:.3g}{probe}, "
            f"bound {self.bound:.3g}, same class on {100 * self.top1_agreement:.1f} % of "
            f"{self.images} images, batches {', '.join(map(str, self.batches))}, {self.runtime}"
        )


def reference_logits(bundle: Bundle, backbone: Backbone, images: Pixels) -> Floats:
    """PyTorch's logits `[n, K]` of images `[n, S, S, 3]` in token form, the definition."""
    prompt = None if bundle.prompt is None else torch.tensor(bundle.prompt)
    weight, bias = torch.tensor(bundle.head_weight), torch.tensor(bundle.head_bias)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(images), max(BATCHES)):
            pixels = torch.from_numpy(np.array(images[start : start + max(BATCHES)]))
            x = normalize(pixels, bundle.preprocessing)
            logits.append(features_token(backbone.model, x, prompt) @ weight.T + bias)
    return torch.cat(logits).numpy()


def verify_onnx(path: Path, bundle: Bundle, backbone: Backbone, images: Pixels) -> Verification:
    """Run an ONNX file beside PyTorch, see `verify_engine`.

    Raises
    ------
    CheckError
        The runtime does not load or run the file.
    """
    return verify_engine(_open(path), bundle, backbone, images)


def verify_engine(
    engine: Engine,
    bundle: Bundle,
    backbone: Backbone,
    images: Pixels,
    *,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Run a model on `images [n, S, S, 3]` at batches of 1, 2 and 7 beside PyTorch.

    The largest batch size sees all images, the others the first ones. Where the bundle holds
    probe images, their logits must equal those that fit stored, too.

    Raises
    ------
    CheckError
        The runtime does not run the model.
    """
    reference = reference_logits(bundle, backbone, images)
    found = []
    for batch in BATCHES:
        rounds = -(-len(images) // batch) if batch == max(BATCHES) else 1
        rows = np.arange(rounds * batch) % len(images)  # every batch is full
        found.append(compare(_run(engine, images[rows], batch), reference[rows], tolerance))
    worst = max(found, key=lambda c: (not c.ok, c.max_abs_diff / c.bound))
    probe = None
    if len(bundle.probe_images):
        logits = _run(engine, bundle.probe_images, max(BATCHES))
        probe = compare(logits, bundle.probe_logits, tolerance)
    return Verification(
        ok=all(c.ok for c in found) and (probe is None or probe.ok),
        max_abs_diff=worst.max_abs_diff,
        bound=worst.bound,
        top1_agreement=min(c.top1_agreement for c in found),
        probe_max_abs_diff=None if probe is None else probe.max_abs_diff,
        images=len(images),
        batches=BATCHES,
        runtime=engine.runtime,
    )


def _open(path: Path) -> Engine:
    try:
        return OnnxEngine(path)
    except LoadError as error:
        raise CheckError(f"the model does not load: it {error}") from error


def _run(engine: Engine, images: Pixels, batch: int) -> Floats:
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    try:
        return np.concatenate([engine.run(part) for part in parts])
    except Exception as error:  # the runtimes' errors have no common base
        raise CheckError(f"{engine.runtime} does not run the model: {error}") from error
