"""What to adapt to: images of named classes, split into train, validation and test.

Importing this package costs nothing; `load_task` imports what the task at hand needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgprompt_edge.data.load import FoundTask, find_task, load_task
    from hgprompt_edge.data.task import Images, Task, images_beyond

__all__ = ["FoundTask", "Images", "Task", "find_task", "images_beyond", "load_task"]

_HOMES = {
    "FoundTask": "load",
    "Images": "task",
    "Task": "task",
    "find_task": "load",
    "images_beyond": "task",
    "load_task": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
