"""INT8: quantize, hold the accuracy against float32, try the next safer way, or refuse.

The difference is judged on the same images with its interval, under heads that have not seen them
(`held_out.py`); the file gets the bundle's head. Where the images are too few to say on which side
of the bound it lies, a model is written on request only.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.metadata import PREFIX, parse_metadata, probe_count
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data.task import Task
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.bank_file import beside, make_bank, write_beside
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.head import head_logits
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.int8.floating import FloatModel, in_float, search_control
from hgprompt_edge.export.int8.held_out import HeldOut
from hgprompt_edge.export.int8.measure import (
    held_against,
    on_test_images,
    open_body,
    own_reference,
    right_in_any_batch,
)
from hgprompt_edge.export.int8.schemes import onnx_schemes, openvino_schemes
from hgprompt_edge.export.int8.search import (
    Judge,
    Report,
    calibration_images,
    check_images,
    try_schemes,
)
from hgprompt_edge.export.int8.trials import Trial, refusal, takes, trial_of, unproven
from hgprompt_edge.export.onnx_file import append_metadata, check_fits, describe
from hgprompt_edge.export.openvino_file import add_metadata
from hgprompt_edge.export.verify import Verification, verify_mixes
from hgprompt_edge.files import atomic_paths
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.paired import Paired
from hgprompt_edge.maths.parity import TOLERANCES
from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine, computes_bf16
from hgprompt_edge.runtime.other_cpu import describe_cpu

MAX_DROP = 1.0
"""Points of accuracy that may be lost by default. A thousand images, as many as `fit` takes, prove
it of a model that loses nothing; one that loses half a point would take some 3,000."""


@dataclass(frozen=True)
class Measured:
    """What int8 costs, by the images.

    Attributes
    ----------
    tried
        All schemes that were tried, on `images` held-out ones; the last one is in the file.
    float_accuracy
        Of these in float32; at the initial mix, where the weights come at run time.
    proven
        Whether the images show that the bound holds; else it was accepted unproven.
    needed
        About how many images would decide; None where it is proven, or no number would.
    bf16
        The same model, what is left in float in bfloat16; None: not measured, since the runtime or
        this CPU does not compute in it.
    test
        The model in the file on test images, under the bundle's head; None: there are none.
    test_images
        How many.
    """

    tried: tuple[Trial, ...]
    images: int
    float_accuracy: float
    proven: bool
    needed: int | None
    bf16: Trial | None
    test: Trial | None
    test_images: int


@dataclass(frozen=True)
class Int8(Measured):
    """What `export_int8` wrote."""

    verification: Verification


def export_int8(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    task: Task,
    *,
    max_drop: float = MAX_DROP,
    accept_unproven: bool = False,
    control: bool = False,
    bundle_sha256: str = "",
    runtime_weights: bool = False,
    adapt: bool = False,
    report: Report | None = None,
) -> Int8:
    """Write an int8 model, `.onnx` or `.xml`, whose accuracy was held against float32.

    Parameters
    ----------
    task
        Its training images calibrate; those and its validation images judge.
    max_drop
        Points of accuracy that the model may lose.
    accept_unproven
        Write the model, too, where the images are too few to say whether it holds that.
    control
        Let NNCF search which layers must stay in float (OpenVINO alone, takes minutes).
    runtime_weights, adapt
        As for `export_onnx`, for `.onnx` alone; the accuracy is that at the initial mix, and the
        graph of the gradient is in float32.
    report
        Called with (scheme, schemes tried, schemes there are).

    Raises
    ------
    UserError
        The images are not the bundle's or too few, or a package is missing.
    CheckError
        No scheme keeps within `max_drop`, or none is proven to; the message holds what was tried.
        No file is written.
    """
    check_images(bundle, task)
    check_fits(bundle, backbone, bundle.probe_images)
    is_ir = path.suffix == ".xml"
    files = (path.with_suffix(".bin"), path) if is_ir else (path,)
    bank = make_bank(bundle, backbone) if runtime_weights else None
    floating = in_float(bundle, backbone, task, bank, is_ir)
    with atomic_paths(*beside(path, bank, adapt), *files) as temporary:
        if bank is not None:
            write_beside(bundle, backbone, bank, temporary[: -len(files)])
        written = temporary[-len(files) :]
        tried, compared, heads = _quantize(floating, written, control, max_drop, report)
        proven = _check_loss(path, floating.held, tried, compared, max_drop, accept_unproven)
        needed = None if proven else compared.needed(-max_drop)
        measured = _measure(floating, temporary[-1], heads, tried, proven, needed)
        reference = own_reference(floating.run(temporary[-1]), floating.bundle, task)
        attach_head(temporary[-1], heads, adapt=bank is not None)
        verification = _verify(path, temporary[-1], floating, bundle)
        entries = {
            **describe(replace(floating.bundle, reference=reference), bundle_sha256, bank),
            **_entries(measured, temporary[-1], floating, max_drop, accept_unproven),
            f"{PREFIX}verification": json.dumps(asdict(verification), sort_keys=True),
            FILE_SHA256: BLANK,
        }
        (add_metadata if is_ir else append_metadata)(temporary[-1], entries)
        seal(temporary[-1])
        parse_metadata(path, open_body(temporary[-1]).entries)
    return Int8(**vars(measured), verification=verification)


def _quantize(
    floating: FloatModel,
    files: Sequence[Path],
    control: bool,
    max_drop: float,
    report: Report | None,
) -> tuple[list[Trial], Paired, list[Head]]:
    """Write the best quantized body; returns all trials, the pairs behind the last, the heads."""
    depth, prompts = floating.backbone.depth, len(floating.bundle.folded)
    if files[-1].suffix == ".xml":
        schemes = openvino_schemes(
            depth, search_control(floating, max_drop) if control else None, prompts
        )
    else:
        schemes = onnx_schemes(depth, floating.given, prompts)
    # In a folder of its own: an output may have any name.
    graph = Path(tempfile.mkdtemp(dir=files[-1].parent)) / "float.onnx"
    body, heads = split_head(
        build_graph(floating.bundle, floating.backbone, floating.on, floating.bank)
    )
    ir.save(body, graph)
    measure = functools.partial(held_against, held=floating.held, given=floating.given)
    judge = Judge(measure, floating.held.accuracy)
    images = calibration_images(floating.task)
    each, (compared,) = try_schemes(schemes, graph, files, images, [judge], max_drop, report)
    return [trial for (trial,) in each], compared, heads


def _check_loss(
    path: Path,
    held: HeldOut,
    tried: Sequence[Trial],
    compared: Paired,
    max_drop: float,
    accept_unproven: bool,
) -> bool:
    """Refuse what loses too much, or is not proven to lose little; whether it is proven."""
    holds = tried[-1].holds(max_drop)
    if holds is False:
        raise CheckError(refusal(path, held, tried, max_drop))
    if not holds and not accept_unproven:
        needed = compared.needed(-max_drop)
        raise CheckError(unproven(path, held, tried[-1], max_drop, needed))
    return bool(holds)


def _measure(
    floating: FloatModel,
    body: Path,
    heads: Sequence[Head],
    tried: Sequence[Trial],
    proven: bool,
    needed: int | None,
) -> Measured:
    """Measure the body in bfloat16, too, where that is computed, and on test images."""
    held, given = floating.held, floating.given
    rounded = None
    if body.suffix == ".xml" and computes_bf16():
        engine = OpenVinoEngine(body, bf16=True, cache=False)
        name = f"{tried[-1].scheme}, the rest in bfloat16"
        rounded = trial_of(name, held_against(engine, held, given), held.accuracy)
    quantized = open_body(body)
    test, test_images = on_test_images(
        floating.bundle,
        floating.task,
        floating.features,
        lambda images: right_in_any_batch(
            quantized, images, given, lambda x: head_logits(x, heads).argmax(1) == images.labels
        ),
    )
    return Measured(
        tuple(tried),
        len(held.images),
        held.accuracy,
        proven,
        needed,
        rounded,
        test,
        test_images,
    )


def _verify(path: Path, written: Path, floating: FloatModel, bundle: Bundle) -> Verification:
    """Hold the complete model against PyTorch, at several mixes where it takes them."""
    verification = verify_mixes(
        open_body(written),
        bundle,
        floating.backbone,
        bundle.probe_images,
        floating.bank,
        TOLERANCES["int8"],
    )
    if not verification.ok:
        raise CheckError(f"{path}: the int8 model is broken ({verification}); nothing written")
    return verification


def _entries(
    measured: Measured, written: Path, floating: FloatModel, max_drop: float, accept_unproven: bool
) -> dict[str, str]:
    """Make the entries of the model about its precision and what that costs."""
    images = floating.bundle.probe_images[: probe_count(floating.bundle.probe_images)]
    rounded, test = measured.bf16, measured.test
    quantization = {
        "images": measured.images,
        "accuracy_fp32": measured.float_accuracy,
        "max_drop": max_drop,
        "proven": measured.proven,
        "tried": [asdict(trial) for trial in measured.tried],
        "bf16": asdict(rounded) if rounded else None,
        "test": asdict(test) if test else None,
        "test_images": measured.test_images,
        **describe_cpu(open_body(written), images, floating.given),
    }
    return {
        f"{PREFIX}precision": "int8",
        f"{PREFIX}bf16": json.dumps(takes(rounded, max_drop, accept_unproven)),
        f"{PREFIX}quantization": json.dumps(quantization),
    }
