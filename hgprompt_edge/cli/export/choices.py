"""What `hgedge export` can write."""

from __future__ import annotations

from enum import Enum


class Format(str, Enum):
    """File formats of exported models."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(str, Enum):
    """Precisions of exported models."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Weights(str, Enum):
    """Where the mixing weights are."""

    FOLDED = "folded"
    RUNTIME = "runtime"


SUFFIXES = {Format.ONNX: ".onnx", Format.OPENVINO: ".xml"}
