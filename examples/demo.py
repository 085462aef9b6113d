"""The whole way on real images: source prompts -> fit -> fold -> ONNX -> predictions.

Needs nothing but the package: the bundled backbone and bank, and scikit-learn's handwritten
digits. The source of the target's own family (sign-language digits) is left out. Everything that
is made goes to ./demo.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from hgprompt_edge import (
    HGPrompt,
    Predictor,
    export_onnx,
    load_backbone,
    load_task,
    read_bank,
    write_bundle,
)
from hgprompt_edge.transfer.figure import LABELS, draw_fit
from hgprompt_edge.vit.forward import features_token, normalize

OUT = Path("demo")
console = Console(highlight=False)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    backbone = load_backbone("tiny")
    bank = read_bank("tiny")
    task = load_task("digits", backbone.preprocessing)
    console.print(f"fitting {len(bank.prompts)} sources to {task.name} ...")
    mixer = HGPrompt(seed=0).fit(bank, backbone, task)
    bundle = mixer.bundle_
    write_bundle(OUT / "digits.hgbundle", bundle)
    draw_fit(bundle, mixer.history_, OUT / "digits.png")
    console.print(f"left out, same family as the target: {', '.join(mixer.left_out_)}")

    table = Table("method", "validation", "test", box=None, pad_edge=False)
    for row in bundle.table:
        test = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.1f} %"
        table.add_row(LABELS[row.method], f"{100 * row.val_accuracy:.1f} %", test)
    console.print(table)
    console.print(f"chosen on held-out images: {LABELS[bundle.choice]}")

    model = OUT / "digits.onnx"
    checked = export_onnx(bundle, backbone, model)
    console.print(
        f"{model}: {model.stat().st_size / 1e6:.1f} MB, "
        f"largest difference from PyTorch {checked.max_abs_diff:.1e}"
    )
    predictor = Predictor(model)
    onnx_classes = predictor.logits(task.test.pixels).argmax(1)
    console.print(
        f"on all {len(task.test)} test images: "
        f"ONNX {100 * np.mean(onnx_classes == task.test.labels):.2f} %, "
        f"PyTorch {100 * np.mean(torch_classes(bundle, backbone, task) == task.test.labels):.2f} %"
    )
    for index in range(3):
        path = OUT / f"digit-{index}.png"
        Image.fromarray(task.test.pixels[index]).save(path)
        (label, probability), *_ = next(iter(predictor.predict_paths([path], top=1))).labels
        console.print(f"{path}: {label} ({100 * probability:.0f} %)")
    console.print(f"figure: {OUT / 'digits.png'}")
    console.print(f"next: hgedge predict --model {model} {OUT}")


def torch_classes(bundle, backbone, task):  # type: ignore[no-untyped-def]
    """Classes of the test images by the definition: tokens in the sequence, in PyTorch."""
    prompt = None if bundle.prompt is None else torch.from_numpy(bundle.prompt)
    weight, bias = torch.from_numpy(bundle.head_weight), torch.from_numpy(bundle.head_bias)
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
