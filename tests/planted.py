"""A model with a bank whose images are labelled by one of its prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from small_vits import make_backbone, make_mixable, token_logits

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.proposal import Weights
from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.predictor import Predictor


def known_statistics(mean: np.ndarray, variance: np.ndarray, classes: int) -> FeatureStatistics:
    """Of clean images, so many of each class that nothing is refused for their number."""
    counts = np.full(classes, 10**6)
    moments = mean.astype(np.float32), variance.astype(np.float32)
    return FeatureStatistics(*moments, np.tile(moments[0], (classes, 1)), counts)


class Planted:
    """A model whose images are labelled by what its own condition prompt would say."""

    def __init__(self, folder: Path, choice: str = "learned") -> None:
        self.backbone = make_backbone("tanh gelu")
        bundle = make_mixable(self.backbone, choice)
        # Patches of one colour each: noise would look the same to a random ViT in every image.
        coarse = np.random.default_rng(5).integers(0, 256, (90, 3, 3, 3), dtype=np.uint8)
        self.images = coarse.repeat(8, axis=1).repeat(8, axis=2)
        target = replace(bundle, prompt=bank_tokens(bundle)[1][-1])
        level = token_logits(target, self.backbone, self.images).mean(0)
        head = Head(4 * bundle.head.weight, 4 * (bundle.head.bias - level))  # all classes occur
        target = replace(target, head=head)
        self.labels = token_logits(target, self.backbone, self.images).argmax(1)
        bundle = replace(bundle, head=head)
        logits = token_logits(bundle, self.backbone, bundle.probe_images)
        self.bundle = replace(bundle, probe_logits=logits)
        self.path = folder / "pets.onnx"
        export_onnx(self.bundle, self.backbone, self.path, runtime_weights=True, adapt=True)
        self.predictor = Predictor(self.path)
        assert self.predictor.bank is not None
        self.bank = self.predictor.bank
        self.graph = AdaptGraph(adapt_path(self.path), self.bank, threads=1)
        self.initial = Weights(self.bank.initial.astype(np.float64), self.bank.head)

    def write_seen(self, folder: Path) -> Path:
        """Write the images into class folders."""
        for index, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            place = folder / self.predictor.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
        return folder
