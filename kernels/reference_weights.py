"""Weights of the NumPy backend, and the product with one.

Matrices follow GGUF: a weight is (rows, cols), and `linear` computes x w^T. Quantized weights stay as they are in the
file and are dequantized a block of rows at a time, so memory never holds a second model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.ggml import WeightType, dequantize
from mixkv.kernels.parts import F32

ROW_BLOCK_BYTES = 16 << 20
"""Float32 bytes of one block of dequantized rows: large enough for BLAS, small beside any model."""


class Weight:
    """A matrix of a model file, (rows, cols), dequantized a block of rows at a time; `dense` ones once, at packing."""

    def __init__(self, raw: NDArray[np.uint8], ggml_type: int, cols: int, dense: bool = False) -> None:
        self._raw, self.ggml_type, self.rows, self.cols = raw, WeightType(ggml_type), raw.shape[0], cols
        self._dense: F32 | None = None
        if dense:
            self._dense = self.rows_as_float(slice(None))

    @property
    def nbytes(self) -> int:
        return self._raw.nbytes if self._dense is None else self._dense.nbytes

    def rows_as_float(self, index: slice | NDArray[np.int32]) -> F32:
        """Dequantized rows, (n, cols) float32."""
        if self._dense is not None:
            return self._dense[index]
        return dequantize(np.ascontiguousarray(self._raw[index]), self.ggml_type)

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """(rows, matrix) pieces of at most ROW_BLOCK_BYTES, in order."""
        step = max(1, ROW_BLOCK_BYTES // (4 * self.cols))
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, self.rows_as_float(rows)


class Experts:
    """Matrices (rows, cols) of n experts: raw (n, rows, row_bytes)."""

    def __init__(self, raw: NDArray[np.uint8], ggml_type: int, cols: int, dense: bool = False) -> None:
        self.n, self.rows, self.cols = raw.shape[0], raw.shape[1], cols
        self._weights = [Weight(matrix, ggml_type, cols, dense) for matrix in raw]

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for w in self._weights)

    def of(self, expert: int) -> Weight:
        return self._weights[expert]


def linear(x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32:
    """x w^T + bias + residual: x (n, cols), bias (rows,), residual (n, rows) -> (n, rows)."""
    out = np.empty((x.shape[0], w.rows), np.float32)
    for rows, block in w.blocks():
        np.matmul(x, block.T, out=out[:, rows])
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
    return out
