"""Run images through a backbone in parts, by workers, and in smaller parts where memory ends.

Workers are threads of this process: PyTorch's operators release the interpreter's lock, so two of
them do twice the work of one, without a copy of the weights for each. Results come in the order of
the parts, so that a sum over them is the same from run to run.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.image_count import images_passed
from hgprompt_edge.errors import ParameterError, is_out_of_memory

T = TypeVar("T")
Work = Callable[[VisionTransformer, slice], T]
"""Of one part: takes the model, on its device and in its precision, and the part's images."""


@dataclass
class _Replicas:
    """Copies of one model for other devices and precisions, and the parts that fit there."""

    models: dict[tuple[str, str], VisionTransformer] = field(default_factory=dict)
    micro_batches: dict[tuple[str, str], int] = field(default_factory=dict)


_replicas: WeakKeyDictionary[nn.Module, _Replicas] = WeakKeyDictionary()


def in_parts(backbone: Backbone, images: int, work: Work[T]) -> list[T]:
    """Run `work` on parts of so many images by the backbone's workers: results in their order.

    Where memory does not suffice the parts are halved, with a warning.

    Raises
    ------
    UserError
        Not even one image fits.
    """
    while True:
        try:
            return run_parts(backbone, part_slices(backbone, images), work)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            largest = max(part.stop - part.start for part in part_slices(backbone, images))
        # Out of the handler, since the error keeps the tensors of its frames alive.
        _halve(backbone, largest)


def part_slices(backbone: Backbone, images: int) -> list[slice]:
    """Parts of so many images, as large as this backbone's device was found to hold."""
    compute = backbone.compute
    known = _of(backbone).micro_batches.get((compute.device, compute.precision))
    size = compute.micro_batch if known is None else min(known, compute.micro_batch)
    return replace(compute, micro_batch=size).parts(images)


def run_parts(backbone: Backbone, parts: Sequence[slice], work: Work[T]) -> list[T]:
    """Run `work` on these parts; out of memory is the caller's to handle."""
    compute, model = backbone.compute, model_of(backbone)

    def counted(model: VisionTransformer, part: slice) -> T:
        found = work(model, part)
        images_passed(part.stop - part.start)
        return found

    with _threads(compute.threads):
        if compute.workers == 1 or len(parts) < 2:
            return [counted(model, part) for part in parts]
        pool = ThreadPoolExecutor(
            compute.workers, initializer=torch.set_num_threads, initargs=(compute.threads,)
        )
        try:
            futures = [pool.submit(counted, model, part) for part in parts]
            return [future.result() for future in futures]
        finally:  # an interrupted run does not wait for parts that have not begun
            pool.shutdown(cancel_futures=True)


def model_of(backbone: Backbone) -> VisionTransformer:
    """Return the backbone's model on the device and in the precision that it computes in."""
    compute, model = backbone.compute, backbone.model
    parameter = next(model.parameters())
    dtype: torch.dtype = getattr(torch, compute.precision)
    if parameter.dtype == dtype and parameter.device.type == compute.device:
        return model
    models, key = _of(backbone).models, (compute.device, compute.precision)
    if key not in models:
        models[key] = copy.deepcopy(model).to(device=compute.device, dtype=dtype)
    if models[key].global_pool == model.global_pool:
        return models[key]
    pooled = copy.copy(models[key])  # the weights are shared
    pooled.global_pool = model.global_pool
    return pooled


def _halve(backbone: Backbone, size: int) -> None:
    compute = backbone.compute
    if compute.device == "cuda":
        torch.cuda.empty_cache()
    if size <= 1:
        raise ParameterError(
            "device",
            compute.device,
            f"out of memory at a batch of one image of {backbone.image_size} pixels; free memory "
            "there, choose another device or a smaller backbone",
        )
    _of(backbone).micro_batches[compute.device, compute.precision] = size // 2
    warnings.warn(
        f"out of memory on {compute.device} with {size} images at a time; going on with "
        f"{size // 2}",
        stacklevel=2,
    )


def _of(backbone: Backbone) -> _Replicas:
    # By its blocks, which the copies of a model with other poolings have in common.
    return _replicas.setdefault(cast("nn.Module", backbone.model.blocks), _Replicas())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let this thread's operators use `count` threads, and the workers' matrix products, too."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
