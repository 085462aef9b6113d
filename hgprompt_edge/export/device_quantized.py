"""What a device folder takes from a quantizer: an int8 graph, and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.metadata import PREFIX, probe_count
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.export.onnx_file import describe
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.other_cpu import describe_cpu


@dataclass(frozen=True)
class Quantized:
    """What was found of a graph that was written in int8.

    Attributes
    ----------
    sha256
        Of the graph and its weights, before metadata are added.
    entries
        What the file of each task says of its accuracy.
    references
        What the own images of each task look like in int8.
    """

    sha256: str
    entries: Mapping[str, Mapping[str, str]]
    references: Mapping[str, Reference | None]

    def of_default(self, engine: Engine, bundle: Bundle, bundle_sha256: str) -> dict[str, str]:
        """Metadata of the default model, with its own logits for its own probe images."""
        name = f"{PREFIX}quantization"
        images = bundle.probe_images[: probe_count(bundle.probe_images)]
        known = json.loads(self.entries[bundle.task][name])
        entries = describe(bundle, bundle_sha256)
        return {**entries, name: json.dumps({**known, **describe_cpu(engine, images)})}


Quantize = Callable[[ir.Model, Path, Backbone], Quantized]
"""Writes a graph to a path in int8, for the backbone that it was built from."""
