"""Weight types: each becomes rows of packed bytes and float32 values; others are refused when they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf_tools import Packed, random_blocks, refusal, write_gguf
from weight_tools import dense_of

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import open_gguf
from mixkv.models.gguf_types import WEIGHT_TYPES

W = GGMLQuantizationType
NORM = {"norm": np.arange(8, dtype=np.float32)}


def test_simple_types_by_hand(tmp_path: Path) -> None:
    """Values that float32 holds exactly, and a block each of Q4_0, Q8_0 and the newest two types worked out by hand."""
    values = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
    scale = np.float16(0.5).tobytes()
    tensors: dict[str, np.ndarray | Packed] = {
        "f32": values,
        "f16": values.astype(np.float16),
        "f64": values.astype(np.float64),
        "bf16": Packed((4,), W.BF16, (values.view(np.uint32) >> 16).astype("<u2").tobytes()),
        "q4_0": Packed((32,), W.Q4_0, scale + bytes(range(16))),
        "q8_0": Packed((32,), W.Q8_0, scale + np.arange(-16, 16, dtype=np.int8).tobytes()),
        "mxfp4": Packed((32,), W.MXFP4, bytes([126, *(i << 4 | 15 - i for i in range(16))])),
        "q1_0": Packed((128,), W.Q1_0, scale + bytes([1, 0x80]) + bytes(14)),
    }
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, tensors)) as file:
        for name in ("f32", "f16", "f64", "bf16"):
            array = file.array_of(name)
            assert array.dtype == np.float32 and array.flags.writeable
            np.testing.assert_array_equal(array, values)
        q4_0 = [0.5 * (i - 8) for i in range(16)] + [0.5 * (0 - 8)] * 16
        np.testing.assert_array_equal(file.array_of("q4_0"), q4_0)
        np.testing.assert_array_equal(file.array_of("q8_0"), 0.5 * np.arange(-16, 16))
        fp4 = [0.25 * x for x in (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)]
        np.testing.assert_array_equal(file.array_of("mxfp4"), fp4[::-1] + fp4)
        q1_0 = np.full(128, -0.5)
        q1_0[[0, 15]] = 0.5
        np.testing.assert_array_equal(file.array_of("q1_0"), q1_0)
        assert file.raw("q4_0").shape == (1, 18) and file.raw("q8_0").shape == (1, 34)


@pytest.mark.parametrize("ggml_type", sorted(WEIGHT_TYPES), ids=lambda t: t.name)
def test_every_weight_type(tmp_path: Path, ggml_type: GGMLQuantizationType) -> None:
    """Three dimensions become rows, row by row; infinite and NaN scales are data."""
    packed = random_blocks(ggml_type, (512, 3, 2), np.random.default_rng(int(ggml_type)))
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, {**NORM, "w": packed})) as file:
        assert file.tensors["w"].shape == (2, 3, 512)
        raw = file.raw("w")
        assert raw.shape == (6, len(packed.data) // 6) and raw.tobytes() == packed.data
        whole = file.array_of("w")
        assert whole.shape == (2, 3, 512) and whole.dtype == np.float32
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(whole[1, 2], dense_of(raw[5:], W(ggml_type))[0])


@pytest.mark.parametrize("ggml_type", [W.I8, W.I32, W.Q8_1, W.Q8_K], ids=lambda t: t.name)
def test_other_types_are_refused_when_used(tmp_path: Path, ggml_type: GGMLQuantizationType) -> None:
    packed = random_blocks(ggml_type, (256, 2), np.random.default_rng(0))
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, {"w": packed, **NORM})) as file:
        np.testing.assert_array_equal(file.array_of("norm"), NORM["norm"])
        for use in (file.raw, file.array_of):
            message = refusal(GGUFError, lambda use=use: use("w"))  # type: ignore[misc]
            assert "'w'" in message and ggml_type.name in message


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, NORM)) as file:
        for use in (file.raw, file.array_of, file.release):
            assert "'blk.0.attn_q.weight' is missing" in refusal(
                GGUFError,
                lambda use=use: use("blk.0.attn_q.weight"),  # type: ignore[misc]
            )
