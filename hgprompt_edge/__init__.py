"""Mix visual prompts for a frozen ViT, fold them into one model, run it on the edge.

The names below load their modules, and PyTorch with them, only when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgprompt_edge.bundle import Bundle, read_bundle, write_bundle
    from hgprompt_edge.device.classifier import Classification, Classifier, load
    from hgprompt_edge.device.predictor import Predictor
    from hgprompt_edge.errors import CheckError, UserError
    from hgprompt_edge.export.onnx_file import export_onnx
    from hgprompt_edge.prompts import Prompt, PromptBank, read_bank, read_prompt, write_prompt
    from hgprompt_edge.tasks import load_task
    from hgprompt_edge.transfer.fit import HGPrompt
    from hgprompt_edge.transfer.source import train_source
    from hgprompt_edge.transfer.tune import tune
    from hgprompt_edge.vit.compute import Compute
    from hgprompt_edge.vit.fastest import choose_compute
    from hgprompt_edge.vit.load import load_backbone

_HOMES = {
    "Bundle": "bundle",
    "CheckError": "errors",
    "Classification": "device.classifier",
    "Classifier": "device.classifier",
    "Compute": "vit.compute",
    "HGPrompt": "transfer.fit",
    "Predictor": "device.predictor",
    "Prompt": "prompts",
    "PromptBank": "prompts",
    "UserError": "errors",
    "choose_compute": "vit.fastest",
    "export_onnx": "export.onnx_file",
    "load": "device.classifier",
    "load_backbone": "vit.load",
    "load_task": "tasks",
    "read_bank": "prompts",
    "read_bundle": "bundle",
    "read_prompt": "prompts",
    "train_source": "transfer.source",
    "tune": "transfer.tune",
    "write_bundle": "bundle",
    "write_prompt": "prompts",
}

__all__ = [
    "Bundle",
    "CheckError",
    "Classification",
    "Classifier",
    "Compute",
    "HGPrompt",
    "Predictor",
    "Prompt",
    "PromptBank",
    "UserError",
    "choose_compute",
    "export_onnx",
    "load",
    "load_backbone",
    "load_task",
    "read_bank",
    "read_bundle",
    "read_prompt",
    "train_source",
    "tune",
    "write_bundle",
    "write_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hgprompt_edge' has no attribute '{name}'")
    return getattr(import_module(f"hgprompt_edge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
