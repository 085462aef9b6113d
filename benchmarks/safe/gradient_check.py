"""Count right gradients that the check of the runtime's gradient refuses, under shifts.

    python benchmarks gradient_check --data ../shared/assets/datasets --bundles DIR

onnxruntime's gradient is held against autograd's by the tests; so every refusal here is a false
alarm. Four tasks, eight shifts, severities 1 and 3, each at the initial mix and at a random one;
with the check as it is, and without halving its stride. `--bundles` as for `adapt`.
"""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from helps.adapt_cases import Device
from hgprompt_edge.adapt import gradient_check as step
from hgprompt_edge.adapt.learner import CHECKED_IMAGES
from hgprompt_edge.data.conditions import SHIFTS, corrupt
from hgprompt_edge.errors import CheckError
from hgprompt_edge.maths.simplex import smoothed
from shared.device_study import device_parser, load_tiny
from shared.rows import Rows, results_file, write_rows


def main() -> None:
    options = device_parser(__doc__).parse_args()
    backbone = load_tiny()
    rows: Rows = []
    for task in options.tasks:
        device = Device.load(task, backbone, options)
        for halvings in (0, step.HALVINGS):
            with patch.object(step, "HALVINGS", halvings):
                cells = [(s, v, seed) for s in SHIFTS for v in (1, 3) for seed in (0, 1)]
                refused = sum(is_refused(device, *cell) for cell in cells)
            rows.append(
                {"task": task, "halvings": halvings, "cells": len(cells), "refused": refused}
            )
            print(rows[-1], flush=True)
    write_rows(results_file("gradient_check"), rows)


def is_refused(device: Device, shift: str, severity: int, seed: int) -> bool:
    """Whether the check refuses the gradient; at a random mix for seed 1."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(device.test.labels), CHECKED_IMAGES, replace=False)
    images = corrupt(device.test.pixels[rows], shift, severity, seed)
    mix_logits = rng.normal(size=len(device.bank.names))
    if seed == 0:
        mix_logits = np.log(smoothed(device.bank.initial))
    try:
        step.check_gradient(device.graph, images, mix_logits, rng)
    except CheckError:
        return True
    return False


if __name__ == "__main__":
    main()
