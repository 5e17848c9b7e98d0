"""The mixed cache under a real forward pass: what it computes must depend on positions alone, and it must be honest.

The model is a small random llama whose attention is sharp enough that a wrong key shows; one case repeats the main
property on the demo model. Bound for "the same up to float re-association": prompts cut differently are computed with
differently shaped matrix products, whose last bits may flip a rounding of the cache here and there. Quantization
moves every number of a cold row by up to half a step, d / 2 (variance d^2 / 12). A flip moves a number by d, and
happens to less than one in 10^5 of them: NMSE of 12e-5 times what quantization does to the logits. SAME allows for
twenty times that; a single tile read in the wrong form by some queries gives 1e-1 to 1e-2. Q8_0's steps are 16
times finer than Q4_0's, so that a float16 flip of a block's largest number re-rounds the whole block: SAME_Q8.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tools import F32, load_exact, logits_of, random_ids, random_llama, sequence

import mixkv
from mixkv.engine.load import demo_model
from mixkv.kernels.formats import decode, encode
from mixkv.kernels.numeric import hadamard
from mixkv.models.decoder import Decoder

SAME, SAME_Q8 = 2e-3, 5e-2
N = 150
MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 16}  # tiles turn cold at 63, 79, ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_exact(random_llama(tmp_path_factory.mktemp("model") / "llama.gguf"))


@pytest.fixture(scope="module")
def ids(model: Decoder) -> list[int]:
    return random_ids(model, N)


@pytest.fixture(scope="module")
def exact(model: Decoder, ids: list[int]) -> F32:
    return logits_of(model, ids, type_k="f32", type_v="f32")


@pytest.fixture(scope="module")
def one_by_one(model: Decoder, ids: list[int]) -> F32:
    return logits_of(model, ids, range(1, N), **MIXED)


@pytest.fixture(scope="module")
def same(exact: F32, one_by_one: F32) -> float:
    """The bound of the head comment for this model's mixed cache; its quantization must show at all."""
    effect = nmse(one_by_one, exact)
    assert 1e-3 < effect < 0.1
    return SAME * effect


@settings(max_examples=12)
@given(st.lists(st.integers(1, 70), max_size=8), st.integers(1, 128))
def test_any_split_of_the_prompt_gives_the_logits_of_one_by_one_decoding(
    model: Decoder, ids: list[int], one_by_one: F32, same: float, lengths: list[int], piece: int
) -> None:
    """Other quantized caches compute a prompt in FP16 or quantize it whole: answers depend on batch sizes."""
    cuts = [cut for cut in accumulate(lengths) if cut < N]
    assert nmse(logits_of(model, ids, cuts, piece=piece, **MIXED), one_by_one) <= same


@pytest.mark.parametrize("cuts", [(), (63,), (64,), (62,), (79, 80), (16,), (15, 17), (149,), (32, 48, 64, 80, 96)])
def test_splits_at_the_edges_of_tiles_and_window(
    model: Decoder, ids: list[int], one_by_one: F32, same: float, cuts: tuple[int, ...]
) -> None:
    assert nmse(logits_of(model, ids, cuts, **MIXED), one_by_one) <= same


@pytest.mark.parametrize("n_batch", [1, 7, 32, 512])
def test_n_batch_does_not_change_the_logits(
    model: Decoder, ids: list[int], one_by_one: F32, same: float, n_batch: int
) -> None:
    assert nmse(logits_of(model, ids, n_batch=n_batch, **MIXED), one_by_one) <= same


@pytest.mark.parametrize(
    "config",
    [
        {"mixed_kv_cache": True, "hot_window": 0, "sink_tokens": 0},
        {"mixed_kv_cache": True, "hot_window": 1, "sink_tokens": 4},
        {"mixed_kv_cache": True, "hot_window": 17, "sink_tokens": 0, "rollback_reserve": 8},
        {"mixed_kv_cache": True, "hot_window": 32, "type_k": "q8_0", "type_v": "q4_0", "rotate": "on"},
        {"mixed_kv_cache": True, "hot_window": 32, "type_k": "f16"},
        {"type_k": "q8_0", "type_v": "q8_0"},
        {"type_k": "q4_0", "type_v": "q4_0"},
        {"type_k": "f16", "type_v": "q4_0"},
    ],
)
def test_every_kind_of_cache_is_independent_of_the_split(
    model: Decoder, ids: list[int], exact: F32, config: dict[str, Any]
) -> None:
    """Without a window a tile used to be quantized one step before its last token was there."""
    wanted = logits_of(model, ids, range(1, N), **config)
    bound = (SAME_Q8 if config.get("type_v") == "q8_0" else SAME) * nmse(wanted, exact)
    for cuts, piece in (((), None), ((), 16), ((), 33), ((15, 31, 32, 80), 5), (range(7, N, 7), None)):
        assert nmse(logits_of(model, ids, cuts, piece=piece, **config), wanted) <= bound


def test_the_demo_model_is_independent_of_the_split() -> None:
    """Trained weights and real text, in case random ones hide something."""
    model = load_exact(demo_model())
    text = "The old house stood at the end of the lane, and nobody had lived there for twenty years. " * 5
    ids = mixkv.load(n_threads=1).tokenize(text)[:72]
    config: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 4}
    wanted, plain = logits_of(model, ids, range(1, len(ids)), **config), logits_of(model, ids)
    effect = nmse(wanted, plain)
    assert effect > 1e-7
    for cuts in ((), (35, 36, 52)):
        assert nmse(logits_of(model, ids, cuts, **config), wanted) <= SAME * effect


def test_an_f16_cold_type_equals_a_plain_fp16_cache_bit_for_bit(model: Decoder, ids: list[int]) -> None:
    """Migration to a type that loses nothing must lose nothing."""
    for kind in ("f16", "f32"):
        plain = logits_of(model, ids, (40, 41), type_k=kind, type_v=kind)
        mixed = logits_of(model, ids, (40, 41), mixed_kv_cache=True, hot_window=32, type_k=kind, type_v=kind)
        np.testing.assert_array_equal(mixed, plain)


def test_layers_that_migrate_to_f16_lose_nothing(model: Decoder, ids: list[int]) -> None:
    """Cold and hot rows of one layer in f16, beside a layer that is quantized: stored bits equal, order of sums not."""
    keep = {"type_k": "f16", "type_v": "f16", "rotate": "off"}
    seq = sequence(model, **MIXED, per_layer={0: keep})
    plain = sequence(model)
    for s in (seq, plain):
        s.feed(ids)
    stop = seq.cache.states[0].policy.marks.quant_end
    assert stop > 16
    for cold, hot in zip(
        seq.cache.states[0].store.get_cold(0, 16, stop), plain.cache.states[0].store.get_hot(0, 16, stop), strict=True
    ):
        np.testing.assert_array_equal(cold.view(np.float16), hot)


def test_a_window_longer_than_the_text_is_a_plain_fp16_cache(model: Decoder, ids: list[int]) -> None:
    """Nothing turns cold: what remains is the order of sums, and with rotation the rounding to float16 elsewhere."""
    plain = logits_of(model, ids)
    wide: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": N}
    assert nmse(logits_of(model, ids, **wide, rotate="off"), plain) <= 1e-6
    assert nmse(logits_of(model, ids, **wide, rotate="on"), plain) <= 1e-5


def test_a_window_as_wide_as_the_context_is_a_plain_fp16_cache_bit_for_bit(model: Decoder, ids: list[int]) -> None:
    """Nothing can ever turn cold, so there is nothing to rotate for and no sink to keep apart."""
    plain = logits_of(model, ids, (40, 41), n_ctx=N)
    mixed = logits_of(model, ids, (40, 41), n_ctx=N, mixed_kv_cache=True, hot_window=N)
    np.testing.assert_array_equal(mixed, plain)


def test_rotation_changes_float_caches_by_rounding_only(model: Decoder, ids: list[int], exact: F32) -> None:
    """Rotated keys, queries and outputs must use one matrix; f32 shows it to seven digits, f16 to three."""
    assert nmse(logits_of(model, ids, type_k="f32", type_v="f32", rotate="on"), exact) <= 1e-9
    assert nmse(logits_of(model, ids, rotate="on"), logits_of(model, ids, rotate="off")) <= 1e-5


def test_rotation_helps_keys_with_outliers() -> None:
    """What it is for: one loud channel takes the scale of its block, and rotation spreads it."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((64, 2, 64)).astype(np.float32)
    k[..., 5] *= 30
    plain = decode(encode(k, "q4_0"), "q4_0", 64)
    rotated = hadamard(decode(encode(hadamard(k), "q4_0"), "q4_0", 64))
    others = [c for c in range(64) if c != 5]
    assert nmse(rotated[..., others], k[..., others]) < 0.5 * nmse(plain[..., others], k[..., others])
    np.testing.assert_allclose(hadamard(hadamard(k)), k, atol=1e-4)


UNIFORM = {"f32": 0.0, "f16": 1e-5, "q8_0": 2e-3, "q4_0": 0.2}


def test_uniform_caches_lose_as_much_as_their_types_do(model: Decoder, ids: list[int], exact: F32) -> None:
    """The same machinery with other settings; each type costs more than the one before it."""
    errors = [nmse(logits_of(model, ids, type_k=kind, type_v=kind), exact) for kind in UNIFORM]
    assert errors == sorted(errors)
    assert all(error <= bound for error, bound in zip(errors, UNIFORM.values(), strict=True)), errors


@pytest.mark.parametrize("head_dim", [8, 48, 80, 112])
def test_head_dims_that_32_does_not_divide_run_quantized(tmp_path: Path, head_dim: int) -> None:
    """llama.cpp refuses these; the padding of the last block must never reach a score."""
    model = load_exact(random_llama(tmp_path / "odd.gguf", head_dim=head_dim, seed=head_dim))
    ids = random_ids(model, 100, seed=head_dim)
    exact = logits_of(model, ids, type_k="f32", type_v="f32")
    mixed = logits_of(model, ids, **MIXED)
    effect = nmse(mixed, exact)
    assert 1e-4 < effect < 0.1
    assert nmse(logits_of(model, ids, (30, 66, 67), **MIXED), mixed) <= SAME * effect
