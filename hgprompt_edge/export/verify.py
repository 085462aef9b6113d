"""Hold an exported model against PyTorch's token form, equal as METHOD 8 defines it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import TINY, Bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.forward import features_prefix, features_token, normalize
from hgprompt_edge.errors import CheckError
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.maths.parity import TOLERANCE, compare
from hgprompt_edge.maths.softmax import log_mean_softmax, log_softmax
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.runtime.engines.engine import Engine, LoadError
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine

BATCHES = (1, 2, 7)

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Given = Mapping[str, Floats]


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


def reference_logits(
    bundle: Bundle, backbone: Backbone, images: Pixels, share: float = 1.0
) -> Floats:
    """PyTorch's logits `[n, K]` of images `[n, S, S, 3]`, from `reference_features`.

    Of several folded prompts, the logarithm of the mean of their probabilities.
    """
    logits = []
    for folded in bundle.folded:
        features = reference_features(bundle, backbone, images, folded.prompt, share)
        logits.append(logits_of(folded.head, features).numpy())
    return log_mean_softmax(logits) if bundle.more else logits[0]


def reference_features(
    bundle: Bundle,
    backbone: Backbone,
    images: Pixels,
    folded: Floats | None,
    share: float = 1.0,
) -> torch.Tensor:
    """PyTorch's features `[n, D]` of images `[n, S, S, 3]` in token form, the definition.

    Under a `folded` prompt, None for none. One whose `share` is less than 1, beside the model
    alone, has a prefix form only.
    """
    prompt = None if folded is None else torch.tensor(folded)
    model, features = as_fitted(bundle, backbone).model, []
    with torch.inference_mode():
        for start in range(0, len(images), max(BATCHES)):
            pixels = torch.from_numpy(np.array(images[start : start + max(BATCHES)]))
            x = normalize(pixels, bundle.preprocessing)
            if share == 1:
                features.append(features_token(model, x, prompt))
            else:
                part = features_prefix(model, x, prompt, torch.tensor([share]))
                features.append(part)
    return torch.cat(features)


def verify_onnx(
    path: Path,
    bundle: Bundle,
    backbone: Backbone,
    images: Pixels,
    bank: Bank | None = None,
) -> Verification:
    """Run an ONNX file beside PyTorch, see `verify_engine`.

    With a bank it is run at the initial mix, and then at another one.

    Raises
    ------
    CheckError
        The runtime does not load or run the file.
    """
    return verify_mixes(open_to_verify(path), bundle, backbone, images, bank)


def verify_mixes(
    engine: Engine,
    bundle: Bundle,
    backbone: Backbone,
    images: Pixels,
    bank: Bank | None,
    tolerance: float = TOLERANCE,
    *,
    given_at: Callable[[Floats], Given] | None = None,
    normalized: bool = False,
) -> Verification:
    """Run a model at its folded mix or, with a bank, at the initial mix and at another one.

    `bundle` is the one that the bank was made from, not `at_initial`: that one's prompt is a mix,
    where a tuned prompt is an entry of the bank. `given_at` says what the model takes at a mix, in
    place of `Bank.inputs`; `normalized` is that of `verify_engine`.
    """
    if bank is None:
        return verify_engine(engine, bundle, backbone, images, tolerance=tolerance)
    start, inputs = at_initial(bundle, backbone, bank), given_at or bank.inputs
    run = partial(verify_engine, tolerance=tolerance, normalized=normalized)
    given, share = inputs(bank.initial), bank.share(bank.initial)
    found = run(engine, start, backbone, images, given=given, share=share)
    if bank.mixer is None:
        return found
    weights, other = _another_mix(bundle)
    second = run(engine, other, backbone, images, given=inputs(weights))
    return second if found.ok and not second.ok else found


def at_initial(bundle: Bundle, backbone: Backbone, bank: Bank) -> Bundle:
    """Return the bundle whose prompt is the initial mix of the bank's float16 sources.

    It differs from what fit folded in float32 by their rounding. This is what a device starts
    from, so the exported model is held against it.
    """
    share = bank.share(bank.initial)
    if share <= TINY or bank.mixer is None:
        return bundle  # nothing is mixed
    _, tokens = bank_tokens(bundle)
    prompts = bank.initial[-len(tokens) :] / share
    mixed = replace(bundle, prompt=mix(tokens, prompts))
    logits = reference_logits(mixed, backbone, bundle.probe_images, share)
    return replace(mixed, probe_logits=logits)


def _another_mix(bundle: Bundle) -> tuple[Floats, Bundle]:
    """Weights `[M]` that give each prompt another share, and the bundle that has them folded in."""
    names, tokens = bank_tokens(bundle)
    shares = np.arange(1, len(tokens) + 1, dtype=np.float32)
    shares /= shares.sum()
    none = np.zeros(len(names) - len(tokens), np.float32)
    folded = replace(bundle, prompt=mix(tokens, shares), probe_images=bundle.probe_images[:0])
    return np.concatenate([none, shares]), folded


def verify_engine(
    engine: Engine,
    bundle: Bundle,
    backbone: Backbone,
    images: Pixels,
    *,
    tolerance: float = TOLERANCE,
    given: Given | None = None,
    share: float = 1.0,
    normalized: bool = False,
) -> Verification:
    """Run a model on `images [n, S, S, 3]` at batches of 1, 2 and 7 beside PyTorch.

    The largest batch size sees all images, the others the first ones. Where the bundle holds
    probe images, their logits must equal those that fit stored, too. What the model takes beside
    the image is `given`, see `Bank.inputs`; `share` is that of the prompt. A model whose logits
    are `normalized` gives the logarithm of its probabilities.

    Raises
    ------
    CheckError
        The runtime does not run the model.
    """
    reference, stored = reference_logits(bundle, backbone, images, share), bundle.probe_logits
    if normalized:
        reference, stored = (log_softmax(x).astype(np.float32) for x in (reference, stored))
    found = []
    for batch in BATCHES:
        rounds = -(-len(images) // batch) if batch == max(BATCHES) else 1
        rows = np.arange(rounds * batch) % len(images)  # every batch is full
        found.append(compare(_run(engine, images[rows], batch, given), reference[rows], tolerance))
    worst = max(found, key=lambda c: (not c.ok, c.max_abs_diff / c.bound))
    probe = None
    if len(bundle.probe_images):
        logits = _run(engine, bundle.probe_images, max(BATCHES), given)
        probe = compare(logits, stored, tolerance)
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


def open_to_verify(path: Path) -> Engine:
    """Open a model file that was just written.

    Raises
    ------
    CheckError
        The runtime does not load it.
    """
    try:
        return OpenVinoEngine(path, cache=False) if path.suffix == ".xml" else OnnxEngine(path)
    except LoadError as error:
        raise CheckError(f"the model does not load: it {error}") from error


def _run(engine: Engine, images: Pixels, batch: int, given: Given | None) -> Floats:
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    try:
        return np.concatenate([engine.run(part, given) for part in parts])
    except Exception as error:  # the runtimes' errors have no common base
        raise CheckError(f"{engine.runtime} does not run the model: {error}") from error
