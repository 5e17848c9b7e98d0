"""Limits, value types and weight types of GGUF files.

Know before you change this room: the limits are promises (a file from a stranger costs little time and memory
whatever it claims), each checked before anything is allocated. The numbers of the value types are the format's,
those of the weight types are in kernels/ggml.py; tests/test_ggml.py holds both against the `gguf` package, which
reading a model does not import. Nothing here reads a file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mixkv.kernels.ggml import BLOCK_SIZES, WeightType

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit lengths
DEFAULT_ALIGNMENT = 32

MAX_METADATA_BYTES = 256 << 20  # everything before the tensor data
MAX_STRING_BYTES = 64 << 20
MAX_KEY_BYTES = 64 << 10
MAX_ARRAY_LENGTH = 1 << 24
MAX_ENTRIES = 65_536  # of keys, and of tensors
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
MAX_TENSOR_NAME_BYTES = 64
MAX_ELEMENTS = 1 << 59  # of the dimensions that are not 0: times 8 bytes it still fits into int64 (C++, NumPy)

MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, type, the smallest value
MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length, one character, n_dims (0), type, offset


class ValueType(IntEnum):
    """What the value of a metadata key is."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_DTYPES: dict[ValueType, np.dtype] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
INTEGER_TYPES = frozenset(t for t, dtype in SCALAR_DTYPES.items() if dtype.kind in "iu")
FLOAT_TYPES = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})

_W = WeightType
# fmt: off
WEIGHT_TYPES = frozenset({
    _W.F32, _W.F16, _W.BF16, _W.F64,
    _W.Q4_0, _W.Q4_1, _W.Q5_0, _W.Q5_1, _W.Q8_0,
    _W.Q2_K, _W.Q3_K, _W.Q4_K, _W.Q5_K, _W.Q6_K, _W.IQ4_NL, _W.IQ4_XS, _W.MXFP4, _W.NVFP4,
    _W.IQ3_S, _W.IQ3_XXS, _W.IQ2_S, _W.IQ2_XS, _W.IQ2_XXS, _W.IQ1_M, _W.IQ1_S, _W.TQ2_0, _W.TQ1_0, _W.Q1_0,
})
# fmt: on


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    shape is in NumPy order, the reverse of GGUF's `ne`: a matrix is (rows, cols). offset counts bytes from
    the start of its file; `part` is the index of that file in a split model (0 otherwise).
    """

    name: str
    ggml_type: WeightType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    part: int = 0

    @property
    def rows_shape(self) -> tuple[int, int]:
        """(rows, row_bytes): every dimension but the last flattened to rows of packed blocks."""
        block, block_bytes = BLOCK_SIZES[self.ggml_type]
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows, self.shape[-1] // block * block_bytes


def quoted(name: str) -> str:
    """A name from a file as it may stand in a one-line message: escaped, and short whatever the file says."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
