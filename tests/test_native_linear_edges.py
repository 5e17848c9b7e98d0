"""The native linear kernels at the edges: extreme, missing and wrong arguments, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize
from native_tools import native_backend

from mixkv.kernels.errors import ConfigError, GGUFError, InputError
from mixkv.kernels.parts import Norm

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")


def test_silu_at_the_ends(backend: Any) -> None:
    """gate values of +-1e4: silu is the identity or zero, and nothing overflows into NaN."""
    eye = np.eye(32, dtype=np.float32)
    w = backend.pack(eye.view(np.uint8), int(T.F32), 32)
    ffn = backend.NormFFN(norm=Norm(np.full(32, 1e4, np.float32), 0.0), gate=w, up=w, down=w)
    x = np.where(np.arange(32) % 2, 1, -1).astype(np.float32)[None]
    np.testing.assert_allclose(ffn(x, x), np.where(x > 0, 1e8 + 1, -1), rtol=1e-6)


def test_nan_and_infinity_are_not_hidden(backend: Any) -> None:
    """A NaN in one token reaches that token's results and no other's."""
    rng = np.random.default_rng()
    w = backend.pack(quantize(rng.standard_normal((32, 64), np.float32), T.Q4_0), int(T.Q4_0), 64)
    x = rng.standard_normal((3, 64), np.float32)
    x[1, 40] = np.nan
    y = backend.linear(x, w)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
    x[1, 40] = np.inf
    assert not np.isfinite(backend.linear(x, w)[1]).any()


def test_no_tokens(backend: Any) -> None:
    """Empty batches give empty results (they divided by zero once)."""
    w = backend.pack(np.zeros((32, 34), np.uint8), int(T.Q8_0), 32)
    none = np.zeros((0, 32), np.float32)
    assert backend.linear(none, w).shape == (0, 32)
    assert backend.embed(w, np.zeros(0, np.int32)).shape == (0, 32)
    assert backend.NormFFN(norm=None, gate=w, up=w, down=w)(none, none).shape == (0, 32)
    assert backend.norm(none, Norm(None, 1e-5)).shape == (0, 32)
    assert [y.shape for y in backend.NormLinear(norm=None, weights=[w])(none)] == [(0, 32)]
    assert backend.Project(w=w, out_norm=Norm(None, 1e-5))(none, None, none).shape == (0, 32)
    assert backend.Head(norm=None, w=w, softcap=1.0)(none).shape == (0, 32)
    qkv = backend.NormQKV(norm=None, wq=w, wk=None, wv=None, n_heads=1, n_kv_heads=1, head_dim=32)
    assert qkv(none, np.zeros(0, np.int64))[0].shape == (0, 1, 32)


def test_user_mistakes_are_typed() -> None:
    backend: Any = native_backend()
    raw = np.zeros((4, 36), np.uint8)
    with pytest.raises(GGUFError, match="type 999"):
        backend.pack(raw, 999, 64)
    with pytest.raises(GGUFError, match="Q4_0 weight of 4 x 65"):
        backend.pack(raw, int(T.Q4_0), 65)
    w = backend.pack(raw, int(T.Q4_0), 64)
    with pytest.raises(InputError, match="x has size 63"):
        backend.linear(np.zeros((1, 63), np.float32), w)
    with pytest.raises(InputError, match="token id 4"):
        backend.embed(w, np.array([4], np.int32))
    with pytest.raises(ConfigError, match="choose one of"):
        native_backend(isa="sse9")
    with pytest.raises(TypeError):
        backend.linear(np.zeros((1, 64), np.float64), w)
