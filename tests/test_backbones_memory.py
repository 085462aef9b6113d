"""Too little memory: batches are halved, and what does not fit at all is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_vits import make_backbone
from test_backbones_compute import ROUNDING, TWO, relative
from toys import noise_tokens, pixels_of

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.linearize import Linearized, pixel_inputs
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import pull_back


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


class Memory:
    """Stands for a device on which only so many images fit at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, fits: int) -> None:
        self.fits, self.seen = fits, []
        import hgprompt_edge.backbones.forward as forward

        honest = forward.features_prefix

        def limited(model: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.seen.append(len(x))
            if len(x) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return honest(model, x, *rest)

        monkeypatch.setattr(f"hgprompt_edge.backbones.{module}.features_prefix", limited)


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_memory_halves_the_batch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    backbone = make_backbone().with_compute(Compute(workers=workers))
    expected = extract_features(backbone, pixels_of(40), None)
    memory = Memory(monkeypatch, "forward", fits=12)
    with pytest.warns(UserWarning, match=r"out of memory on cpu with \d+ images at a time"):
        found = extract_features(backbone, pixels_of(40), None)
    assert relative(found, expected) < ROUNDING
    memory.seen.clear()
    extract_features(backbone, pixels_of(40), None)  # what fits is known from now on
    assert max(memory.seen) <= 12


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_pull_back_survives_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    pixels, prompt = pixels_of(20), torch.from_numpy(noise_tokens(1)[0])
    slope = torch.ones(20, 32)
    expected = pull_back(backbone, pixels, prompt, slope)

    def linearized() -> Linearized:
        return Linearized(backbone, pixel_inputs(backbone, pixels), 20, prompt)

    before = linearized()
    monkeypatch.setattr("hgprompt_edge.backbones.linearize.MEMORY_SHARE", 0)
    without = linearized()  # its forward pass fits, the activations of its way back do not
    Memory(monkeypatch, "linearize", fits=6)
    for batch in (before, without, linearized()):
        assert relative(batch.pull(slope), expected) < ROUNDING


@pytest.mark.filterwarnings("ignore:out of memory")
def test_an_image_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone()
    Memory(monkeypatch, "forward", fits=0)
    with pytest.raises(
        UserError, match="`device='cpu'`: out of memory at a batch of one image of 24"
    ):
        extract_features(backbone, pixels_of(5), None)


def test_other_errors_are_not_taken_for_it(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("hgprompt_edge.backbones.forward.features_prefix", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        extract_features(backbone.with_compute(TWO), pixels_of(40), None)
