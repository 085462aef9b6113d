"""INT8: quantize, hold the accuracy against float32, try the next safer way, or refuse.

A bundle's head has seen the validation images, which would flatter any model. So the best head
for the training images alone is chosen and fitted, and that one judges; the file gets the bundle's.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.device.engine import Engine
from hgprompt_edge.device.metadata import PREFIX, parse_metadata, probe_count
from hgprompt_edge.device.onnx_engine import OnnxEngine
from hgprompt_edge.device.openvino_engine import OpenVinoEngine, computes_bf16
from hgprompt_edge.device.other_cpu import describe_cpu
from hgprompt_edge.device.parity import TOLERANCES
from hgprompt_edge.device.seal import BLANK, FILE_SHA256, seal
from hgprompt_edge.device.softmax import log_mean_softmax, softmax
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.bank_file import beside, make_bank, write_beside
from hgprompt_edge.export.body import attach_head, split_head
from hgprompt_edge.export.graph import build_graph
from hgprompt_edge.export.head import Head, head_logits
from hgprompt_edge.export.onnx_file import append_metadata, check_fits, describe
from hgprompt_edge.export.openvino_file import add_metadata
from hgprompt_edge.export.rewrites import Attention, Rewrites
from hgprompt_edge.export.schemes import Control, Given, Scheme, onnx_schemes, openvino_schemes
from hgprompt_edge.export.verify import Verification, at_factory, reference_features, verify_mixes
from hgprompt_edge.files import atomic_paths
from hgprompt_edge.tasks.task import Images, Task
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.best_head import fit_head
from hgprompt_edge.vit.fitted import as_fitted
from hgprompt_edge.vit.heads import accuracy as share_right

MIN_CALIBRATION, MAX_CALIBRATION = 32, 300
BATCHES = (1, 16)
"""As a camera and as `hgedge predict` give them: a class must not depend on the other images."""
Report = Callable[[str, int, int], None]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """A scheme and the validation accuracy of its model; `drop` in points below float32.

    Under a head that has not seen these images, each right alone and among others.
    """

    scheme: str
    val_accuracy: float
    drop: float


@dataclass(frozen=True)
class Int8:
    """What `export_int8` wrote.

    Attributes
    ----------
    tried
        All schemes that were tried; the last one is in the file.
    float_accuracy
        Validation accuracy in float32, that of fit's table; at the factory mix, where the weights
        come at run time.
    bf16
        The same model, what is left in float in bfloat16; None: not measured, since the runtime or
        this CPU does not compute in it.
    """

    tried: tuple[Trial, ...]
    float_accuracy: float
    bf16: Trial | None
    verification: Verification


def export_int8(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    task: Task,
    *,
    max_drop: float = 1.0,
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
        Its training images calibrate, its validation images measure.
    max_drop
        Points of validation accuracy that the model may lose.
    control
        Let NNCF search which layers must stay in float (OpenVINO alone, takes minutes).
    runtime_weights, adapt
        As for `export_onnx`, for `.onnx` alone; the accuracy is that at the factory mix, and the
        graph of the gradient is in float32.
    report
        Called with (scheme, schemes tried, schemes there are).

    Raises
    ------
    UserError
        The images are not the bundle's or too few, or a package is missing.
    CheckError
        No scheme keeps within `max_drop`; the message holds what was tried. No file is written.
    """
    _check_task(bundle, task)
    check_fits(bundle, backbone, bundle.probe_images)
    is_ir = path.suffix == ".xml"
    files = (path.with_suffix(".bin"), path) if is_ir else (path,)
    # Quantized, too, each runtime is fastest with its own way to take the prefix.
    on = Rewrites(attention=Attention.PAST if is_ir else Attention.STANDARD)
    bank = make_bank(bundle, backbone) if runtime_weights else None
    given = bank.inputs(bank.factory) if bank else {}
    start = at_factory(bundle, backbone, bank) if bank else bundle
    prompts = len(bundle.folded)
    unseen, floating = _judge(start, backbone, task, bank.share(bank.factory) if bank else 1.0)
    judge = split_head(build_graph(unseen, backbone, on))[1]
    if is_ir:
        held = Control(task.validation, lambda f: softmax(head_logits(f, judge)), max_drop)
        schemes = openvino_schemes(backbone.depth, held if control else None, prompts)
    else:
        schemes = onnx_schemes(backbone.depth, given, prompts)
    with atomic_paths(*beside(path, bank, adapt), *files) as temporary:
        # In a folder of its own: an output may have any name.
        graph = Path(tempfile.mkdtemp(dir=temporary[-1].parent)) / "float.onnx"
        if bank is not None:
            write_beside(bundle, backbone, bank, temporary[: -len(files)])
        body, head = split_head(build_graph(start, backbone, on, bank))
        ir.save(body, graph)
        measure = functools.partial(accuracy, head=judge, images=task.validation, given=given)
        tried = _try(schemes, graph, temporary[-1], task, measure, floating, max_drop, report)
        if tried[-1].drop > max_drop:
            raise CheckError(_refusal(path, floating, tried, max_drop))
        rounded = None
        if is_ir and computes_bf16():
            engine = OpenVinoEngine(temporary[-1], bf16=True, cache=False)
            name = f"{tried[-1].scheme}, the rest in bfloat16"
            rounded = _trial(name, measure(engine), floating)
        attach_head(temporary[-1], head, keep_features=bank is not None)
        verification = verify_mixes(
            _open(temporary[-1]), bundle, backbone, bundle.probe_images, bank, TOLERANCES["int8"]
        )
        if not verification.ok:
            raise CheckError(f"{path}: the int8 model is broken ({verification}); nothing written")
        images = bundle.probe_images[: probe_count(bundle.probe_images)]
        entries = {
            **describe(start, bundle_sha256, bank),
            f"{PREFIX}precision": "int8",
            f"{PREFIX}bf16": json.dumps(rounded is not None and rounded.drop <= max_drop),
            f"{PREFIX}verification": json.dumps(asdict(verification), sort_keys=True),
            f"{PREFIX}quantization": json.dumps(
                {
                    "val_accuracy_fp32": floating,
                    "tried": [asdict(trial) for trial in tried],
                    "bf16": asdict(rounded) if rounded else None,
                    **describe_cpu(_open(temporary[-1]), images, given),
                }
            ),
            FILE_SHA256: BLANK,
        }
        (add_metadata if is_ir else append_metadata)(temporary[-1], entries)
        seal(temporary[-1])
        parse_metadata(path, _open(temporary[-1]).entries)
    return Int8(tuple(tried), floating, rounded, verification)


def accuracy(body: Engine, head: Head, images: Images, given: Given | None = None) -> float:
    """Share of the images whose class a head names from the features of a body.

    At each size of `BATCHES`: an image that is right by itself only is not.
    """
    right = np.ones(len(images), bool)
    for batch in BATCHES:
        parts = range(0, len(images), batch)
        features = np.concatenate([body.run(images.pixels[i : i + batch], given) for i in parts])
        right &= head_logits(features, head).argmax(1) == images.labels
    return float(right.mean())


def _judge(bundle: Bundle, backbone: Backbone, task: Task, share: float) -> tuple[Bundle, float]:
    """Give the bundle a head that has not seen the validation images, and its accuracy on them.

    Its prompt has a `share` beside the model alone, as after a merge, or 1. Each of several folded
    prompts gets a head of its own.
    """
    store = FeatureStore(as_fitted(bundle, backbone))
    kind = bundle.objective.get("head", "auto")
    folded, logits = [], []
    for one in bundle.folded:

        def features(images: Images, prompt: Floats | None = one.prompt) -> Tensor:
            if share == 1 or prompt is None:
                return store.features(images.pixels, prompt)
            return reference_features(bundle, backbone, images.pixels, prompt, share)

        train, labels = features(task.train), task.train.labels
        head = fit_head(train, labels, len(task.classes), bundle.seed, kind)
        weight, bias = head.weight.float().numpy(), head.bias.float().numpy()
        folded.append(replace(one, head_weight=weight, head_bias=bias))
        logits.append(head.logits(features(task.validation)))
    first, *more = folded
    unseen = replace(
        bundle, head_weight=first.head_weight, head_bias=first.head_bias, more=tuple(more)
    )
    found = torch.from_numpy(log_mean_softmax(torch.stack(logits).numpy())) if more else logits[0]
    return unseen, share_right(found, task.validation.labels)


def _try(
    schemes: list[Scheme],
    graph: Path,
    path: Path,
    task: Task,
    measure: Callable[[Engine], float],
    floating: float,
    max_drop: float,
    report: Report | None,
) -> list[Trial]:
    """Write a body with one scheme after the other until one holds, the last in the list."""
    calibration = _calibration(task)
    tried: list[Trial] = []
    for index, scheme in enumerate(schemes):
        if report:
            report(f"int8: {scheme.name}", index, len(schemes))
        scheme.write(graph, calibration, path)
        tried.append(_trial(scheme.name, measure(_open(path)), floating))
        if tried[-1].drop <= max_drop:
            break
    return tried


def _trial(name: str, found: float, floating: float) -> Trial:
    # Rounded, so that one point is one point whatever the number of images.
    return Trial(name, found, round(100 * (floating - found), 6))


def _open(path: Path) -> Engine:
    return OpenVinoEngine(path, cache=False) if path.suffix == ".xml" else OnnxEngine(path)


def _calibration(task: Task) -> npt.NDArray[np.uint8]:
    order = np.random.default_rng(0).permutation(len(task.train))[:MAX_CALIBRATION]
    return task.train.pixels[np.sort(order)]


def _check_task(bundle: Bundle, task: Task) -> None:
    if task.classes != bundle.classes:
        raise UserError(
            f"--data: task '{task.name}' has {len(task.classes)} classes, and they are not the "
            f"{len(bundle.classes)} of the bundle; give the images that it was fitted on"
        )
    if len(task.train) < MIN_CALIBRATION:
        raise UserError(
            f"--data: {len(task.train)} training images, and int8 takes at least "
            f"{MIN_CALIBRATION} to calibrate; give more or leave out --precision int8"
        )
    if not len(task.validation):
        raise UserError(
            "--data: no validation images, and the accuracy of int8 is measured on them; add some "
            "or leave out --precision int8"
        )
    if bundle.split_digest != task.digest:
        raise UserError(
            f"--data: these are not the images that the bundle of {bundle.task} was fitted on; "
            "name those, or run `hgedge fit` on these first"
        )


def _refusal(path: Path, floating: float, tried: list[Trial], max_drop: float) -> str:
    rows = "; ".join(
        f"{trial.scheme}: {100 * trial.val_accuracy:.1f} % (-{trial.drop:.1f})" for trial in tried
    )
    return (
        f"{path}: no int8 model keeps within --max-drop {max_drop:g} of {100 * floating:.1f} % on "
        f"the validation images ({rows}); nothing was written, allow more or keep float32"
    )
