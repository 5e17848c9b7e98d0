"""Queries and keys drawn from weights: what the model does to them, done to the samples, or the plan judges others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_forward import spec_of
from gguf_tools import write_gguf
from tiny_models import QKV, Tiny

from mixkv.engine.kv_plan import score_loss
from mixkv.kernels import LayerFormat, default_backend
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import TOKENS, HeadSample, HeadStatistics

STEP = 10
BIASED = Tiny("llama", n_layers=1, n_ctx=STEP * TOKENS, biases=QKV, rope={"freq_base": 500.0})


def sample_of(path: Path) -> HeadSample:
    with open_gguf(path) as gguf:
        sample = HeadStatistics(gguf, default_backend()).sample(0)
    assert sample is not None
    return sample


@pytest.mark.parametrize("tiny", [BIASED, replace(BIASED, arch="qwen2"), replace(BIASED, freq_factors=True)],
                         ids=["pairs", "halves", "freq_factors"])  # fmt: skip
def test_samples_turn_as_the_family_turns(tmp_path: Path, tiny: Tiny) -> None:
    """Turned in the wrong pairs, large biases fall into other blocks of 32 than in the cache. Without weights a key is
    its bias, turned by its position and nothing else."""
    tensors = tiny.tensors()
    for name in ("attn_q", "attn_k"):
        shape = tiny.shapes()[f"blk.0.{name}.weight"]
        tensors[f"blk.0.{name}.weight"] = np.zeros(shape, np.float32)
    path = write_gguf(tmp_path / "model.gguf", tiny.metadata(), tensors)
    sample, layer = sample_of(path), spec_of(path).layers[0]
    turned = replace(layer.rotation, freq=layer.rotation.freq * STEP)
    bias = np.asarray(layer.k.bias).reshape(1, tiny.n_kv_heads, tiny.head_dim)
    np.testing.assert_allclose(sample.k, turned(np.repeat(bias, TOKENS, axis=0)), atol=1e-4)
    np.testing.assert_array_equal(sample.k, sample.other_k)


def test_samples_are_normed_where_heads_are(tmp_path: Path) -> None:
    """QK norm leaves nothing of a projection's size: keys taken without it look louder, or quieter, than they are."""
    tiny = Tiny("qwen3", n_layers=1, qk_norm=True)
    tensors = tiny.tensors()
    for name, gain in (("attn_q_norm", 2.0), ("attn_k_norm", 3.0)):
        tensors[f"blk.0.{name}.weight"] = np.full(tiny.head_dim, gain, np.float32)
    sample = sample_of(write_gguf(tmp_path / "model.gguf", tiny.metadata(), tensors))
    for rows, gain in ((sample.q, 2.0), (sample.k, 3.0), (sample.other_k, 3.0)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2), gain * tiny.head_dim**0.5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_an_error_that_all_keys_share_costs_nothing(kind: str) -> None:
    """Softmax takes out what is the same for every key of a query, so a block that is equal in all of them loses
    nothing, however loud it is: counted, it made the plan spend bits for nothing."""
    rng = np.random.default_rng(0)
    q, k, other = rng.standard_normal((3, TOKENS, 2, 64)).astype(np.float32)
    for rows in (k, other):
        rows[..., :32] = 0
    quiet = HeadSample(q, k, other, 0.0, 1.0)
    loud_k, loud_other = k.copy(), other.copy()
    loud_k[..., :32] = loud_other[..., :32] = 50 * rng.standard_normal(32)
    loud = HeadSample(q, loud_k, loud_other, 0.0, 1.0)
    layer = LayerFormat(kind, "q4_0", hot_k="f32")
    assert score_loss(loud, layer, 0.125) == pytest.approx(score_loss(quiet, layer, 0.125), rel=1e-3)
