"""Bundle to OpenVINO's IR: two files that are written, checked, and only then named."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import PREFIX, parse_metadata
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, FileError
from hgprompt_edge.export.bank_file import beside, make_bank, write_beside
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.ir_file import save_ir, serialize_ir
from hgprompt_edge.export.onnx_file import check_fits, describe
from hgprompt_edge.export.verify import Verification, at_initial, verify_mixes
from hgprompt_edge.files import atomic_paths, sha256_file
from hgprompt_edge.maths.parity import TOLERANCES
from hgprompt_edge.runtime.engines.engine import LoadError
from hgprompt_edge.runtime.engines.openvino_engine import (
    RT_INFO,
    WEIGHTS_SHA256,
    OpenVinoEngine,
    import_openvino,
    read_entries,
)


class Precision(str, Enum):
    """How weights are stored."""

    FP32 = "fp32"
    FP16 = "fp16"


def export_openvino(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    *,
    images: npt.NDArray[np.uint8] | None = None,
    precision: Precision = Precision.FP32,
    bundle_sha256: str = "",
    runtime_weights: bool = False,
    adapt: bool = False,
) -> Verification:
    """Write `NAME.xml` and `NAME.bin` of the same graph as ONNX's, proven equal to PyTorch.

    Parameters
    ----------
    path
        `NAME.xml`.
    images
        Real images `[n, S, S, 3]` uint8 to verify on; None: the bundle's probe images.
    precision
        `FP16` halves the file; its logits are within 1 % of the largest, not equal.
    bundle_sha256
        Of the bundle's file, to be recorded.
    runtime_weights, adapt
        As for `export_onnx`; the graph of the gradient is ONNX here, too.

    Raises
    ------
    UserError
        OpenVINO is not installed, the bundle does not fit the backbone, or `path` is no `.xml`.
    CheckError
        The model is not equal to PyTorch. No file is written, old ones stay.
    """
    ov = import_openvino()
    if path.suffix != ".xml":
        raise FileError(path, "the name of an OpenVINO model ends in .xml")
    images = bundle.probe_images if images is None else images
    check_fits(bundle, backbone, images)
    bank = make_bank(bundle, backbone) if runtime_weights else None
    files = [path.with_suffix(".bin"), path]
    with atomic_paths(*beside(path, bank, adapt), *files) as (*others, weights, xml):
        if bank is not None:
            write_beside(bundle, backbone, bank, others)
        start = at_initial(bundle, backbone, bank) if bank else bundle
        graph = build_graph(start, backbone, Rewrites(attention=Attention.PAST), bank)
        model = convert(ov, graph, xml)
        half = precision is Precision.FP16
        save_ir(model, xml, half=half)
        verification = _verify(xml, path, bundle, backbone, images, precision, bank)
        entries = {
            **describe(start, bundle_sha256, bank),
            f"{PREFIX}precision": precision.value,
            f"{PREFIX}verification": json.dumps(asdict(verification), sort_keys=True),
            WEIGHTS_SHA256: sha256_file(weights),
            FILE_SHA256: BLANK,
        }
        _set_entries(model, entries)
        save_ir(model, xml, half=half)
        seal(xml)
        parse_metadata(path, read_entries(ov.Core().read_model(xml)))
    return verification


def convert(ov: Any, graph: ir.Model, beside: Path) -> Any:
    """Convert a graph to OpenVINO, through an ONNX file beside the one to be written."""
    onnx_path = beside.with_suffix(".onnx")
    ir.save(graph, onnx_path)
    try:
        return ov.Core().read_model(onnx_path)
    except RuntimeError as error:
        version = ov.__version__.partition("-")[0]
        raise CheckError(
            f"openvino {version} does not convert the graph ({_brief(error)}); upgrade it; "
            "nothing was written"
        ) from error
    finally:
        onnx_path.unlink(missing_ok=True)


def _verify(
    xml: Path,
    path: Path,
    bundle: Bundle,
    backbone: Backbone,
    images: npt.NDArray[np.uint8],
    precision: Precision,
    bank: Bank | None,
) -> Verification:
    tolerance = TOLERANCES[precision.value]
    try:
        engine = OpenVinoEngine(xml, cache=False)
        verification = verify_mixes(engine, bundle, backbone, images, bank, tolerance)
    except (CheckError, LoadError) as error:
        raise CheckError(f"{path}: {_brief(error)}; nothing was written") from error
    if not verification.ok:
        raise CheckError(
            f"{path}: the model is not equal to PyTorch ({verification}); nothing was written"
        )
    return verification


def add_metadata(xml: Path, entries: dict[str, str]) -> None:
    """Add metadata, and the sha256 of the weights, to an IR that is written already."""
    ov = import_openvino()
    model = ov.Core().read_model(xml)
    _set_entries(model, {**entries, WEIGHTS_SHA256: sha256_file(xml.with_suffix(".bin"))})
    second = xml.with_name(f"described-{xml.name}")
    serialize_ir(model, second)
    # The graph alone is new: the weights stay the bytes that were verified.
    if sha256_file(second.with_suffix(".bin")) != sha256_file(xml.with_suffix(".bin")):
        raise CheckError(f"{xml.name}: OpenVINO changed the weights as it wrote the metadata")
    second.with_suffix(".bin").unlink()
    second.replace(xml)


def _set_entries(model: Any, entries: dict[str, str]) -> None:
    for name, text in entries.items():
        model.set_rt_info(text, [RT_INFO, name.removeprefix(PREFIX)])


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:200] if lines else type(error).__name__
