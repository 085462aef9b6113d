"""Compile a model for OpenVINO; a device folder's without the mask where its task needs none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any

from hgprompt_edge.runtime.engines.openvino_cache import own_copy

MASKED = ".scores.masked"
"""End of the names of the sums that add the mask to the scores of attention."""
REQUESTS = 2
"""So that one thread brings its images while another's are computed. More are no faster, as all of
them compute in the same threads."""


@dataclass(frozen=True)
class Compiler:
    """How a model's files become what runs.

    Attributes
    ----------
    cache
        Folder that keeps what was compiled, or None.
    """

    core: Any
    path: Path
    weights: Path
    device: str
    settings: dict[str, Any]
    cache: Path | None

    def requests(self, *, masked: bool = True) -> LifoQueue[Any]:
        """Compile the model and return requests that are free.

        Without the mask the attention of OpenVINO is faster, and right only where the mask is zero.

        Raises
        ------
        RuntimeError
            OpenVINO does not compile it.
        """
        source: Any = self.path
        # Given the path and not the model, a compiled one is read without the weights of both in
        # memory at once.
        if not masked or self.weights != self.path.with_suffix(".bin"):
            source = self.core.read_model(self.path, self.weights)
        if not masked:
            _drop_mask(source)
        compiled = None
        if self.cache is not None:
            # Whatever is wrong with the cache is not the model's fault.
            with suppress(RuntimeError, OSError), own_copy(self.cache) as own:
                self.core.set_property({"CACHE_DIR": str(own)})
                compiled = self.core.compile_model(source, self.device, self.settings)
            self.core.set_property({"CACHE_DIR": ""})
        if compiled is None:
            compiled = self.core.compile_model(source, self.device, self.settings)
        found: LifoQueue[Any] = LifoQueue()
        for _ in range(REQUESTS):
            found.put(compiled.create_infer_request())
        return found


def _drop_mask(model: Any) -> None:
    """Take the scores for their sums with the mask, which stays an input that nothing reads."""
    for node in model.get_ops():
        if node.get_friendly_name().endswith(MASKED):
            node.output(0).replace(node.input_value(0))
    model.validate_nodes_and_infer_types()
