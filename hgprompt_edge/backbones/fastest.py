"""Time what this machine can do with a backbone, and choose the fastest."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.compute import DEVICE_MICRO_BATCH, Compute, usable_threads
from hgprompt_edge.backbones.linearize import Linearized, pixel_inputs
from hgprompt_edge.errors import ParameterError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
PROMPT_TOKENS = 50
CPU_IMAGES = 8
"""Images of a trial for each thread; an accelerator takes its micro-batch."""
TRIALS = 2
PRODUCTS = 3
CLEARLY = 0.8
"""bfloat16 has to take at most this share of float32's time, else its rounding is not worth it."""
EMULATED = 2.0
"""A product in bfloat16 that takes so many times float32's is emulated; with units it is faster."""


@dataclass(frozen=True)
class Passes:
    """Passes of single images, of which a training image takes three.

    Attributes
    ----------
    chosen
        In the precision that was chosen.
    exact
        In float32, whatever was chosen.
    """

    chosen: int = 0
    exact: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.chosen + other.chosen, self.exact + other.exact)


@dataclass(frozen=True)
class Choice:
    """How images run, and how many a second ran forward and back in the trial.

    Attributes
    ----------
    exact_per_second
        In float32; the same rate where float32 was not tried.
    """

    compute: Compute
    images_per_second: float
    exact_per_second: float

    def seconds(self, passes: Passes) -> float:
        """Time for these passes."""
        chosen, exact = 3 * self.images_per_second, 3 * self.exact_per_second
        return passes.chosen / chosen + passes.exact / exact

    def __str__(self) -> str:
        """Return it as a command reports it."""
        return f"computing in {self.compute}: {self.images_per_second:.0f} training images/s"


_known: dict[tuple[object, ...], Choice] = {}


def choose_compute(backbone: Backbone, device: str = "auto", precision: str = "auto") -> Choice:
    """Choose where and how images run through a backbone: what is fastest here.

    Some images run forward and back to a prompt, in each precision that is left open and, on a
    CPU, by one worker with all threads and by as many workers with one thread each. Asked for once
    a process and shape of backbone.

    Parameters
    ----------
    device
        One of `DEVICES`; auto: `cuda` where there is one, else `cpu`. `mps` is experimental.
    precision
        One of `PRECISIONS`.

    Raises
    ------
    UserError
        PyTorch finds no such device here.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"The 'precision' must be one of {PRECISIONS}. Got '{precision}' instead.")
    device = check_device(device)
    shape = (backbone.depth, backbone.embed_dim, backbone.image_size, backbone.patch_size)
    key = (*shape, device, precision, torch.get_num_threads())
    if key not in _known:
        on_cpu = device == "cpu"
        _known[key] = _on_cpu(backbone, precision) if on_cpu else _on(backbone, device, precision)
    return _known[key]


def check_device(device: str) -> str:
    """Return the device that is meant by one of `DEVICES`.

    Raises
    ------
    UserError
        PyTorch finds no such device here.
    """
    if device not in DEVICES:
        raise ValueError(f"The 'device' must be one of {DEVICES}. Got '{device}' instead.")
    cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if cuda else "cpu"
    if device == "cuda" and not cuda:
        raise ParameterError(
            "device",
            "cuda",
            "PyTorch finds no CUDA device here; install its driver and a CUDA build of PyTorch, "
            "or use `device='cpu'`",
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ParameterError("device", "mps", "PyTorch finds no Apple GPU here; use `device='cpu'`")
    return device


def _on_cpu(backbone: Backbone, precision: str) -> Choice:
    threads = usable_threads()
    wide = Compute(threads=threads)
    trial = partial(_seconds, backbone, images=CPU_IMAGES * threads)
    best, seconds, exact = _fastest_precision(wide, precision, trial)
    if threads > 1:
        narrow = replace(best, workers=threads, threads=1)
        found = trial(narrow)
        # Of near equals the workers: threads of one operator wait for each other on shared cores.
        if found <= 1.05 * seconds:
            exact *= found / seconds
            best, seconds = narrow, found
    images = CPU_IMAGES * threads
    return Choice(best, images / seconds, images / exact)


def _on(backbone: Backbone, device: str, precision: str) -> Choice:
    compute = Compute(device, micro_batch=DEVICE_MICRO_BATCH)
    trial = partial(_seconds, backbone, images=DEVICE_MICRO_BATCH)
    best, seconds, exact = _fastest_precision(compute, precision, trial)
    return Choice(best, DEVICE_MICRO_BATCH / seconds, DEVICE_MICRO_BATCH / exact)


def _fastest_precision(
    compute: Compute, precision: str, trial: partial[float]
) -> tuple[Compute, float, float]:
    """Return what is fastest, its seconds, and those of the precision that was tried first."""
    names = PRECISIONS[1:] if precision == "auto" else (precision,)
    if precision == "auto" and compute.device == "cpu" and not _multiplies_bfloat16():
        names = names[:1]
    found = [(each, trial(each)) for each in (replace(compute, precision=name) for name in names)]
    best, seconds = found[0]
    for other, took in found[1:]:
        if took < CLEARLY * seconds:
            best, seconds = other, took
    return best, seconds, found[0][1]


def _multiplies_bfloat16() -> bool:
    """Whether this CPU may multiply bfloat16 faster than float32: one product shows it.

    A CPU without such units emulates them, and a trial of the whole backbone took 27 times as long
    as in float32.
    """
    exact = product_seconds(torch.float32)
    return product_seconds(torch.bfloat16) < EMULATED * exact


def product_seconds(dtype: torch.dtype) -> float:
    """Shortest time for one matrix product of the size that an image of a ViT-S needs."""
    rows, weights = torch.ones(64, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    times = []
    for _ in range(1 + PRODUCTS):
        began = time.perf_counter()
        rows @ weights
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _seconds(backbone: Backbone, compute: Compute, images: int) -> float:
    """Shortest of a few trials to run images forward and back; the first one only warms up."""
    backbone = backbone.with_compute(compute)
    size = backbone.image_size
    pixels = np.zeros((images, size, size, 3), np.uint8)
    prompt = torch.zeros(backbone.depth, PROMPT_TOKENS, backbone.embed_dim)
    slope = torch.ones(images, backbone.feature_dim)
    times = []
    for _ in range(1 + TRIALS):
        began = time.perf_counter()
        Linearized(backbone, pixel_inputs(backbone, pixels), images, prompt).pull(slope)
        times.append(time.perf_counter() - began)
    return min(times[1:])
