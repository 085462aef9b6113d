"""INT8: quantize, hold the accuracy against float32, try the next safer way, or refuse.

The difference is judged on the same images with its interval, under heads that have not seen them
(`held_out.py`); the file gets the bundle's head. Where the images are too few to say on which side
of the bound it lies, a model is written on request only.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.metadata import PREFIX, parse_metadata, probe_count
from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data.task import Task
from hgprompt_edge.errors import CheckError, FileError, MismatchError
from hgprompt_edge.export.bank_file import beside, make_bank, write_beside
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.head import head_logits
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.int8.held_out import Features, features_of, graph_heads, hold_out
from hgprompt_edge.export.int8.measure import (
    held_against,
    on_test_images,
    open_body,
    own_reference,
    right_in_any_batch,
)
from hgprompt_edge.export.int8.schemes import Control, onnx_schemes, openvino_schemes
from hgprompt_edge.export.int8.search import (
    MIN_CALIBRATION,
    Judge,
    Report,
    calibration_images,
    try_schemes,
)
from hgprompt_edge.export.int8.trials import Trial, refusal, takes, trial_of, unproven
from hgprompt_edge.export.onnx_file import append_metadata, check_fits, describe
from hgprompt_edge.export.openvino_file import add_metadata
from hgprompt_edge.export.verify import Verification, at_initial, verify_mixes
from hgprompt_edge.files import atomic_paths
from hgprompt_edge.fit.checks import check_same_images
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.maths.parity import TOLERANCES
from hgprompt_edge.maths.softmax import softmax
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
    # Quantized, too, each runtime is fastest with its own way to take the prefix.
    on = Rewrites(attention=Attention.PAST if is_ir else Attention.STANDARD)
    bank = make_bank(bundle, backbone) if runtime_weights else None
    given = bank.inputs(bank.initial) if bank else {}
    start = at_initial(bundle, backbone, bank) if bank else bundle
    prompts = len(bundle.folded)
    features = features_of(start, backbone, bank.share(bank.initial) if bank else 1.0)
    held = hold_out(start, backbone, task, features, on)
    if is_ir:
        wanted = _control(start, backbone, task, features, on, max_drop) if control else None
        schemes = openvino_schemes(backbone.depth, wanted, prompts)
    else:
        schemes = onnx_schemes(backbone.depth, given, prompts)
    with atomic_paths(*beside(path, bank, adapt), *files) as temporary:
        written = temporary[-len(files) :]
        # In a folder of its own: an output may have any name.
        graph = Path(tempfile.mkdtemp(dir=temporary[-1].parent)) / "float.onnx"
        if bank is not None:
            write_beside(bundle, backbone, bank, temporary[: -len(files)])
        body, heads = split_head(build_graph(start, backbone, on, bank))
        ir.save(body, graph)
        measure = functools.partial(held_against, held=held, given=given)
        judge = Judge(measure, held.accuracy)
        each, (compared,) = try_schemes(
            schemes, graph, written, calibration_images(task), [judge], max_drop, report
        )
        tried = [trial for (trial,) in each]
        proven = tried[-1].holds(max_drop)
        if proven is False:
            raise CheckError(refusal(path, held, tried, max_drop))
        needed = None if proven else compared.needed(-max_drop)
        if not proven and not accept_unproven:
            raise CheckError(unproven(path, held, tried[-1], max_drop, needed))
        rounded = None
        if is_ir and computes_bf16():
            engine = OpenVinoEngine(temporary[-1], bf16=True, cache=False)
            name = f"{tried[-1].scheme}, the rest in bfloat16"
            rounded = trial_of(name, measure(engine), held.accuracy)
        quantized = open_body(temporary[-1])
        run = functools.partial(quantized.run, given=given)
        test, test_images = on_test_images(
            start,
            task,
            features,
            lambda images: right_in_any_batch(
                quantized, images, given, lambda x: head_logits(x, heads).argmax(1) == images.labels
            ),
        )
        start = replace(start, reference=own_reference(run, start, task))
        attach_head(temporary[-1], heads, adapt=bank is not None)
        verification = verify_mixes(
            open_body(temporary[-1]),
            bundle,
            backbone,
            bundle.probe_images,
            bank,
            TOLERANCES["int8"],
        )
        if not verification.ok:
            raise CheckError(f"{path}: the int8 model is broken ({verification}); nothing written")
        images = bundle.probe_images[: probe_count(bundle.probe_images)]
        entries = {
            **describe(start, bundle_sha256, bank),
            f"{PREFIX}precision": "int8",
            f"{PREFIX}bf16": json.dumps(takes(rounded, max_drop, accept_unproven)),
            f"{PREFIX}verification": json.dumps(asdict(verification), sort_keys=True),
            f"{PREFIX}quantization": json.dumps(
                {
                    "images": len(held.images),
                    "accuracy_fp32": held.accuracy,
                    "max_drop": max_drop,
                    "proven": bool(proven),
                    "tried": [asdict(trial) for trial in tried],
                    "bf16": asdict(rounded) if rounded else None,
                    "test": asdict(test) if test else None,
                    "test_images": test_images,
                    **describe_cpu(open_body(temporary[-1]), images, given),
                }
            ),
            FILE_SHA256: BLANK,
        }
        (add_metadata if is_ir else append_metadata)(temporary[-1], entries)
        seal(temporary[-1])
        parse_metadata(path, open_body(temporary[-1]).entries)
    return Int8(
        tuple(tried),
        len(held.images),
        held.accuracy,
        bool(proven),
        needed,
        rounded,
        test,
        test_images,
        verification,
    )


def _control(
    bundle: Bundle,
    backbone: Backbone,
    task: Task,
    features: Features,
    on: Rewrites,
    max_drop: float,
) -> Control:
    """Give NNCF's search the validation images, and heads that were fitted on the others."""
    kind, classes = bundle.objective.get("head", "lda"), len(task.classes)
    fitted = [
        fit_head(features(task.train, one.prompt), task.train.labels, classes, bundle.seed, kind)
        for one in bundle.folded
    ]
    judge = graph_heads(bundle, backbone, fitted, on)
    return Control(task.validation, lambda f: softmax(head_logits(f, judge)), max_drop)


def check_images(bundle: Bundle, task: Task) -> None:
    """Refuse images that are not those of the fit, or too few to calibrate and to judge.

    Raises
    ------
    UserError
        As above.
    """
    where = task.data or task.name
    if task.classes != bundle.classes:
        raise MismatchError(
            f"the bundle of {bundle.task}",
            where,
            f"its {len(bundle.classes)} classes are not the {len(task.classes)} of these images",
            "give the images that it was fitted on",
        )
    check_same_images(bundle, task)
    if len(task.train) < MIN_CALIBRATION:
        raise FileError(
            where,
            f"{len(task.train)} training images, and int8 takes at least {MIN_CALIBRATION} to "
            "calibrate; give more, or export in another precision",
        )
    if not len(task.validation):
        raise FileError(
            where,
            "no validation images, and the accuracy of int8 is measured on them; add some, or "
            "export in another precision",
        )
