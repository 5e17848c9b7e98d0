"""GGML's weight types: their numbers in model files, the sizes of their blocks, and their values in float32.

Know before you change this room: the numbers are the format's, never ours to choose; tests/test_ggml.py holds them
against the `gguf` package. That package costs a tenth of a second to import (it writes files and reads YAML, too), so
the tables stand here, and it is imported only where a block format is dequantized in NumPy.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import GGUFError


class WeightType(IntEnum):
    """How a tensor's weights are written. All that files may hold are named here; few models use more than three."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


_W = WeightType
# fmt: off
BLOCK_SIZES: dict[WeightType, tuple[int, int]] = {
    _W.F32: (1, 4), _W.F16: (1, 2), _W.BF16: (1, 2), _W.F64: (1, 8),
    _W.I8: (1, 1), _W.I16: (1, 2), _W.I32: (1, 4), _W.I64: (1, 8),
    _W.Q4_0: (32, 18), _W.Q4_1: (32, 20), _W.Q5_0: (32, 22), _W.Q5_1: (32, 24), _W.Q8_0: (32, 34), _W.Q8_1: (32, 40),
    _W.Q2_K: (256, 84), _W.Q3_K: (256, 110), _W.Q4_K: (256, 144), _W.Q5_K: (256, 176), _W.Q6_K: (256, 210),
    _W.Q8_K: (256, 292),
    _W.IQ1_S: (256, 50), _W.IQ1_M: (256, 56), _W.IQ2_XXS: (256, 66), _W.IQ2_XS: (256, 74), _W.IQ2_S: (256, 82),
    _W.IQ3_XXS: (256, 98), _W.IQ3_S: (256, 110), _W.IQ4_NL: (32, 18), _W.IQ4_XS: (256, 136),
    _W.TQ1_0: (256, 54), _W.TQ2_0: (256, 66), _W.MXFP4: (32, 17), _W.NVFP4: (64, 36), _W.Q1_0: (128, 18),
}
# fmt: on
"""(weights, bytes) of a block of each type."""


_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""What the codes of a 4-bit float stand for, doubled: a sign, two bits of exponent, one of mantissa."""


def _mxfp4(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 17) -> (n, 32): a scale 2^(e - 127), halved for the doubled codes; columns k and k + 16 share a byte."""
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return scale * _FP4[np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)]


def _nvfp4(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 36) -> (n, 64): four scales of 16 columns, in each of which columns k and k + 8 share a byte.

    A scale is a float with four bits of exponent and three of mantissa, halved; GGML ignores its sign, and NaN is 0.
    """
    byte = blocks[:, :4].astype(np.int32) & 127
    exponent, mantissa = byte >> 3, (byte & 7).astype(np.float32)
    scale = np.ldexp(np.where(exponent > 0, mantissa + 8, mantissa), np.maximum(exponent, 1) - 11)
    scale[blocks[:, :4] == 0x7F] = 0
    codes = blocks[:, 4:].reshape(-1, 4, 8)
    values: NDArray[np.float32] = scale[..., None] * _FP4[np.concatenate([codes & 15, codes >> 4], axis=2)]
    return values.reshape(-1, 64)


def _q1_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 18) -> (n, 128): a scale d, and a bit for every column, the first one lowest: d where it is set, else -d."""
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return scale * (2 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) - 1)


# what the oldest `gguf` package that we work with does not know, or none does
_OURS = {WeightType.MXFP4: _mxfp4, WeightType.NVFP4: _nvfp4, WeightType.Q1_0: _q1_0}


def dequantize(raw: NDArray[np.uint8], kind: WeightType) -> NDArray[np.float32]:
    """Values (rows, cols) float32 of packed rows (rows, row_bytes) uint8, C-contiguous; F32 is not copied.

    `kind` must be a type that mixkv can use (WEIGHT_TYPES of models/gguf_types.py). NaN and infinity are data.
    """
    with np.errstate(all="ignore"):
        if kind in (WeightType.F32, WeightType.F16, WeightType.F64):
            return raw.view(f"<f{BLOCK_SIZES[kind][1]}").astype(np.float32, copy=False)
        if kind == WeightType.BF16:  # the upper half of a float32
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        if kind in _OURS:
            return _OURS[kind](raw.reshape(-1, BLOCK_SIZES[kind][1])).reshape(*raw.shape[:-1], -1)
        # here, because norms are floats and the native kernels read blocks themselves: most runs never need it
        from gguf import GGMLQuantizationType, quants

        try:
            values: NDArray[np.float32] = quants.dequantize(raw, GGMLQuantizationType(kind))
        except (ValueError, RuntimeError):  # it does not know the number, or not how to read it
            raise GGUFError(
                f"the installed gguf package cannot read weights of type {kind.name}: install a newer one, or take the "
                "native kernels"
            ) from None
        return values
