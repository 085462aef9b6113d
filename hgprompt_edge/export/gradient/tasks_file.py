"""The graph of the gradient of a device folder, `adapt.onnx`, held against PyTorch's autograd."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from hgprompt_edge.adapt.tasks_gradient import TASKS_ADAPT_FORMAT, TasksAdaptGraph
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.artifacts.tasks.device_files import WEIGHTS
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.gradient.file import IMAGES, TOLERANCE, Arrays, reference_gradients
from hgprompt_edge.export.gradient.graph import build_tasks_adapt_graph
from hgprompt_edge.files import sha256_file
from hgprompt_edge.maths.mixing import BankKeysValues

SMALLEST = 4096
"""Bytes from which a tensor is looked for in the file of weights."""


def export_tasks_adapt(
    backbone: Backbone, constants: BankKeysValues, graph: Path, path: Path
) -> None:
    """Write the graph; what weights it has in common with the backbone's stay in their file.

    Parameters
    ----------
    backbone
        With the features of the folder.
    constants
        What all banks of the backbone have in common.
    graph
        Of the folder; if it is an ONNX file, its weights lie beside it.
    path
        In the same folder.
    """
    model = build_tasks_adapt_graph(backbone, constants)
    entries = {
        f"{PREFIX}format": TASKS_ADAPT_FORMAT,
        f"{PREFIX}backbone_sha256": backbone.sha256,
        FILE_SHA256: BLANK,
    }
    if graph.suffix == ".onnx":
        entries[f"{PREFIX}weights_sha256"] = sha256_file(graph.with_name(WEIGHTS))
        _share_weights(model, graph)
    model.metadata_props.update(entries)
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    seal(path)


def check_tasks_adapt(path: Path, bundle: Bundle, backbone: Backbone, bank: Bank) -> None:
    """Hold the gradient of a task against PyTorch's, on the bundle's probe images.

    Raises
    ------
    CheckError
        It is another one.
    """
    images = bundle.probe_images[:IMAGES]
    labels = np.eye(len(bundle.classes), dtype=np.float32)
    labels = labels[np.arange(len(images)) % len(bundle.classes)]
    weights = np.full(len(bank.names), 1 / len(bank.names))
    wanted = reference_gradients(bundle, backbone, bank, images, labels, weights)
    step = TasksAdaptGraph(path, bank, backbone.sha256)(images, labels, weights)
    count = len(images)
    found: Arrays = {
        "loss": step.loss,
        "logits": step.logits.astype(np.float64),
        "d_mix": step.d_mix * count,
        "d_head.weight": step.d_weight * count,
        "d_head.bias": step.d_bias * count,
    }
    if not bank.gated:  # the graph's is along the simplex, where the sum stays 1
        found["d_mix"], wanted["d_mix"] = (x - x.mean() for x in (found["d_mix"], wanted["d_mix"]))
    for name, array in found.items():
        error = float(np.abs(array - wanted[name]).max() / np.abs(wanted[name]).max())
        if not error <= TOLERANCE:
            raise CheckError(
                f"'{name}' of the adapt graph is not that of PyTorch for the task {bundle.task} "
                f"(relative difference {error:.2g}, bound {TOLERANCE})"
            )


def _share_weights(model: ir.Model, graph: Path) -> None:
    """Point at the weights of another graph wherever they are the same, byte for byte."""
    there: dict[bytes, ir.ExternalTensor] = {}
    for value in ir.load(graph).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            there[_digest(value.const_value)] = value.const_value
    for value in model.graph.initializers.values():
        own = value.const_value
        if own is None or own.nbytes < SMALLEST or (found := there.get(_digest(own))) is None:
            continue
        value.const_value = ir.ExternalTensor(
            WEIGHTS,
            found.offset,
            found.length,
            found.dtype,
            shape=ir.Shape(own.numpy().shape),
            name=str(value.name),
            base_dir=graph.parent,
        )


def _digest(tensor: ir.TensorProtocol) -> bytes:
    return hashlib.sha256(str(tensor.dtype).encode() + tensor.tobytes()).digest()
