"""Descent of one prompt: AdamW, its schedule, the running average, and the state file.

What `PromptTrainer` and `ConditionTrainer` have in common; each brings its loss and its epochs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hgprompt_edge.training.resume import load_state, save_state


class Pace(Protocol):
    """What a recipe says of the descent.

    AdamW without weight decay at `learning_rate` at most, cosine schedule after a `warmup` (a share
    of all steps); `average` is the decay of the running average of the prompt.
    """

    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def average(self) -> float: ...  # noqa: D102


class Descent(ABC):
    """A prompt `[L, T, D]` on its way, its running average, and the best of these so far.

    Parameters
    ----------
    start
        Tokens to start from, `[L, T, D]` float32.
    state
        File for resuming; None: none is kept.
    """

    def __init__(self, pace: Pace, start: Tensor, state: Path | None) -> None:
        self.pace, self.start, self.state_path = pace, start, state
        self.prompt = nn.Parameter(start.clone())
        self.averaged = start.clone()
        self.optimizer = torch.optim.AdamW(
            [self.prompt], lr=pace.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.best, self.best_epoch = start.clone(), 0
        self.history: list[dict[str, float]] = []
        self.epoch, self.step = 0, 0

    def learning_rate(self, total: int) -> float:
        """Rate of the next of so many steps in all: up to the pace's, then down by a cosine."""
        warm = min(1.0, (self.step + 1) / max(1.0, self.pace.warmup * total))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / total)))
        return self.pace.learning_rate * warm * cosine

    def take_step(self, gradient: Tensor, total: int) -> None:
        """Go against the gradient `[L, T, D]`, one of so many steps in all."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(total)
        self.prompt.grad = gradient.to(self.prompt.dtype)
        self.optimizer.step()
        self.step += 1
        decay = min(self.pace.average, (self.step + 1) / (self.step + 10))
        self.averaged.lerp_(self.prompt.detach(), 1 - decay)

    def note(self, row: dict[str, float], by: str) -> None:
        """Append to the history; the averaged prompt is the best where none was lower `by` this."""
        self.history.append(row)
        if row[by] <= min(past[by] for past in self.history):
            self.best, self.best_epoch = self.averaged.clone(), self.epoch

    @abstractmethod
    def _of(self) -> dict[str, Any]:
        """Return what a state file must be of to be resumed: recipe, backbone, images."""

    def _anchors(self) -> dict[str, Tensor]:
        """Return the tensors that must be the same for that."""
        return {"start": self.start}

    def _save_state(self) -> None:
        state = {
            "of": self._of(),
            **self._anchors(),
            "prompt": self.prompt.detach(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "epoch": self.epoch,
            "step": self.step,
        }
        save_state(self.state_path, state)

    def _load_state(self) -> bool:
        """Take over a state file of the same recipe, backbone, images and start, or no other."""
        state = load_state(self.state_path)
        if state is None or state.get("of") != self._of():
            return False
        if not all(torch.equal(state[name], mine) for name, mine in self._anchors().items()):
            return False
        with torch.no_grad():
            self.prompt.copy_(state["prompt"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged, self.best = state["averaged"], state["best"]
        self.best_epoch, self.history = state["best_epoch"], state["history"]
        self.epoch, self.step = state["epoch"], state["step"]
        return True
