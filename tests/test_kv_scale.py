"""The unbiased scale of Q4_0: valid bytes, plain Q4_0's codes, the product with the block itself exact, the same bits
from both backends; and nearer to an FP16 cache than the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from prose import PROSE

from mixkv.engine.evaluate import PerplexityRun, TextWindows, load_subject, parse_variants
from mixkv.kernels import LayerFormat, open_backend
from mixkv.kernels.errors import ConfigError
from mixkv.kernels.formats import decode, encode

F32 = NDArray[np.float32]
SPECIAL = {
    "zeros": np.zeros(32),
    "one-value": np.array([0.0] * 31 + [2.5]),
    "subnormal": np.arange(32) * 1e-41,
    "squares-underflow": np.arange(-16, 16) * 1e-25,
    "squares-overflow": np.arange(-16, 16) * 1e25,
    "scale-is-a-subnormal-float16": np.arange(-16, 16) * 1e-6,
    "scale-just-overflows-float16": np.array([-8 * 65519.0, *[8 * 40000.0] * 31]),
    "scale-overflows-float16": np.arange(-16, 16) * 1e5,
    "infinity": np.array([np.inf] + [1.0] * 31),
    "nan": np.array([1.0] * 31 + [np.nan]),
}


def scales(data: NDArray[np.uint8]) -> NDArray[np.float16]:
    """d of each block of Q4_0 bytes (..., row_bytes)."""
    return np.ascontiguousarray(data.reshape(-1, 18)[:, :2]).view(np.float16)[:, 0]


@settings(max_examples=200)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([8, 32, 48])),
               elements=st.floats(-1e4, 1e4, width=32)),
)  # fmt: skip
def test_codes_are_those_of_plain_q4_0(x: F32) -> None:
    plain, unbiased = encode(x, "q4_0").reshape(-1, 18), encode(x, "q4_0", "unbiased").reshape(-1, 18)
    np.testing.assert_array_equal(unbiased[:, 2:], plain[:, 2:])
    assert np.isfinite(scales(unbiased)).all()


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4])
def test_the_product_with_the_block_itself_is_right(size: float) -> None:
    """Up to the rounding of d to FP16, half a unit in the last of 11 bits; plain Q4_0 is off by up to 5 %."""
    x = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32) * np.float32(size)

    def off(scale: str) -> F32:
        rounded = decode(encode(x, "q4_0", scale), "q4_0", 32)
        return np.abs((x.astype(np.float64) * rounded).sum(1) / (x.astype(np.float64) ** 2).sum(1) - 1)

    assert off("unbiased").max() < 2.0**-11 * 1.001
    assert off("plain").max() > 0.02


@pytest.mark.parametrize("case", SPECIAL)
def test_where_there_is_no_such_scale_the_plain_one_stays(case: str) -> None:
    x = SPECIAL[case].astype(np.float32)[None]
    plain, unbiased = encode(x, "q4_0"), encode(x, "q4_0", "unbiased")
    np.testing.assert_array_equal(unbiased[:, 2:], plain[:, 2:])
    if not np.isfinite(scales(unbiased))[0]:
        np.testing.assert_array_equal(unbiased, plain)
    assert np.isfinite(scales(unbiased))[0] or not np.isfinite(scales(plain))[0]


def test_other_types_do_not_know_it_and_another_rule_is_an_error() -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    for kind in ("f32", "f16", "q8_0"):
        np.testing.assert_array_equal(encode(x, kind, "unbiased"), encode(x, kind))
    with pytest.raises(ConfigError, match="q4_scale 'best' must be one of plain, unbiased"):
        encode(x, "q4_0", "best")
    with pytest.raises(ConfigError, match="q4_scale"):
        LayerFormat(q4_scale="best")


def cold_rows(store: Any, k: F32) -> tuple[NDArray[np.uint8], ...]:
    """k (16 n, 1, head_dim) as keys, and backwards as values, through a store: its cold bytes of both."""
    store.write(0, k, np.ascontiguousarray(k[..., ::-1]), 0)
    store.quantize(0, 0, len(k))
    cold: tuple[NDArray[np.uint8], ...] = store.get_cold(0, 0, len(k))
    return cold


def shape(n: int, head_dim: int) -> dict[str, int]:
    return {"n_kv_heads": 1, "head_dim_k": head_dim, "head_dim_v": head_dim, "n_ctx": n, "sink_tokens": 0,
            "hot_tiles": n // 16}  # fmt: skip


@pytest.mark.parametrize("scale", ["plain", "unbiased"])
@pytest.mark.parametrize("head_dim", [8, 32, 64, 80])
def test_the_store_writes_cold_rows_by_its_layers_rule(head_dim: int, scale: str) -> None:
    k = np.random.default_rng(head_dim).standard_normal((32, 1, head_dim)).astype(np.float32)
    layers = [LayerFormat(hot_k="f32", hot_v="f32", q4_scale=scale)]
    got_k, got_v = cold_rows(open_backend(2, kind="reference").KVStore(layers, **shape(32, head_dim)), k)
    np.testing.assert_array_equal(got_k, encode(k, "q4_0", scale))
    np.testing.assert_array_equal(got_v, encode(k[..., ::-1], "q4_0", scale))


@pytest.mark.parametrize("hot", ["f32", "f16"])
@pytest.mark.parametrize("head_dim", [8, 32, 48, 64, 80, 128])
def test_native_and_numpy_agree_to_the_bit(head_dim: int, hot: str) -> None:
    pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")
    rng = np.random.default_rng(head_dim)
    k = rng.standard_normal((320, 1, head_dim)).astype(np.float32)
    k *= np.exp(4 * rng.standard_normal((320, 1, 1))).astype(np.float32)
    for i, block in enumerate(SPECIAL.values()):
        k[i, 0, : min(head_dim, 32)] = block[:head_dim]
    layers = [LayerFormat(hot_k=hot, hot_v=hot, q4_scale="unbiased")]
    wanted = cold_rows(open_backend(2, kind="reference").KVStore(layers, **shape(320, head_dim)), k)
    got = cold_rows(open_backend(2, kind="native").KVStore(layers, **shape(320, head_dim)), k)
    for rows, expected in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(rows, expected)


def test_it_brings_the_demo_model_nearer_to_fp16(tmp_path: Path) -> None:
    """The quantizer alone, without window and sinks. Over a novel KL divergence falls by a quarter."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    llm = load_subject(None, n_ctx=256, n_batch=256, n_threads=2, exact=True)
    run = PerplexityRun(
        llm,
        TextWindows.of(path, llm.tokenizer, 256, 2),
        parse_variants("mixed:hot=0,sink=0,scale=plain,mixed:hot=0,sink=0"),
    )
    plain, unbiased = (row.quality.kld_mean for row in run.run())
    assert unbiased < 0.9 * plain
