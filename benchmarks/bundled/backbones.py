"""Accuracy of the bundled backbones' frozen features, for `hgedge backbone list`.

    python benchmarks backbones --data ../shared/assets/datasets

The best head of the plain path on the test part, seed 0; writes models/.../accuracy.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from hgprompt_edge import load_backbone, load_task, models
from hgprompt_edge.files import write_bytes
from hgprompt_edge.fit.plain import fit_head
from shared.study import make_parser

SETS = ("flowers17", "dtd10", "weather4", "trashnet")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    options = parser.parse_args()
    found = {name: measure(name, options.data) for name in models.NAMES}
    path = models.models_folder() / "accuracy.json"
    write_bytes(path, f"{json.dumps(found, indent=2)}\n".encode())
    print(path.read_text())


def measure(name: str, data: Path) -> dict[str, float]:
    """Test accuracy by data set, in [0, 1], to four digits."""
    backbone, accuracies = load_backbone(name), {}
    for task in SETS:
        images = load_task(task, backbone.preprocessing, data=data / task)
        (row,) = fit_head(backbone, images)[0].table
        accuracies[task] = round(row.test_accuracy or 0.0, 4)
    return accuracies


if __name__ == "__main__":
    main()
