"""Every family against llama.cpp's logits, on its tiny models in ../shared/golden/families.

What may differ is said there for each model: llama.cpp's GELU looks its values up in half precision, and where weights
are quantized it rounds activations. Ten times that, and at least 1e-6, is allowed; elsewhere we are far nearer.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from conftest import ISAS, SHARED

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.state.batch import BatchStates
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import Backend, open_backend
from mixkv.models.batch import Batch
from mixkv.models.gguf import open_gguf
from mixkv.models.registry import architectures, load_model

FOLDER = SHARED / "golden" / "families"
NAMES = sorted(path.stem for path in FOLDER.glob("*.gguf")) or ["none"]
NOISE = {
    "gemma2": 7e-8, "starcoder2": 7e-8, "phi2": 7e-8, "gemma3": 4e-7, "gemma3-scaled": 4e-7, "gemma4": 4e-7,
    "gemma4-moe": 4e-7, "gemma3-27b": 1e-6, "gemma3n": 2e-5, "gpt-oss-mxfp4": 1e-4,
}  # fmt: skip
"""NMSE of exact arithmetic against the golden, where that is more than 1e-10."""
FIRST, CHUNK = 31, 150
"""Tokens of the first piece of a prompt, and of those after it: windows begin and end within pieces."""
F32_CACHE = KVCacheConfig(type_k="f32", type_v="f32")


def logits_in_pieces(path: Path, ids: list[int], backend: Backend, *, exact: bool) -> np.ndarray:
    """Logits (n, n_vocab) after each of the tokens, which go in by pieces."""
    with open_gguf(path) as gguf:
        model = load_model(gguf, backend, n_ctx=max(512, len(ids)), exact=exact)
    plan = CachePlan.of(F32_CACHE, model.config.layers)
    cache = KVCache(model.config, plan, backend, n_ctx=max(512, len(ids)), chunk=CHUNK)
    out = []
    for start, stop in pairwise([0, *range(FIRST, len(ids), CHUNK), len(ids)]):
        piece = ids[start:stop]
        batch = Batch.of([(piece, cache.begin(len(piece)), len(piece))])
        out.append(model.forward(batch, BatchStates([cache], batch.runs)))
        cache.commit()
    return np.concatenate(out)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"reference data not found at {FOLDER}")
@pytest.mark.parametrize("isa", [*ISAS, "numpy"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_llama_cpp(name: str, isa: str) -> None:
    """A family's rule that is wrong anywhere shows here by orders of magnitude."""
    golden = np.load(FOLDER / f"{name}.npz")
    ids, rows, wanted = (golden[f"{name}.{part}"] for part in ("ids", "rows", "logits"))
    if isa == "numpy" and len(ids) > 1000:
        pytest.skip("8,200 tokens take NumPy too long")
    backend = open_backend(2, kind="reference") if isa == "numpy" else open_backend(2, kind="native", isa=isa)
    got = logits_in_pieces(FOLDER / f"{name}.gguf", ids.tolist(), backend, exact=True)
    assert nmse(got[rows], wanted.astype(np.float64)) <= max(1e-6, 10 * NOISE.get(name, 0.0))


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"reference data not found at {FOLDER}")
def test_every_golden_is_of_a_family_that_is_there() -> None:
    """A golden whose architecture were not supported would be an error above, not a pass."""
    found = set()
    for name in NAMES:
        with open_gguf(FOLDER / f"{name}.gguf") as gguf:
            found.add(gguf.str("general.architecture"))
    assert found <= set(architectures())
