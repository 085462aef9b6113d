"""A model in OpenVINO: IR, two files, `NAME.xml` with the graph and `NAME.bin` with the weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import LifoQueue
from threading import Lock
from typing import Any, cast

from hgprompt_edge.artifacts.ir_weights import ir_weights, wanted_weights
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.tasks.task_tensors import MASK, NAMES
from hgprompt_edge.cores import fewer_cores
from hgprompt_edge.errors import FileError, MissingPackageError, ParameterError, brief
from hgprompt_edge.files import sha256_file
from hgprompt_edge.runtime.cpu import cpu_features
from hgprompt_edge.runtime.engines.engine import (
    Floats,
    LoadError,
    Pixels,
    Port,
    check_given,
    memory_errors,
)
from hgprompt_edge.runtime.engines.openvino_cache import compiled_folder
from hgprompt_edge.runtime.engines.openvino_compile import Compiler

SUFFIX = ".xml"
RT_INFO = "hgprompt"
"""Under this name the metadata stand in the model's runtime information."""
WEIGHTS_SHA256 = f"{PREFIX}weights_sha256"
BF16 = f"{PREFIX}bf16"
TYPES = {"uint8_t": "uint8", "u8": "uint8", "float": "float", "f32": "float"}


class OpenVinoEngine:
    """A model in OpenVINO, on a device that it knows.

    Parameters
    ----------
    threads
        CPU threads of one run; None: as many as this process may use.
    device
        `CPU`, `GPU`, `AUTO`, ...
    bf16
        Compute in bfloat16, which is twice as fast on some CPUs and slower than float32 on others.
        None: what an int8 model leaves in float, on CPUs with AMX, if its accuracy was held so.
    cache
        Keep what the device compiled, so that the next process starts faster, where the cache's
        folder can be written.

    Raises
    ------
    LoadError
        A file is missing, damaged, or not of this model.
    UserError
        OpenVINO is not installed, or this machine has no such device.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        *,
        device: str = "CPU",
        bf16: bool | None = None,
        cache: bool = True,
    ) -> None:
        ov = import_openvino()
        core = ov.Core()
        _check_device(core, device, bool(bf16))
        weights = ir_weights(path)
        if not weights.is_file():
            raise LoadError(
                f"needs {wanted_weights(path)} beside it, which is missing; copy both files"
            )
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        threads = fewer_cores() if threads is None else threads
        if threads is not None and device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path, weights)
            self.entries: Mapping[str, str] = read_entries(model)
            self.inputs = tuple(_port(given) for given in model.inputs)
            self.outputs = tuple(_port(given) for given in model.outputs)
            if bf16 is None:
                held = self.entries.get(BF16) == "true"
                bf16 = held and device == "CPU" and "amx_bf16" in cpu_features()
            # Said here, since the runtime's own default is bfloat16 wherever a CPU knows it.
            precision = "bf16" if bf16 else "f32"
            settings["INFERENCE_PRECISION_HINT"] = precision
            digest = _check_weights(weights, self.entries)
            folder = compiled_folder(path, digest, precision) if cache else None
            del model
            self._compiler = Compiler(core, path, weights, device, settings, folder)
            self._compiling = Lock()
            self._requests: dict[bool, LifoQueue[Any]] = {}
            # A device folder's is compiled when it is known what its tasks need.
            self._takes_task = {port.name for port in self.inputs[1:]} == set(NAMES)
            if not self._takes_task:
                self._requests[True] = self._compiler.requests()
        except UnicodeDecodeError as error:
            raise LoadError("damaged (its text is not UTF-8); copy or export it again") from error
        except RuntimeError as error:
            raise LoadError(_explain(str(error))) from error
        self.as_exported = device == "CPU" and not bf16
        self.runtime = _runtime()

    def run(self, pixels: Pixels, given: Mapping[str, Floats] | None = None) -> Floats:
        """Logits `[n, K]` of pixels `[n, S, S, 3]`, and of what else is `given` by name."""
        return self.run_all(pixels, given)[0]

    def run_all(
        self, pixels: Pixels, given: Mapping[str, Floats] | None = None
    ) -> tuple[Floats, ...]:
        """All outputs, the logits first."""
        check_given(self.inputs, given or {})
        requests = self._free(given or {})
        request = requests.get()  # waits for one that is free: a busy one mixes up results
        try:
            with memory_errors():
                request.infer({self.inputs[0].name: pixels, **(given or {})}, share_inputs=True)
            return tuple(
                request.get_output_tensor(index).data.copy() for index in range(len(self.outputs))
            )
        finally:
            requests.put(request)

    def _free(self, given: Mapping[str, Floats]) -> LifoQueue[Any]:
        """Return requests of the model as it is or, where nothing is masked, without its mask."""
        masked = not self._takes_task or bool(given[MASK].any())
        with self._compiling:
            if masked not in self._requests:
                try:
                    self._requests[masked] = self._compiler.requests(masked=masked)
                except RuntimeError as error:
                    raise FileError(self._compiler.path, _explain(str(error))) from error
            return self._requests[masked]


def _runtime() -> str:
    """Name and version of OpenVINO."""
    return f"openvino {import_openvino().__version__.partition('-')[0]}"


def import_openvino() -> Any:
    """Return the module `openvino`, or say where it comes from.

    OpenVINO's converter and NNCF report to their makers that they are used, and leave an identity
    in the home folder, unless the package that does so is missing: it is hidden from them.
    """
    if find_spec("openvino") is None:
        raise MissingPackageError("an OpenVINO model", "openvino", "openvino")
    modules = cast(dict[str, Any], sys.modules)
    modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def computes_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU, fast or slow."""
    return _has_bf16(import_openvino().Core())


def read_entries(model: Any) -> dict[str, str]:
    """Metadata of a model as `Metadata` reads them, empty where it has none."""
    if not model.has_rt_info([RT_INFO]):
        return {}
    return {
        f"{PREFIX}{name}": str(value) for name, value in model.get_rt_info([RT_INFO]).value.items()
    }


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _check_device(core: Any, device: str, bf16: bool) -> None:
    known = [name.partition(".")[0] for name in core.available_devices]
    if device != "AUTO" and device not in known:
        raise ParameterError(
            "device",
            device,
            f"OpenVINO finds none here; choose one of {', '.join(dict.fromkeys([*known, 'AUTO']))}",
        )
    if bf16 and not _has_bf16(core):
        raise ParameterError(
            "bf16", None, "this CPU does not compute in bfloat16; leave the option out"
        )


def _check_weights(weights: Path, entries: Mapping[str, str]) -> str:
    """Sha256 of the weights; another model's are refused, one without our metadata takes any."""
    wanted, found = entries.get(WEIGHTS_SHA256), sha256_file(weights)
    if wanted is not None and found != wanted:
        raise LoadError(f"{weights.name} is damaged or of another model; copy both files again")
    return found


def _explain(message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip()]
    reason = brief(lines[-1], 200) if lines else "no reason given"
    return f"{_runtime()} does not load it ({reason}); export it again"


def _port(given: Any) -> Port:
    dtype = given.element_type.get_type_name()
    sizes = list(given.partial_shape)[1:]
    shape = tuple(None if size.is_dynamic else size.get_length() for size in sizes)
    return Port(given.any_name, TYPES.get(dtype, dtype), shape)
