"""Every weight type in a whole model, against the float64 forward pass on what the gguf package reads from the file.

Weights are random blocks of the type, of the size that trained ones have, so that logits are ordinary numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from float_forward import logits
from model_tools import logits_of
from tiny_models import Tiny

from mixkv.kernels import default_backend
from mixkv.kernels.ggml import WeightType
from mixkv.models.gguf import open_gguf
from mixkv.models.gguf_types import WEIGHT_TYPES
from mixkv.models.registry import load_model

IDS = np.random.default_rng(3).integers(0, 97, 40).tolist()
F32_CACHE = {"type_k": "f32", "type_v": "f32"}
NO_ORACLE = {WeightType.F64, WeightType.Q1_0}
"""What the gguf package cannot read; test_gguf_tensors.py does."""


@pytest.mark.parametrize("kind", sorted(WEIGHT_TYPES - NO_ORACLE), ids=lambda t: t.name)
def test_models_of_every_weight_type(tmp_path: Path, kind: WeightType) -> None:
    """Types that pack and multiply were still refused by the loader."""
    tiny = Tiny(n_layers=1, n_embd=256, n_heads=4, n_kv_heads=2, head_dim=64, head_dim_v=64, n_ff=256, kind=kind.name)
    path = tiny.write(tmp_path / "m.gguf")
    wanted = logits(path, IDS)
    assert 0.01 < np.abs(wanted).max() < 1e4
    exact = load_model(open_gguf(path), default_backend(), exact=True, dense=True)
    assert nmse(logits_of(exact, IDS, [1, 20], **F32_CACHE), wanted) < 1e-10
    rounded = load_model(open_gguf(path), default_backend())
    assert nmse(logits_of(rounded, IDS, [1, 20], **F32_CACHE), wanted) < 1e-2
