"""What the engine asks of a model, whatever its family."""

from __future__ import annotations

from typing import Protocol

from mixkv.kernels import Backend
from mixkv.models.batch import F32, Batch, States
from mixkv.models.config import ModelConfig


class Model(Protocol):
    """A loaded model: weights packed, nothing more to read from its file."""

    config: ModelConfig
    backend: Backend
    """What it computes with, and what its caches must be made of."""
    fingerprint: str
    """Of everything that changes logits or token ids (fingerprint.py)."""

    def forward(self, batch: Batch, states: States) -> F32:
        """Logits (n_rows, n_vocab) of the batch's rows."""
