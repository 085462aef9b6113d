"""Check an exported model on a server: against PyTorch, and with onnx's own checker."""

from __future__ import annotations

from pathlib import Path

import onnx

from hgprompt_edge.artifacts.bank_entries import bank_sha256
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.metadata import parse_metadata
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.onnx_file import check_fits
from hgprompt_edge.export.verify import verify_mixes
from hgprompt_edge.runtime.contract import read_bank_of, tolerance_of
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.verify import Check


def recheck(path: Path, bundle: Bundle, backbone: Backbone) -> list[Check]:
    """Compare a model with PyTorch's token form on the bundle's images, at batches of 1, 2 and 7.

    One that takes its weights at run time is run with the bank beside it, at two mixes.

    Raises
    ------
    UserError
        The bundle does not fit the backbone, or the model or its bank do not load.
    """
    check_fits(bundle, backbone, bundle.probe_images)
    engine = open_engine(path)
    checks = []
    if path.suffix != ".xml":
        try:
            onnx.checker.check_model(path, full_check=True)
            checks.append(Check("onnx.checker", True, f"onnx {onnx.__version__}"))
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            checks.append(Check("onnx.checker", False, str(error).strip().splitlines()[0][:200]))
    bank = read_bank_of(path, parse_metadata(path, engine.entries))
    if bank is not None and bank.sha256 != bank_sha256(bundle):
        return [*checks, Check("bank", False, f"{bank.sha256[:12]}, not of the bundle's prompts")]
    tolerance = tolerance_of(engine.entries)
    try:
        found = verify_mixes(engine, bundle, backbone, bundle.probe_images, bank, tolerance)
    except CheckError as error:
        return [*checks, Check("PyTorch", False, str(error))]
    return [*checks, Check("PyTorch", found.ok, str(found))]
