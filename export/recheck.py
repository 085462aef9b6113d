"""Check an exported model on a server: against PyTorch, and with onnx's own checker."""

from __future__ import annotations

from pathlib import Path

import onnx

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.device.engine import open_engine
from hgprompt_edge.device.predictor import tolerance_of
from hgprompt_edge.device.verify import Check
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.onnx_file import check_fits
from hgprompt_edge.export.verify import verify_engine
from hgprompt_edge.vit.backbone import Backbone


def recheck(path: Path, bundle: Bundle, backbone: Backbone) -> list[Check]:
    """Compare a model with PyTorch's token form on the bundle's images, at batches of 1, 2 and 7.

    Raises
    ------
    UserError
        The bundle does not fit the backbone, or the model does not load.
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
    tolerance = tolerance_of(engine.entries)
    try:
        found = verify_engine(engine, bundle, backbone, bundle.probe_images, tolerance=tolerance)
    except CheckError as error:
        return [*checks, Check("PyTorch", False, str(error))]
    return [*checks, Check("PyTorch", found.ok, str(found))]
