"""How one head's row of K or V is written in the cache: float32, float16, Q8_0, Q4_0.

The code that knows a format stands here alone (the native twin is csrc/kv_*). A row is `head_dim` numbers of one
token and one KV head. Quantized rows are GGML blocks of 32 along head_dim, each an FP16 scale `d` and its codes; a
head_dim that 32 does not divide is padded with zeros, which quantize to exact zeros and are cut off again on the way
out. Bytes are bit for bit those of GGML (kv-cache.md section 4), except that `unbiased` Q4_0 has its own `d`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import ConfigError

TILE = 16
"""Positions that migrate together, and keys that a native tile holds."""

BLOCK = 32
"""Numbers that share one scale in the quantized formats."""

Q4_SCALES = ("plain", "unbiased")
"""How Q4_0 finds a block's scale: see `encode`."""

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class CacheType:
    """One storage format of cache rows.

    bits: bits per number, scales included; scale_bytes: bytes of scales per block of 32 (0 for float formats).
    """

    name: str
    block_bytes: int
    scale_bytes: int

    @property
    def bits(self) -> float:
        return self.block_bytes * 8 / BLOCK

    @property
    def is_float(self) -> bool:
        return self.scale_bytes == 0

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of one row; quantized rows are padded to whole blocks."""
        if self.is_float:
            return head_dim * self.block_bytes // BLOCK
        return -(-head_dim // BLOCK) * self.block_bytes

    def row_scale_bytes(self, head_dim: int) -> int:
        """How many of `row_bytes` are scales."""
        return -(-head_dim // BLOCK) * self.scale_bytes


CACHE_TYPES = {
    t.name: t
    for t in (
        CacheType("f32", 128, 0),
        CacheType("f16", 64, 0),
        CacheType("q8_0", 34, 2),
        CacheType("q4_0", 18, 2),
    )
}


def cache_type(name: str) -> CacheType:
    """The format called `name`; ConfigError names the ones there are."""
    try:
        return CACHE_TYPES[name]
    except (KeyError, TypeError):
        raise ConfigError(f"unknown cache type {name!r}: use one of {', '.join(CACHE_TYPES)}") from None


@dataclass(frozen=True)
class LayerFormat:
    """How one layer's cache is written: cold and hot types of K and V, whether each lives in rotated space, and which
    rule gives the scales of those that are Q4_0."""

    type_k: str = "q4_0"
    type_v: str = "q4_0"
    hot_k: str = "f16"
    hot_v: str = "f16"
    rotate_k: bool = False
    rotate_v: bool = False
    q4_scale: str = "plain"

    def __post_init__(self) -> None:
        for name in (self.type_k, self.type_v):
            cache_type(name)
        for name in (self.hot_k, self.hot_v):
            if not cache_type(name).is_float:
                raise ConfigError(f"hot cache type {name!r} is quantized: use f16 or f32")
        check_q4_scale(self.q4_scale)


def check_q4_scale(scale: str) -> None:
    """ConfigError unless `scale` names a rule for Q4_0's scales."""
    if scale not in Q4_SCALES:
        raise ConfigError(f"q4_scale {scale!r} must be one of {', '.join(Q4_SCALES)}")


def encode(x: F32, kind: str, scale: str = "plain") -> U8:
    """Rows x (..., head_dim) float32 to bytes (..., row_bytes) in GGML's block order.

    Q4_0: d = (the value of largest magnitude) / -8, code = clamp(floor(x / d + 8.5), 0, 15), codes i and i + 16 share
    a byte. Q8_0: d = max |x| / 127, code = round half away from zero of x / d. The codes are found with the float32
    scale, which is then stored as FP16. With `scale` "unbiased" Q4_0 keeps these codes and stores another d, for
    which the product of a block with its quantized self is right: see `_unbiased`.
    """
    kind_ = cache_type(kind)
    check_q4_scale(scale)
    if kind == "f32":
        return np.ascontiguousarray(x, np.float32).view(np.uint8)
    if kind == "f16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(x, np.float16).view(np.uint8)
    lead, head_dim = x.shape[:-1], x.shape[-1]
    n_blocks = -(-head_dim // BLOCK)
    blocks = np.zeros((*lead, n_blocks * BLOCK), np.float32)
    blocks[..., :head_dim] = x
    blocks = blocks.reshape(-1, BLOCK)
    out = np.empty((len(blocks), kind_.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        if kind == "q8_0":
            d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
            scaled = blocks * np.where(d == 0, np.float32(0), np.float32(1) / d)
            magnitude = np.floor(np.abs(scaled) + np.float32(0.5))
            out[:, 2:] = (np.sign(scaled) * magnitude).astype(np.int8).view(np.uint8)
        else:
            top = np.abs(blocks).argmax(axis=1)[:, None]
            d = np.take_along_axis(blocks, top, axis=1) / np.float32(-8)
            scaled = blocks * np.where(d == 0, np.float32(0), np.float32(1) / d)
            codes = np.trunc(scaled + np.float32(8.5)).astype(np.uint8).clip(0, 15)
            out[:, 2:] = codes[:, :16] | codes[:, 16:] << np.uint8(4)
            if scale == "unbiased":
                d = _unbiased(blocks, codes, d)
        out[:, :2] = d.astype(np.float16).view(np.uint8)
    return out.reshape(*lead, n_blocks * kind_.block_bytes)


def _unbiased(blocks: F32, codes: U8, plain: NDArray[np.floating]) -> NDArray[np.floating]:
    """d = sum(x x) / sum(x q), q = code - 8, of each block (n, 32) -> (n, 1): then sum(x d q) = sum(x x).

    Rounding to codes makes a block longer or shorter along its own direction (of random blocks: 0.2 % shorter, give or
    take 1.5 %, with the plain d, and 0.7 % shorter with that of least squares), and every score made of it likewise;
    this d takes that back. plain (n, 1) is used where the quotient is no finite FP16 number. Sums halve the block,
    16 + 16, 8 + 8 ..., as the native twin does, so that both round alike.
    """

    def total(products: F32) -> F32:
        for half in (16, 8, 4, 2, 1):
            products = products[:, :half] + products[:, half:]
        return products

    squares, along = total(blocks * blocks), total(blocks * (codes.astype(np.float32) - np.float32(8)))
    d = np.where(along == 0, np.float32(0), squares / along)
    return np.where(np.isfinite(d.astype(np.float16)), d, plain)


def decode(data: U8, kind: str, head_dim: int) -> F32:
    """Bytes (..., row_bytes) back to rows (..., head_dim) float32; the inverse of `encode` up to quantization."""
    kind_ = cache_type(kind)
    if kind == "f32":
        return np.ascontiguousarray(data).view(np.float32)
    if kind == "f16":
        return np.ascontiguousarray(data).view(np.float16).astype(np.float32)
    lead = data.shape[:-1]
    blocks = np.ascontiguousarray(data).reshape(-1, kind_.block_bytes)
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    if kind == "q8_0":
        codes = blocks[:, 2:].view(np.int8)
    else:
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - np.int8(8)
    with np.errstate(invalid="ignore"):  # a scale that overflowed to inf, times a code of 0
        rows = (d * codes.astype(np.float32)).reshape(*lead, -(-head_dim // BLOCK) * BLOCK)
    return rows[..., :head_dim]


class QuantizedRows:
    """A cold segment: keys or values of many tokens in one storage format, kept as bytes.

    data: (n_keys, n_kv_heads, row_bytes) uint8 in GGML's block order; the shape of the numbers is
    (n_keys, n_kv_heads, head_dim).
    """

    def __init__(self, data: U8, kind: str, head_dim: int) -> None:
        expected = cache_type(kind).row_bytes(head_dim)
        if data.ndim != 3 or data.dtype != np.uint8 or data.shape[2] != expected:
            raise ConfigError(
                f"{kind} rows of head_dim {head_dim} are uint8 (n_keys, n_kv_heads, {expected}), "
                f"not {data.dtype} {data.shape}"
            )
        self.data, self.kind, self.head_dim = data, kind, head_dim

    @classmethod
    def quantize(cls, x: F32, kind: str = "q4_0") -> QuantizedRows:
        """Quantize x (n_keys, n_kv_heads, head_dim)."""
        x = np.asarray(x, np.float32)
        if x.ndim != 3:
            raise ConfigError(f"keys and values are (n_keys, n_kv_heads, head_dim), not {x.shape}")
        return cls(encode(x, kind), kind, x.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape[0], self.data.shape[1], self.head_dim

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, keys: slice) -> QuantizedRows:
        return QuantizedRows(self.data[keys], self.kind, self.head_dim)

    def dequantize(self) -> F32:
        """The numbers, (n_keys, n_kv_heads, head_dim) float32."""
        return decode(self.data, self.kind, self.head_dim)
