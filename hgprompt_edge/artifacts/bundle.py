"""A fitted task as a value: what `fit` produces and everything else consumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.folded import FoldedPrompt
from hgprompt_edge.artifacts.training_images import TrainingImages
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.prompts.mixing import MixingWeights

POOLINGS = ("token", "avg", "both")
"""What a head may see: the class token, the mean of the patch tokens, or one behind the other."""

ROW_TITLES = {
    "none": "no prompt",
    "best_source": "best source",
    "uniform": "uniform mix",
    "learned": "learned mix",
    "folded": "folded prompts",
    "tuned": "tuned",
}
"""Ways to use the sources, from the simplest to the most involved, and what users read."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of the never-worse table: a way to use the sources and what it is worth.

    Attributes
    ----------
    method
        A key of `ROW_TITLES`.
    val_accuracy, val_log_loss
        On validation images, of a head fitted on the training images.
    test_accuracy
        Of a head fitted on both; None where the task has no test part.
    cross_log_loss
        Cross-fitted over training and validation images together; None where the prompt itself
        was trained on them, or no class has two images.
    head
        The row's own best head, such as `LDA 0.10`.
    """

    method: str
    val_accuracy: float
    val_log_loss: float
    test_accuracy: float | None = None
    cross_log_loss: float | None = None
    head: str = ""


@dataclass(frozen=True)
class Bundle:
    """A fitted task: the folded prompt, the head, and where both come from.

    Attributes
    ----------
    prompt
        `[L, T, D]` float32, or None where the frozen backbone alone was the best choice.
    pooling
        What the head sees, of `POOLINGS`.
    choice
        The method of `table` that was chosen on held-out images: `none`, `best_source`, `uniform`,
        `learned`, `tuned`, or `folded` for several prompts.
    weights, learned_weights
        `[N]` or, a weight for each layer, `[N, L]` float32: the chosen mix (all zero for `none`;
        where `tuned` started), and the learned one.
    head
        `[K, D]` (for `both` `[K, 2 D]`) float32, calibrated: softmax of the logits are
        probabilities.
    sources
        For each source a dict with `name`, `sha256`, `family`; the last may have `role` `start`:
        what the others were before training, which counts among the `N` here.
    source_tokens
        `[N, L, T, D]` float16 for the device's bank, or None.
    probe_images, probe_logits
        Up to 16 validation images `[p, H, W, 3]` uint8 and PyTorch's logits `[p, K]` on them.
    initial
        `[M]` float32 over `bank_entries`: the mix that devices start from; None: what was chosen.
    objective
        `H`, `floor`, `R`, `lambda`, `shrinkage`, `steps`, ... as printed by fit.
    conditions
        For each condition prompt a dict with `name` and what it is worth.
    condition_tokens
        `[C, L, T, D]` float16, or None.
    clean
        Statistics of the features (`D` or `2 D`) of clean training images under the chosen prompt,
        of validation images where it was tuned on those; None: not measured. With several
        folded prompts, of the logarithm of the averaged probabilities of clean images that the
        heads have not seen (`K`).
    checkpoint
        Absolute path of the file with the backbone's weights; empty: bundled, or the hub's.
    data, split_digest
        Of the images that it was fitted on, see `Task`.
    group_by_hash
        Their copies were kept on one side of the split.
    trained
        Hashes of its training and validation images; None: drawn.
    reference
        What its own images look like under the first folded prompt, by which a device tells foreign
        ones; in features before the last norm's scale and bias. None: too few images.
    more
        Further deep folded prompts, two at most. The bundle's probabilities are the mean of those
        of the first, `prompt` with `head`, and of these; `probe_logits` are
        the logarithm of that mean. A device cannot mix then, so there are neither conditions nor
        an initial mix.
    """

    task: str
    classes: tuple[str, ...]
    backbone: str
    backbone_sha256: str
    preprocessing: Preprocessing
    mode: str
    pooling: str
    choice: str
    prompt: Floats | None
    weights: Floats
    learned_weights: Floats
    head: Head
    sources: tuple[dict[str, str], ...]
    table: tuple[Row, ...]
    objective: dict[str, Any]
    probe_images: npt.NDArray[np.uint8]
    probe_logits: Floats
    source_tokens: npt.NDArray[np.float16] | None = None
    initial: Floats | None = None
    split_digest: str = ""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    conditions: tuple[dict[str, str], ...] = ()
    condition_tokens: npt.NDArray[np.float16] | None = None
    clean: FeatureStatistics | None = None
    checkpoint: str = ""
    data: str = ""
    group_by_hash: bool = False
    trained: TrainingImages | None = None
    more: tuple[FoldedPrompt, ...] = ()
    reference: Reference | None = None

    @property
    def mix(self) -> MixingWeights:
        """The chosen mixing weights of the sources."""
        return MixingWeights(self._source_names, self.weights)

    @property
    def learned_mix(self) -> MixingWeights:
        """The learned mixing weights of the sources."""
        return MixingWeights(self._source_names, self.learned_weights)

    @property
    def _source_names(self) -> tuple[str, ...]:
        return tuple(source["name"] for source in self.sources)

    @property
    def folded(self) -> tuple[FoldedPrompt, ...]:
        """All folded prompts, the first one included."""
        return (FoldedPrompt(self.prompt, self.weights, self.head, self.choice), *self.more)


def check_one_prompt(bundle: Bundle, what: str) -> None:
    """Refuse a bundle of several folded prompts, for `what` works on one alone.

    Raises
    ------
    UserError
        The bundle holds several.
    """
    if bundle.more:
        raise UserError(
            f"the bundle of {bundle.task} averages {len(bundle.folded)} folded prompts, and "
            f"`hgedge {what}` works on one; run `hgedge fit` with `folded=1` first"
        )
