"""Mix visual prompts for a frozen ViT, fold them into one model, run it on the edge.

The names below load their modules, and PyTorch with them, only when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
    from hgprompt_edge.backbones.compute import Compute
    from hgprompt_edge.backbones.fastest import choose_compute
    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.data import load_task
    from hgprompt_edge.errors import CheckError, UserError
    from hgprompt_edge.export.onnx_file import export_onnx
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.prompts.bank import PromptBank, read_bank
    from hgprompt_edge.prompts.prompt import Prompt, read_prompt, write_prompt
    from hgprompt_edge.runtime.classifier import Classification, Classifier, load
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.training.source_prompt import train_source
    from hgprompt_edge.training.tune import tune

_HOMES = {
    "Bundle": "artifacts.bundle",
    "CheckError": "errors",
    "Classification": "runtime.classifier",
    "Classifier": "runtime.classifier",
    "Compute": "backbones.compute",
    "HGPrompt": "fit.estimator",
    "Predictor": "runtime.predictor",
    "Prompt": "prompts.prompt",
    "PromptBank": "prompts.bank",
    "UserError": "errors",
    "choose_compute": "backbones.fastest",
    "export_onnx": "export.onnx_file",
    "load": "runtime.classifier",
    "load_backbone": "backbones.load",
    "load_task": "data",
    "read_bank": "prompts.bank",
    "read_bundle": "artifacts.bundle_file",
    "read_prompt": "prompts.prompt",
    "train_source": "training.source_prompt",
    "tune": "training.tune",
    "write_bundle": "artifacts.bundle_file",
    "write_prompt": "prompts.prompt",
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
