"""Weights of every type as files have them, and what their bytes mean, without the code under test."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SCALE_BYTES = {  # where raw blocks keep FP16 scales, for the types that gguf cannot quantize to
    T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,), T.IQ4_NL: (0,), T.IQ4_XS: (0,),
    T.IQ3_S: (0,), T.IQ3_XXS: (0,), T.IQ2_S: (0,), T.IQ2_XS: (0,), T.IQ2_XXS: (0,), T.IQ1_S: (0,), T.Q1_0: (0,),
}  # fmt: skip


def random_raw(kind: T, rows: int, cols: int, rng: np.random.Generator, std: float = 1.0) -> U8:
    """A random matrix as the bytes of a GGUF file, (rows, row_bytes); scales have both signs where they can.

    std: standard deviation of the numbers (NVFP4, whose scales are bytes: about 0.1, whatever it says).
    """
    dense = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(std)
    if kind == T.F64:
        return dense.astype(np.float64).view(np.uint8)
    if kind not in (*SCALE_BYTES, T.IQ1_M, T.NVFP4):
        return quantize(dense, kind).view(np.uint8).reshape(rows, -1)
    block, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    if kind == T.NVFP4:
        raw[:, :, :4] = rng.integers(8, 24, raw[:, :, :4].shape)
        return raw.reshape(rows, -1)
    places = SCALE_BYTES.get(kind, (0,))
    scales = rng.standard_normal((len(places), *raw.shape[:2]))
    for _ in range(2):  # the second time in proportion to what came out
        for at, scale in zip(places, scales, strict=True):
            half = scale.astype(np.float16)[..., None]
            if kind == T.IQ1_M:  # a nibble in each of four words
                nibbles = half.view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15
                raw[:, :, 49:56:2] = raw[:, :, 49:56:2] & 15 | (nibbles << 4).astype(np.uint8)
            else:
                raw[:, :, at : at + 2] = half.view(np.uint8)
        scales *= std / dense_of(raw.reshape(rows, -1), kind).std()
    return raw.reshape(rows, -1)


def dense_of(raw: U8, kind: T) -> F32:
    """The numbers (rows, cols) of raw bytes (rows, row_bytes), by the gguf package where it knows them."""
    if kind == T.F64:
        return raw.view(np.float64).astype(np.float32)
    with np.errstate(all="ignore"):
        if kind != T.Q1_0:
            return dequantize(raw, kind)
        blocks = raw.reshape(len(raw), -1, 18)
        d = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16).astype(np.float32)
        bits = blocks[:, :, 2:, None] >> np.arange(8, dtype=np.uint8) & 1
        return np.where(bits.reshape(*blocks.shape[:2], 128) == 1, d, -d).reshape(len(raw), -1)
