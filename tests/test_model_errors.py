"""Model files from strangers, past the point where they are good GGUF: each case is one typed line, cheap, and final.

Every case starts from a complete small llama and damages one thing. `refusal` (gguf_tools) checks that the error is
of the right type, in one line, within a second and 64 MiB, and that no file or map is left open.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf_tools import Packed, gguf_bytes, refusal, tiny_llama, write_gguf

import mixkv
from mixkv.kernels.errors import GGUFError, MixkvError, OutOfMemoryError, TokenizerError

Model = tuple[dict[str, Any], dict[str, Any]]
NAN, INF = np.float32(np.nan), np.float32(np.inf)


def with_key(key: str, value: object) -> Callable[[Model], None]:
    def damage(model: Model) -> None:
        model[0][key] = value

    return damage


def with_keys(**values: object) -> Callable[[Model], None]:
    """Keys `llama.rope.scaling.*`."""

    def damage(model: Model) -> None:
        model[0].update({f"llama.rope.scaling.{key}": value for key, value in values.items()})

    return damage


def without_keys(*keys: str) -> Callable[[Model], None]:
    def damage(model: Model) -> None:
        for key in keys:
            del model[0][key]

    return damage


def with_tensor(name: str, tensor: object) -> Callable[[Model], None]:
    def damage(model: Model) -> None:
        model[1][name] = tensor

    return damage


def vocabulary_of(change: int) -> Callable[[Model], None]:
    """As many tokens more (or fewer) than the embedding has rows."""

    def damage(model: Model) -> None:
        meta = model[0]
        for name in ("tokens", "scores", "token_type"):
            values = meta[f"tokenizer.ggml.{name}"]
            extra = [f"new{i}" for i in range(change)] if name == "tokens" else [1] * change
            longer = [*values, *extra] if change > 0 else values[:change]
            meta[f"tokenizer.ggml.{name}"] = longer if name == "tokens" else np.array(longer, values.dtype)

    return damage


CASES: dict[str, tuple[Callable[[Model], None], str]] = {
    "no-architecture": (without_keys("general.architecture"), "general.architecture"),
    "unknown-architecture": (with_key("general.architecture", "mamba"), "'mamba' is not supported: llama, "),
    "architecture-of-another-file": (with_key("general.architecture", "qwen2"), "qwen2.block_count"),
    "block_count-0": (with_key("llama.block_count", 0), "block_count is 0"),
    "block_count-2^31": (with_key("llama.block_count", 2**31), "block_count is 2147483648"),
    "block_count-513": (with_key("llama.block_count", 513), "block_count is 513"),
    "block_count-one-too-many": (with_key("llama.block_count", 3), "'blk.2.attn_norm.weight' is missing"),
    "block_count-one-too-few": (with_key("llama.block_count", 1), "is not part of a model"),
    "block_count-text": (with_key("llama.block_count", "two"), "block_count"),
    "no-block_count": (without_keys("llama.block_count"), "block_count"),
    "head_count-0": (with_key("llama.attention.head_count", 0), "head_count is 0"),
    "head_count_kv-0": (with_key("llama.attention.head_count_kv", 0), "head_count_kv is 0"),
    "head_count_kv-3": (with_key("llama.attention.head_count_kv", 3), "not a multiple of head_count_kv 3"),
    "head_count_kv-2^32-1": (with_key("llama.attention.head_count_kv", 2**32 - 1), "head_count_kv is 4294967295"),
    "head_counts-differ": (
        with_key("llama.attention.head_count", np.array([4, 2], np.uint32)), "differs from layer to layer"
    ),
    "head_counts-empty": (with_key("llama.attention.head_count", np.array([], np.uint32)), "head_count"),
    "heads-more-than-dims": (with_key("llama.attention.head_count", 64), "64"),
    "head_dim-0": (with_key("llama.attention.key_length", 0), "key_length is 0"),
    "head_dim-2^20": (with_key("llama.attention.key_length", 1 << 20), "key_length is 1048576"),
    "head_dim-16": (with_key("llama.attention.key_length", 16), "attn_q.weight"),
    "head_dim_v-0": (with_key("llama.attention.value_length", 0), "value_length is 0"),
    "head_dim_v-16": (with_key("llama.attention.value_length", 16), "attn_v.weight"),
    "embedding_length-0": (with_key("llama.embedding_length", 0), "embedding_length is 0"),
    "embedding_length-wrong": (with_key("llama.embedding_length", 64), "token_embd.weight"),
    "ffn-wrong": (with_key("llama.feed_forward_length", 65), "ffn_gate.weight"),
    "context_length-0": (with_key("llama.context_length", 0), "context_length is 0"),
    "rope-larger-than-head_dim": (with_key("llama.rope.dimension_count", 10), "dimension_count is 10"),
    "rope-odd": (with_key("llama.rope.dimension_count", 7), "dimension_count is 7"),
    "freq_base-nan": (with_key("llama.rope.freq_base", NAN), "freq_base' is nan"),
    "freq_base-inf": (with_key("llama.rope.freq_base", INF), "freq_base' is inf"),
    "freq_base-0": (with_key("llama.rope.freq_base", 0.0), "freq_base is 0"),
    "freq_base-negative": (with_key("llama.rope.freq_base", -10000.0), "freq_base is -10000"),
    "scaling-unknown": (with_keys(type="magic"), "'magic' is not supported"),
    "scaling-factor-negative": (with_keys(type="linear", factor=-4.0), "factor is -4"),
    "scaling-factor-nan": (with_keys(factor=NAN), "factor' is nan"),
    "yarn-base-1": (
        lambda model: model[0].update({"llama.rope.freq_base": 1.0, "llama.rope.scaling.type": "yarn"}), "freq_base"
    ),
    "yarn-beta-nan": (with_keys(type="yarn", factor=4.0, yarn_beta_fast=NAN), "beta_fast' is nan"),
    "eps-nan": (with_key("llama.attention.layer_norm_rms_epsilon", NAN), "epsilon' is nan"),
    "eps-negative": (with_key("llama.attention.layer_norm_rms_epsilon", -1.0), "epsilon is -1"),
    "experts": (with_key("llama.expert_count", 8), "expert_used_count"),
    "surplus-tensor": (with_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)), "'blk.0.attn_sinks.weight' is"),
    "surplus-layer": (with_tensor("blk.9.attn_norm.weight", np.zeros(32, np.float32)), "blk.9.attn_norm.weight"),
    "norm-too-short": (with_tensor("blk.1.ffn_norm.weight", np.ones(31, np.float32)), r"\(31,\)"),
    "matrix-transposed": (with_tensor("blk.0.ffn_up.weight", np.zeros((32, 64), np.float32)), r"\(32, 64\)"),
    "matrix-flat": (with_tensor("blk.0.ffn_up.weight", np.zeros(2048, np.float32)), r"\(2048,\)"),
    "matrix-empty": (with_tensor("blk.0.ffn_up.weight", np.zeros((0, 32), np.float32)), r"\(0, 32\)"),
    "embedding-flat": (with_tensor("token_embd.weight", np.zeros(8832, np.float32)), "token_embd.weight"),
    "output-of-another-vocabulary": (with_tensor("output.weight", np.zeros((100, 32), np.float32)), "output.weight"),
    "integer-weights": (
        with_tensor("blk.0.attn_q.weight", Packed((32, 32), GGMLQuantizationType.I32, bytes(4096))), "I32"
    ),
    "rope_freqs-wrong": (with_tensor("rope_freqs.weight", np.ones(3, np.float32)), "rope_freqs.weight"),
    "no-tokens": (without_keys("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
    "vocabulary-shorter": (vocabulary_of(-5), "271 tokens"),
    "vocabulary-longer": (vocabulary_of(5), "281 tokens"),
}  # fmt: skip
TOKENIZERS: dict[str, tuple[Callable[[Model], None], str]] = {
    "unknown-tokenizer": (with_key("tokenizer.ggml.model", "t5"), "t5"),
    "scores-of-another-length": (with_key("tokenizer.ggml.scores", np.zeros(3, np.float32)), "scores"),
    "same-token-twice": (lambda model: model[0]["tokenizer.ggml.tokens"].__setitem__(260, "he"), "'he' twice"),
}


def model_bytes(damage: Callable[[Model], None]) -> bytes:
    model: Model = tiny_llama()
    damage(model)
    return gguf_bytes(*model)


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_model_is_one_clear_error(tmp_path: Path, case: str) -> None:
    damage, words = CASES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(model_bytes(damage))
    message = refusal(GGUFError, lambda: mixkv.load(path))
    assert str(path) in message
    assert re.search(words, message), message


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_damaged_vocabulary_is_one_clear_error(tmp_path: Path, case: str) -> None:
    damage, words = TOKENIZERS[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(model_bytes(damage))
    assert words in refusal(TokenizerError, lambda: mixkv.load(path))


@pytest.mark.parametrize("name", sorted(set(tiny_llama()[1]) - {"output.weight"}))
def test_every_tensor_is_needed(tmp_path: Path, name: str) -> None:
    meta, tensors = tiny_llama()
    del tensors[name]
    path = write_gguf(tmp_path / "bad.gguf", meta, tensors)
    assert repr(name) in refusal(GGUFError, lambda: mixkv.load(path))


def test_without_an_output_matrix_the_embedding_is_it(tmp_path: Path) -> None:
    """Tied embeddings: the one tensor that may be missing."""
    meta, tensors = tiny_llama()
    tensors["output.weight"] = tensors["token_embd.weight"]
    untied = mixkv.load(write_gguf(tmp_path / "untied.gguf", meta, tensors)).logits([5, 6, 7])
    del tensors["output.weight"]
    tied = mixkv.load(write_gguf(tmp_path / "tied.gguf", meta, tensors)).logits([5, 6, 7])
    np.testing.assert_array_equal(tied, untied)


HARMLESS: dict[str, Callable[[Model], None]] = {
    "no-name": without_keys("general.name"),
    "no-rope-keys": without_keys("llama.rope.dimension_count", "llama.rope.freq_base"),
    "rope-of-no-dimension": with_key("llama.rope.dimension_count", 0),
    "rope-of-some-dimensions": with_key("llama.rope.dimension_count", 4),
    "heads-by-layer-all-equal": with_key("llama.attention.head_count_kv", np.array([2, 2], np.uint32)),
    "linear-scaling-by-0": with_keys(type="linear", factor=0.0),
    "linear-scaling": with_keys(type="linear", factor=4.0),
    "yarn-original-context-0": with_keys(type="yarn", factor=4.0, original_context_length=0),
    "yarn-scaling": with_keys(type="yarn", factor=4.0, original_context_length=32),
    "huge-freq_base": with_key("llama.rope.freq_base", 1e9),
    "tiny-freq_base": with_key("llama.rope.freq_base", 1e-30),
    "eps-0": with_key("llama.attention.layer_norm_rms_epsilon", 0.0),
    "half-precision-matrix": lambda model: model[1].update(
        {"blk.0.attn_q.weight": model[1]["blk.0.attn_q.weight"].astype(np.float16)}
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_must_load_loads(tmp_path: Path, case: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(model_bytes(HARMLESS[case]))
    assert np.isfinite(mixkv.load(path, n_threads=1).logits([5, 6, 7, 8])).all()


def test_a_plan_over_the_machines_memory_names_its_numbers_and_the_flag(tmp_path: Path) -> None:
    """Better one line now than the kernel's OOM killer later."""
    path = write_gguf(tmp_path / "tiny.gguf", *tiny_llama())
    message = refusal(OutOfMemoryError, lambda: mixkv.load(path, n_ctx=2**31))
    cache_mib = 2**31 * 2 * 2 * 2 * 8 * 2 >> 20  # positions, layers, K and V, KV heads, head_dim, bytes
    for words in ("weights 0 MiB", f"cache {cache_mib} MiB", "scratch ", "n_ctx", "mixed_kv_cache"):
        assert words in message
    plan = mixkv.load(path, n_ctx=2**16)  # lazily: 128 MiB are reserved, not touched
    assert plan.n_ctx == 2**16


def test_a_context_too_large_to_train_for_is_cut_to_what_fits(tmp_path: Path) -> None:
    """Without -c the model's own length is used, or as much of it as memory has."""
    meta, tensors = tiny_llama()
    meta["llama.context_length"] = 2**31
    llm = mixkv.load(write_gguf(tmp_path / "long.gguf", meta, tensors), mixed_kv_cache=True)
    assert 4096 <= llm.n_ctx < 2**31
    assert len(llm.generate([5], max_tokens=1, ignore_eos=True).tokens) == 1


def test_a_failed_load_changes_nothing_elsewhere(tmp_path: Path) -> None:
    """Other models' logits are bit-identical before and after every failure."""
    llm = mixkv.load(write_gguf(tmp_path / "good.gguf", *tiny_llama()), n_threads=1, mixed_kv_cache=True)
    before = llm.logits([5, 6, 7] * 20)
    path = tmp_path / "bad.gguf"
    for damage, _ in CASES.values():
        path.write_bytes(model_bytes(damage))
        with pytest.raises(MixkvError):
            mixkv.load(path)
    with pytest.raises(MixkvError):
        mixkv.load(tmp_path / "good.gguf", n_ctx=2**31)
    np.testing.assert_array_equal(llm.logits([5, 6, 7] * 20), before)
