"""What only one of the two twins was asked: NumPy's cache in float64, the state that native attention hands out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import exact_attention, nmse
from native_tools import Run

from mixkv.kernels import open_backend
from mixkv.kernels.formats import LayerFormat

REFERENCE = open_backend(1, kind="reference")


@pytest.mark.parametrize("fmt", [LayerFormat("f16", "f16"), LayerFormat("q4_0", "q8_0", rotate_k=True, rotate_v=True)],
                         ids=["f16", "cold"])  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"window": 19}, {"softcap": 3.0}, {"max_bias": 8.0},
     {"softcap": 3.0, "max_bias": 8.0, "window": 25}],
    ids=str,
)  # fmt: skip
def test_the_cache_of_numpy_is_right_with_every_option(fmt: LayerFormat, options: dict[str, float]) -> None:
    """A sliding window one key too wide in the readable twin was seen by no test: only native code was asked."""
    run = Run(REFERENCE.KVStore, fmt, n=90, window=20, options=options)
    store = run.store()
    assert nmse(run.outputs(store, 13), run.exact(store)) <= 1e-10


@pytest.mark.parametrize("n_queries", [1, 9])
def test_a_state_holds_the_true_maximum(isa: str, n_queries: int) -> None:
    """Attention that ends here may work with a smaller m than the largest score; a state is merged with others, and
    shown, so its m is what the contract says, also where scores rise from key to key by too little to overflow."""
    backend: Any = open_backend(2, kind="native", isa=isa)
    n_keys, head_dim = 600, 32
    rng = np.random.default_rng(0)
    q = np.ones((n_queries, 2, head_dim), np.float32)
    rise = np.linspace(-1, 4, n_keys)[:, None, None] + 0.1 * rng.standard_normal((n_keys, 2, head_dim))
    k, v = rise.astype(np.float32) / head_dim, rng.standard_normal((n_keys, 2, head_dim)).astype(np.float32)
    m = np.full((n_queries, 2), -np.inf, np.float32)
    s, acc = np.zeros_like(m), np.zeros((n_queries, 2, head_dim), np.float32)
    m, s, acc = backend.attend_segment(q, k, v, None, m, s, acc, 1.0)
    out, lse = exact_attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(m, np.tile(k.sum(axis=2).max(axis=0), (n_queries, 1)), atol=1e-4)
    np.testing.assert_allclose(m + np.log(s), lse, atol=1e-4)
    assert nmse(acc / s[..., None], out) <= 1e-6
