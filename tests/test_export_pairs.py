"""int8 files give the same logits where pairs of products saturate: shown by emulating it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from saturating import INT16, int8_weights, pair_sums, run_exactly, run_without_vnni
from saturating import saturating_product as saturating
from small_vits import make_bundle, randomize
from timm.models.vision_transformer import VisionTransformer

from hgprompt_edge.backbones.backbone import wrap_backbone
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.int8 import schemes
from hgprompt_edge.export.int8.pairs import quantize_in_pairs
from hgprompt_edge.export.int8.schemes import onnx_schemes
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine

DEPTH = 4  # so that there are blocks between the outer ones
NAMES = [scheme.name for scheme in onnx_schemes(DEPTH)]
ROUNDING = 0.03  # of these small models' logits, between runtimes that compute the same sums
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 4))
FLOATS = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
MATRICES = SIDES.flatmap(lambda shape: arrays(np.float32, shape, elements=FLOATS))
Floats = npt.NDArray[np.float32]


@given(MATRICES, st.data())
def test_no_activation_saturates_a_pair(matrix: Floats, data: st.DataObject) -> None:
    quantized, _ = quantize_in_pairs(matrix)
    # 0 and 255 are the worst, and hypothesis shrinks towards the first.
    values = st.integers(0, 255) | st.just(255)
    activations = data.draw(arrays(np.uint8, (2, len(matrix)), elements=values))
    exact = activations.astype(np.int64) @ quantized.astype(np.int64)
    assert (saturating(activations, quantized) == exact).all()


@given(MATRICES)
def test_weights_keep_all_the_resolution_that_this_leaves(matrix: Floats) -> None:
    quantized, scale = quantize_in_pairs(matrix)
    assert np.abs(quantized * scale.astype(np.float64) - matrix).max() <= 0.5001 * scale.max()
    for column in range(matrix.shape[1]):
        worst = 0.0
        for row in range(0, len(matrix), 2):
            pair = [float(w) for w in matrix[row : row + 2, column]]
            worst = max(worst, sum(w for w in pair if w > 0), -sum(w for w in pair if w < 0))
        assert scale[column] == pytest.approx(worst / 127 if worst else 1, rel=1e-5)


def written(folder: Path, name: str) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A tiny model in an int8 scheme, and images that calibration has not seen."""
    size = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
    model = VisionTransformer(num_classes=0, depth=DEPTH, **size)
    backbone = wrap_backbone("four blocks", randomize(model, seed=0))
    bundle = make_bundle(backbone)
    scheme = next(scheme for scheme in onnx_schemes(DEPTH) if scheme.name == name)
    ir.save(build_graph(bundle, backbone, Rewrites()), folder / "float.onnx")
    images = np.random.default_rng(1).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    scheme.write(folder / "float.onnx", images[:32], folder / "int8.onnx")
    return folder / "int8.onnx", images[32:]


def difference(found: Floats, wanted: Floats) -> float:
    return float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_gives_its_logits_on_every_cpu(tmp_path: Path, name: str) -> None:
    path, images = written(tmp_path, name)
    weights = int8_weights(path)
    assert weights, "nothing is quantized"
    for array in weights.values():
        # The worst activations of each column: 255 where its weights have one sign, else 0.
        sums = [pair_sums(255 * (column > 0), column[:, None]) for column in array.T]
        sums += [pair_sums(255 * (column < 0), column[:, None]) for column in array.T]
        assert min(map(np.min, sums)) >= INT16.min
        assert max(map(np.max, sums)) <= INT16.max
        assert max(np.abs(found).max() for found in sums) > 0.9 * INT16.max, "range is left unused"
    emulated = run_without_vnni(path, images)
    assert (emulated == run_exactly(path, images)).all()
    assert difference(OnnxEngine(path).run(images), emulated) < ROUNDING


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_full_range_do_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime's quantizer writes them: the check above can fail."""
    monkeypatch.setattr(schemes, "bound_pairs", lambda *_: None)
    path, images = written(tmp_path, name)
    assert difference(run_without_vnni(path, images), run_exactly(path, images)) > ROUNDING


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("depth", [63, 64, 384])
def test_this_cpu_multiplies_in_one_of_the_two_ways(rows: int, depth: int) -> None:
    """One product, so that no rounding of other operators hides a difference."""
    rng = np.random.default_rng(0)
    activations = rng.integers(0, 256, (rows, depth), dtype=np.uint8)
    weights = rng.integers(-127, 128, (depth, 33), dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["activations", "weights"], ["product"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, activations.shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"activations": activations})
    exact = pair_sums(activations, weights).sum(-2)
    saturated = saturating(activations, weights)
    assert (exact != saturated).any()
    assert (found == exact).all() or (found == saturated).all()
