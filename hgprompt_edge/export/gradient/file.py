"""The graph of the gradient as a file, held against PyTorch's autograd before it gets its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch.nn import functional

from hgprompt_edge.adapt.gradient import ADAPT_FORMAT, ADAPT_FORMATS
from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank, content_sha256
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.forward import features_prefix, normalize
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.gradient.graph import build_adapt_graph
from hgprompt_edge.export.graph.rewrites import affine_part
from hgprompt_edge.runtime.engines.onnx_session import open_session

TOLERANCE = 1e-3
"""Of the largest component of a gradient (METHOD 8)."""
IMAGES = 4

Arrays = dict[str, npt.NDArray[np.float64]]


def export_adapt(bundle: Bundle, backbone: Backbone, bank: Bank, path: Path) -> None:
    """Write the graph of the gradient and check it on the bundle's probe images.

    Raises
    ------
    CheckError
        The gradient is not that of PyTorch.
    """
    graph = build_adapt_graph(bundle, backbone, bank)
    graph.metadata_props.update(
        {
            f"{PREFIX}format": ADAPT_FORMAT,
            f"{PREFIX}bank_sha256": bank.sha256,
            f"{PREFIX}bank_content_sha256": content_sha256(bank),
            FILE_SHA256: BLANK,
        }
    )
    ir.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    images = bundle.probe_images[:IMAGES]
    labels = np.eye(len(bundle.classes))[np.arange(len(images)) % len(bundle.classes)]
    weights = np.full(len(bank.names), 1 / len(bank.names))
    wanted = reference_gradients(bundle, backbone, bank, images, labels, weights)
    session = open_session(path)
    names = list(wanted)
    found = session.run(names, adapt_inputs(bank, images, labels, weights))
    for name, array in zip(names, found, strict=True):
        error = float(np.abs(array - wanted[name]).max() / np.abs(wanted[name]).max())
        if not error <= TOLERANCE:
            raise CheckError(
                f"'{name}' of the adapt graph is not that of PyTorch (relative difference "
                f"{error:.2g}, bound {TOLERANCE})"
            )
    seal(path)


def is_adapt_graph(path: Path) -> bool:
    """Whether a file is there and is a graph of the gradient that we wrote, of any format."""
    try:
        entries = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # missing or damaged, it is none of ours
        return False
    return any(e.key == f"{PREFIX}format" and e.value.startswith(ADAPT_FORMATS) for e in entries)


def adapt_inputs(
    bank: Bank,
    images: npt.NDArray[np.uint8],
    labels: npt.ArrayLike,
    weights: npt.ArrayLike,
) -> dict[str, npt.NDArray[np.generic]]:
    """Gather what the graph takes, with the model's own head."""
    return {
        "image": images,
        "label": np.asarray(labels, np.float32),
        "mix": np.asarray(weights, np.float32),
        **bank.head.tensors(),
        "d_features": np.zeros((1, bank.head.weight.shape[1]), np.float32),
        "backward": np.array(True),
    }


def reference_gradients(
    bundle: Bundle,
    backbone: Backbone,
    bank: Bank,
    images: npt.NDArray[np.uint8],
    labels: npt.ArrayLike,
    weights: npt.ArrayLike,
) -> Arrays:
    """Loss, logits and gradients by autograd in float64, through the mixed prompt itself."""
    tokens = torch.tensor(bank_tokens(bundle)[1]).double()
    a = torch.tensor(np.asarray(weights, np.float64), requires_grad=True)
    weight = torch.tensor(bundle.head.weight).double().requires_grad_()
    bias = torch.tensor(bundle.head.bias).double().requires_grad_()
    model = as_fitted(bundle, backbone).model.double()
    try:
        with torch.enable_grad():
            x = normalize(torch.tensor(images), bundle.preprocessing).double()
            rest = a[1:] if bank.gated else a
            share = rest.sum() if bank.gated else None
            prompt = torch.tensordot(rest / rest.sum() if bank.gated else rest, tokens, dims=1)
            features = features_prefix(model, x, prompt, share)
            logits = functional.linear(features, weight, bias)
            target = torch.tensor(np.asarray(labels, np.float64))
            loss = -(target * logits.log_softmax(1)).sum(1)
            d_mix, d_weight, d_bias = torch.autograd.grad(loss.sum(), (a, weight, bias))
            d_weight = _to_graph(d_weight, d_bias, last_norm(model))
    finally:
        model.float()
    found = {"loss": loss, "logits": logits, "d_mix": d_mix, "d_head.weight": d_weight}
    return {name: x.detach().numpy() for name, x in {**found, "d_head.bias": d_bias}.items()}


def _to_graph(d_weight: torch.Tensor, d_bias: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
    """Gradient of the head that follows the norm's affine part, from that of the bundle's head.

    The features differ by `f = gamma z + beta`, so `dW = d_logits^T f` gives `d_logits^T z`.
    """
    if not isinstance(norm, torch.nn.LayerNorm):
        return d_weight
    width = d_weight.shape[1]
    beta = 0 if norm.bias is None else torch.from_numpy(affine_part(norm.bias, width))
    gamma = 1 if norm.weight is None else torch.from_numpy(affine_part(norm.weight, width))
    return (d_weight - d_bias[:, None] * beta) / gamma
