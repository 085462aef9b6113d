"""The main job on real pictures: source prompts -> fit -> tune -> fold -> ONNX -> predictions.

Six kinds of defects on circuit boards, 300 pictures to learn from, with the default backbone and
the five prompts of its bank that are about structure. Everything that is made goes to ./demo.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from hgprompt_edge import (
    HGPrompt,
    Predictor,
    export_onnx,
    load_backbone,
    load_task,
    models,
    read_bank,
    tune,
    write_bundle,
)
from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.cli.shared.console import duration, out, prepare_output, print_next
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.compare.estimate import fit_passes, tune_passes
from hgprompt_edge.fit.figure import draw_fit
from hgprompt_edge.training.tune import tuning_recipe

OUT = Path("demo")
SOURCES = (
    "generated-count",
    "generated-location",
    "generated-orientation",
    "gtsrb",
    "sign-language-digits",
)
STEPS = 30
"""Of tuning: half of what `hgedge fit --tune` takes, for a demo that ends soon."""


def main() -> None:
    prepare_output()
    OUT.mkdir(exist_ok=True)
    backbone, bank = load_backbone(), read_bank()
    bank = replace(bank, prompts=tuple(p for p in bank.prompts if p.name in SOURCES))
    task = load_task("circuit-boards", backbone.preprocessing, data=models.pictures_folder())
    mixer, recipe = HGPrompt(seed=0), tuning_recipe(task, seed=0, steps=STEPS)
    choice = choose_compute(backbone)
    passes = fit_passes(task, bank, mixer.steps) + tune_passes(task, recipe.epochs)
    out.print(f"{choice}; {duration(choice.seconds(passes))}", soft_wrap=True)
    backbone = backbone.with_compute(choice.compute)
    counts = f"{len(task.train) + len(task.validation)} pictures, {len(task.classes)} classes"
    out.print(f"fitting {len(bank.prompts)} prompts of {bank.backbone} to {task.name}: {counts}")
    with progress_bar() as report:
        mixer.fit(bank, backbone, task, progress=report)
        bundle = tune(
            mixer.bundle_,
            backbone,
            task,
            recipe,
            fresh=True,
            report=lambda done, epochs: report("epochs", done, epochs),
        ).bundle
    write_bundle(OUT / "circuit-boards.hgbundle", bundle)
    draw_fit(bundle, task, mixer.history_, OUT / "circuit-boards.png")

    table = Table("method", "validation", "test", box=None, pad_edge=False)
    for row in bundle.table:
        test = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.1f} %"
        table.add_row(ROW_TITLES[row.method], f"{100 * row.val_accuracy:.1f} %", test)
    out.print(table)
    out.print(f"kept: {ROW_TITLES[bundle.choice]}")

    model = OUT / "circuit-boards.onnx"
    checked = export_onnx(bundle, backbone, model)
    out.print(
        f"{model}: {model.stat().st_size / 1e6:.1f} MB, "
        f"largest difference from PyTorch {checked.max_abs_diff:.1e}"
    )
    predictor = Predictor(model)
    onnx_classes = predictor.logits(task.test.pixels).argmax(1)
    out.print(
        f"on all {len(task.test)} test images: "
        f"ONNX {100 * np.mean(onnx_classes == task.test.labels):.2f} %, "
        f"PyTorch {100 * np.mean(torch_classes(bundle, backbone, task) == task.test.labels):.2f} %"
    )
    for index in np.linspace(0, len(task.test) - 1, 3).astype(int):
        path = OUT / f"{task.classes[task.test.labels[index]]}.png"
        Image.fromarray(task.test.pixels[index]).save(path)
        (label, probability), *_ = next(iter(predictor.predict_paths([path], top=1))).labels
        out.print(f"{path}: {label} ({100 * probability:.0f} %)")
    out.print(f"figure: {OUT / 'circuit-boards.png'}")
    print_next("predict", "--model", model, OUT)


def torch_classes(bundle, backbone, task):  # type: ignore[no-untyped-def]
    """Classes of the test images by the definition: tokens in the sequence, in PyTorch."""
    prompt = None if bundle.prompt is None else torch.from_numpy(bundle.prompt)
    weight, bias = torch.from_numpy(bundle.head.weight), torch.from_numpy(bundle.head.bias)
    classes = []
    with torch.inference_mode():
        for start in range(0, len(task.test), 64):
            pixels = torch.from_numpy(task.test.pixels[start : start + 64])
            x = normalize(pixels, backbone.preprocessing)
            features = features_token(backbone.model, x, prompt)
            classes.append((features @ weight.T + bias).argmax(1))
    return torch.cat(classes).numpy()


if __name__ == "__main__":
    main()
