"""Open a model file in the runtime that it is for.

Each runtime is imported where a model needs it: the other's takes 20 MB of memory and more.
"""

from __future__ import annotations

from pathlib import Path

from hgprompt_edge.artifacts.bundle_file import SUFFIX
from hgprompt_edge.artifacts.external_weights import check_beside, check_external_data
from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.paths import check_storable, why_not
from hgprompt_edge.runtime.engines.engine import Engine, LoadError


def open_engine(
    path: Path, threads: int | None = None, *, device: str = "CPU", bf16: bool | None = None
) -> Engine:
    """Open a model file in the runtime that its name stands for: `.xml` OpenVINO, else onnxruntime.

    Parameters
    ----------
    threads
        CPU threads of one run; None: as many as this process may use.
    device, bf16
        For OpenVINO: what to run on, and whether to compute in bfloat16, see `OpenVinoEngine`.

    Raises
    ------
    UserError
        No such file, the runtime is not installed or does not load it, or an ONNX file with
        options for OpenVINO, or with weights outside its folder.
    """
    if not path.is_file():
        raise FileError(path, f"{why_not(path, 'model file')}; make it with `hgedge export`")
    if path.suffix == SUFFIX:
        raise FileError(
            path,
            "a bundle, not a model; run `hgedge export` on it and name the file that this writes",
        )
    check_storable(str(path), "the model")  # runtimes take UTF-8 alone
    try:
        if path.suffix == ".xml":
            from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(path, threads, device=device, bf16=bf16)
        if device != "CPU" or bf16:
            raise ParameterError(
                "bf16" if bf16 else "device",
                bf16 or device,
                f"{path} is an ONNX model, which runs on the CPU in float32; export it again for "
                "OpenVINO",
            )
        from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine

        facts = check_external_data(path)
        check_beside(path, facts)
        return OnnxEngine(path, threads, facts)
    except LoadError as error:
        raise FileError(path, f"{error}") from error
