"""Bundle to ONNX: written under a temporary name, checked, and only then named."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank, content_sha256
from hgprompt_edge.artifacts.folded import MAX_FOLDED
from hgprompt_edge.artifacts.metadata import (
    FORMAT,
    PREFIX,
    pack_images,
    parse_metadata,
    probe_count,
)
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.errors import CheckError, FileError, MismatchError, ParameterError, first_line
from hgprompt_edge.export.bank_file import beside, make_bank, write_beside
from hgprompt_edge.export.graph.inference import OPSET, PLAIN_OPSET, build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.verify import Verification, at_initial, verify_onnx
from hgprompt_edge.files import atomic_paths
from hgprompt_edge.images.preprocess import CROP, LETTERBOX, SQUASH, Preprocessing
from hgprompt_edge.maths.reference_file import pack_reference
from hgprompt_edge.prompts.mixing import source_shares

MAX_MODEL_BYTES = 2**31 - 2**24
"""Largest model that one protobuf file holds, with room for the metadata."""

PACKAGES = (
    "hgprompt-edge",
    "torch",
    "timm",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
)
"""Whose versions a model names."""

Pixels = npt.NDArray[np.uint8]


def export_onnx(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    *,
    images: Pixels | None = None,
    opset: int = OPSET,
    bundle_sha256: str = "",
    runtime_weights: bool = False,
    adapt: bool = False,
) -> Verification:
    """Fold prompt and head into the ViT, write one ONNX file, prove it equal to PyTorch.

    Parameters
    ----------
    images
        Real images `[n, S, S, 3]` uint8 to verify on; None: the bundle's probe images.
    opset
        Of ONNX: `OPSET`, or `PLAIN_OPSET` for older runtimes (about 2 % slower).
    bundle_sha256
        Of the bundle's file, to be recorded.
    runtime_weights
        Leave the prompt out: its keys and values come in with the image, mixed from
        `NAME.bank.safetensors`, which is written beside the model.
    adapt
        Write `NAME.adapt.onnx`, too, which gives the gradient of the mix. Needs `runtime_weights`.

    Raises
    ------
    UserError
        There is no graph of that opset.
        The bundle belongs to another backbone or is inconsistent, has no sources where weights are
        to come at run time, the model is too large for one file, or `path` cannot be written.
    CheckError
        The model is not equal to PyTorch (METHOD 8). No file is written, an old one stays.
    """
    images = bundle.probe_images if images is None else images
    rewrites = rewrites_for(opset)
    check_fits(bundle, backbone, images)
    bank = make_bank(bundle, backbone) if runtime_weights else None
    with atomic_paths(*beside(path, bank, adapt), path) as (*others, temporary):
        start = at_initial(bundle, backbone, bank) if bank else bundle
        model = build_graph(start, backbone, rewrites, bank)
        _check_size(model, path)
        entries = describe(start, bundle_sha256, bank)
        model.metadata_props.update(entries)
        ir.save(model, temporary)
        try:
            onnx.checker.check_model(temporary, full_check=True)
            verification = verify_onnx(temporary, bundle, backbone, images, bank)
            if bank is not None:
                write_beside(bundle, backbone, bank, others)
        except (CheckError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            reason = first_line(e, 1000).replace(str(temporary), path.name)
            raise CheckError(f"{path}: {reason}; nothing was written") from e
        if not verification.ok:
            raise CheckError(
                f"{path}: the model is not equal to PyTorch ({verification}); nothing was written"
            )
        last = {
            f"{PREFIX}verification": json.dumps(asdict(verification), sort_keys=True),
            FILE_SHA256: BLANK,
        }
        append_metadata(temporary, last)
        seal(temporary)
        parse_metadata(path, {**entries, **last})
    return verification


def rewrites_for(opset: int) -> Rewrites:
    """Return the fastest graph that an opset can express.

    Raises
    ------
    UserError
        We write no graph of that opset.
    """
    ways = {OPSET: Attention.STANDARD, PLAIN_OPSET: Attention.PLAIN}
    if opset not in ways:
        raise ParameterError(
            "opset",
            opset,
            f"not supported; use {OPSET} (fastest, onnxruntime 1.23 or later) or {PLAIN_OPSET} "
            "(onnxruntime 1.20 or later)",
        )
    return Rewrites(attention=ways[opset])


def describe(bundle: Bundle, bundle_sha256: str = "", bank: Bank | None = None) -> dict[str, str]:
    """Metadata of an exported model except its verification, as `Metadata` reads it."""
    count = probe_count(bundle.probe_images)
    fields = {
        "format": FORMAT,
        "task": bundle.task,
        "classes": json.dumps(bundle.classes),
        "preprocessing": bundle.preprocessing.to_json(),
        "image_size": str(bundle.preprocessing.image_size),
        "resize": resize_rule(bundle.preprocessing),
        "backbone": bundle.backbone,
        "backbone_sha256": bundle.backbone_sha256,
        "bundle_sha256": bundle_sha256,
        "bank_sha256": bank.sha256 if bank else "",
        "bank_content_sha256": content_sha256(bank) if bank else "",
        "mode": bundle.mode,
        "pooling": bundle.pooling,
        "choice": bundle.choice,
        "weights": json.dumps(source_shares(bundle.weights).tolist()),
        "sources": json.dumps(bundle.sources),
        "objective": json.dumps(bundle.objective, sort_keys=True),
        "table": json.dumps([vars(row) for row in bundle.table]),
        "split_digest": bundle.split_digest,
        "seed": str(bundle.seed),
        "versions": json.dumps({**bundle.versions, **_versions()}, sort_keys=True),
        "probe_logits": json.dumps(bundle.probe_logits[:count].tolist()),
        "probe_images": pack_images(bundle.probe_images[:count]),
    }
    if bundle.trained is not None:
        fields["training_images"] = bundle.trained.to_json()
    # Not where the features are under another mix, or the averaged probabilities.
    own_features = bank is None or (bundle.initial is None and not bundle.more)
    if bundle.reference is not None and own_features:
        fields["reference"] = pack_reference(bundle.reference)
    if bundle.more:
        fields["more"] = json.dumps(
            [
                {"method": folded.method, "weights": source_shares(folded.weights).tolist()}
                for folded in bundle.more
            ]
        )
    return {f"{PREFIX}{name}": text for name, text in fields.items()}


def resize_rule(preprocessing: Preprocessing) -> str:
    """Put the resize rule in words, for whoever feeds the model without this package."""
    resize, size = preprocessing.resize, preprocessing.image_size
    sides = {CROP: "the shorter side", SQUASH: "both sides", LETTERBOX: "the longer side"}
    what, then = sides[preprocessing.crop_mode], f", then crop {size} x {size} centrally"
    if preprocessing.fill is not None:
        colour = " ".join(map(str, preprocessing.fill))
        then = f", then centre it on {size} x {size} of the colour {colour}"
    elif preprocessing.crop_mode == SQUASH and resize == size:
        then = ""
    return f"RGB; resize {what} to {resize} px ({preprocessing.interpolation}, antialiased){then}"


def check_fits(bundle: Bundle, backbone: Backbone, images: Pixels) -> None:
    """Refuse a bundle of another backbone, or one whose parts do not fit each other or it."""
    size = backbone.image_size
    backbone = as_fitted(bundle, backbone)
    depth, width, features = backbone.depth, backbone.embed_dim, backbone.feature_dim
    classes = len(bundle.classes)
    layers = (depth,) if bundle.more else (1, depth)
    parts: list[tuple[str, object, object]] = [
        ("image size", bundle.preprocessing.image_size, bundle.preprocessing.image_size == size),
        ("images to verify on", images.shape, len(images) and images.shape[1:] == (size, size, 3)),
    ]
    for index, folded in enumerate(bundle.folded):
        prompt = () if folded.prompt is None else folded.prompt.shape
        head, bias = folded.head.weight.shape, folded.head.bias.shape
        name = "" if index == 0 else f"more.{index - 1}."
        parts += [
            (
                f"{name}prompt",
                prompt,
                not prompt or (prompt[0] in layers and prompt[2:] == (width,)),
            ),
            (f"{name}head.weight", head, head == (classes, features)),
            (f"{name}head.bias", bias, bias == (classes,)),
        ]
    if len(bundle.folded) > MAX_FOLDED:
        parts.append(("number of folded prompts", len(bundle.folded), False))
    for what, found, fits in parts:
        if not fits:
            raise MismatchError(
                f"the bundle of {bundle.task}",
                f"the backbone {backbone.name} at {size} px",
                f"its {what} is {found}",
                "run `hgedge fit` again",
            )


def _check_size(model: ir.Model, path: Path) -> None:
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > MAX_MODEL_BYTES:
        raise FileError(
            path,
            f"the model would have {size / 1e9:.1f} GB and one ONNX file holds 2 GB; choose a "
            "smaller backbone",
        )


def append_metadata(path: Path, entries: dict[str, str]) -> None:
    """Add metadata to an ONNX file without touching the bytes that are there."""
    # Protobuf messages that follow each other are one message, repeated fields are joined. So the
    # bytes that were verified stay as they are.
    tail = onnx.ModelProto()
    onnx.helper.set_model_props(tail, entries)
    with path.open("ab") as file:
        file.write(tail.SerializeToString(deterministic=True))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found
