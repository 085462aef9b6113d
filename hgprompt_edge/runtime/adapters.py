"""Tasks of a device folder as adapter files of ONNX Runtime, for programs without hgedge.

Adapters can only replace inputs that have a default. `adapters.onnx` is the graph of the folder
with defaults, on the same weights. All defaults are NaN: a run without an adapter, or with a part
of one, gives NaN and not another task's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hgprompt_edge.artifacts.tasks.device_files import BackboneFacts, task_paths
from hgprompt_edge.artifacts.tasks.task_tensors import BIAS, HEAD, KEYS, MASK, VALUES
from hgprompt_edge.errors import CheckError, FileError, UserError
from hgprompt_edge.files import atomic_path
from hgprompt_edge.maths.parity import TOLERANCES, compare
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.engines.onnx_session import open_session
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.state.history import Version

GRAPH, SUFFIX = "adapters.onnx", ".onnx_adapter"
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW, FLOAT = 1, 2, 8, 9, 1
"""Numbers of the fields in ONNX's messages, and of its float32."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """A file that was written, and the learned version in it; None: the task as exported."""

    path: Path
    version: Version | None


def write_adapters(folder: Path) -> tuple[list[Adapter], dict[str, UserError]]:
    """Write `adapters.onnx`, and `NAME.onnx_adapter` for each task at the weights in force.

    Each is run in onnxruntime and compared with the task before it gets its name.

    Returns
    -------
    What was written, and why not for the tasks that are broken or have learned what no adapter can
    hold.

    Raises
    ------
    UserError
        The folder is for OpenVINO, holds no task, or none of its tasks can be an adapter.
    CheckError
        An adapter gives something else than its task.
    """
    device = _opened(folder)
    found = device.device_folder
    if found is None or found.graph.suffix != ".onnx":
        raise FileError(
            folder, "adapters are of ONNX Runtime; export the folder in the format `onnx`"
        )
    tasks: list[tuple[Predictor, Mapping[str, Floats]]] = []
    failed: dict[str, UserError] = {}
    for name in device.tasks:
        try:
            task = device.task(name)
            tasks.append((task, task.tensors_in_force()))
        except UserError as error:
            failed[name] = error
    if not tasks:
        raise next(iter(failed.values()))
    written = []
    with atomic_path(folder / GRAPH) as graph:
        graph.write_bytes(found.graph.read_bytes() + _defaults(tasks[0][1]))
        session = open_session(graph)
        for task, given in tasks:
            name = task.metadata.task
            with atomic_path(folder / f"{name}{SUFFIX}") as path:
                _write(path, given)
                _check(session, path, task, found.facts)
            written.append(Adapter(folder / f"{name}{SUFFIX}", task.version))
    return written, failed


def _opened(folder: Path) -> Predictor:
    """Open a device folder at the first task that is whole."""
    for path in task_paths(folder).values():
        with suppress(UserError):
            return Predictor(path)
    return Predictor(folder)


def old_adapters(folder: Path, task: str | None = None) -> list[Path]:
    """Return adapter files that a change makes wrong: of one task, or those of all."""
    if task is not None:
        paths = [folder / f"{task}{SUFFIX}"]
    else:
        paths = [folder / GRAPH, *sorted(folder.glob(f"*{SUFFIX}"))]
    return [path for path in paths if path.is_file()]


def _write(path: Path, tensors: Mapping[str, Floats]) -> None:
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(
        {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in tensors.items()
        }
    )
    adapter.export_adapter(str(path))


def _check(
    session: ort.InferenceSession, path: Path, task: Predictor, facts: BackboneFacts
) -> None:
    """Run an adapter on the task's own images, as a plain program does."""
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(path))
    options.add_active_adapter(adapter)
    images, _ = task.metadata.probe()
    given = np.concatenate(
        [session.run(["logits"], {"image": image[None]}, options)[0] for image in images]
    )
    wanted = np.concatenate([task.logits(image[None]) for image in images])
    wanted = log_softmax(wanted).astype(np.float32)
    checked = compare(given, wanted, TOLERANCES[facts.precision])
    if not checked.ok:
        raise CheckError(f"{path.name}: does not compute what its task does ({checked})")


def _defaults(tensors: Mapping[str, Floats]) -> bytes:
    """Return what, behind a graph's own bytes, gives each input of a task a default of NaN.

    Protobuf messages that follow each other are one message, and so are their parts.
    """
    shapes = {name: list(array.shape) for name, array in tensors.items()}
    for name, axes in ((KEYS, (1, 2)), (VALUES, (1, 2)), (MASK, (0, 1)), (HEAD, (0, 2))):
        for axis in axes:  # the smallest: one prompt, one token, one class
            shapes[name][axis] = 1
    shapes[BIAS] = [1, 1]
    parts = [
        _field(GRAPH_INITIALIZER, _tensor(name, np.full(shape, np.nan, "<f4")))
        for name, shape in shapes.items()
    ]
    return _field(MODEL_GRAPH, b"".join(parts))


def _tensor(name: str, array: Floats) -> bytes:
    """Encode a float32 tensor as ONNX's TensorProto."""
    numbers = [(TENSOR_DIMS, size) for size in array.shape] + [(TENSOR_TYPE, FLOAT)]
    head = b"".join(_varint(field << 3) + _varint(number) for field, number in numbers)
    return head + _field(TENSOR_NAME, name.encode()) + _field(TENSOR_RAW, array.tobytes())


def _field(number: int, data: bytes) -> bytes:
    """Encode a field of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])
