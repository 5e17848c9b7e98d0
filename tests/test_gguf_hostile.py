"""GGUF files from strangers: every case is one typed error, cheap, and leaves nothing open. Or it loads."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from gguf_tools import (
    Packed,
    array,
    assemble,
    gguf_bytes,
    key_value,
    random_blocks,
    raw_key_value,
    refusal,
    string,
    tensor_info,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import open_gguf

T = GGUFValueType
W = GGMLQuantizationType
ROW = np.arange(8, dtype=np.float32).tobytes()  # data of one tensor of 8 float32


def one_key(kind: int, payload: bytes) -> bytes:
    return assemble([raw_key_value(string("k"), kind, payload)])


def alignment(value: object) -> bytes:
    return assemble([key_value("general.alignment", value)])


def swapped_version() -> bytes:
    return b"GGUF" + pack(">IQQ", 3, 0, 0)


HEADER = {
    "bad-magic": (assemble(magic=b"GGML"), "not a GGUF file"),
    "version-0": (assemble(version=0), "GGUF version 0"),
    "version-1": (assemble(version=1), "GGUF version 1"),
    "version-future": (assemble(version=4), "newer mixkv"),
    "version-2^32-1": (assemble(version=2**32 - 1), "GGUF version 4294967295"),
    "byte-swapped": (swapped_version(), "big-endian"),
    "n_tensors=-1": (assemble(n_tensors=-1), "18446744073709551615 tensors, more than 65536"),
    "n_tensors=2^31": (assemble(n_tensors=2**31), "2147483648 tensors, more than 65536"),
    "n_tensors=2^63": (assemble(n_tensors=2**63), "9223372036854775808 tensors, more than 65536"),
    "n_kv=-1": (assemble(n_kv=-1), "18446744073709551615 keys, more than 65536"),
    "n_kv=2^31": (assemble(n_kv=2**31), "2147483648 keys, more than 65536"),
    "n_kv=2^63": (assemble(n_kv=2**63), "9223372036854775808 keys, more than 65536"),
    "n_kv-more-than-bytes": (assemble([key_value("k", 1)], n_kv=1000), "only 17 bytes for them"),
    "n_tensors-more-than-bytes": (assemble(n_tensors=1), "only 0 bytes for them"),
    "n_kv-one-too-many": (assemble([key_value("key" * 9, 1)], n_kv=2), "ends inside"),
    "n_kv-one-over-the-limit": (assemble(n_kv=65_537) + bytes(1 << 20), "65537 keys, more than 65536"),
    "only-the-magic": (b"GGUF", "ends inside the version"),
    "half-a-magic": (b"GG", "not a GGUF file"),
    "text-file": (b"#!/bin/sh\nexit 0\n", "not a GGUF file"),
}

KEYS = {
    "key-size=-1": (assemble([raw_key_value(string("k", 2**64 - 1), T.UINT32, bytes(4))]), "more than 65536"),
    "key-longer-than-64KiB": (assemble([key_value("k" * 65537, 1)]), "more than 65536"),
    "key-past-the-end": (
        assemble([raw_key_value(string("k", 900), T.UINT32, bytes(4))]),
        "ends inside the name of a key",
    ),
    "empty-key": (assemble([key_value("", 1)]), "empty name"),
    "key-not-utf8": (assemble([raw_key_value(string(b"\xff\xfe"), T.UINT32, bytes(4))]), "not UTF-8"),
    "unknown-type": (one_key(13, bytes(8)), "'k' has the unknown type 13"),
    "unknown-type-2^32-1": (one_key(2**32 - 1, bytes(8)), "unknown type 4294967295"),
    "duplicate-key": (assemble([key_value("k", 1), key_value("k", 2)]), "'k' twice"),
    "value-size=-1": (one_key(T.STRING, string("v", 2**64 - 1)), "18446744073709551615 bytes"),
    "value-past-the-end": (one_key(T.STRING, string("v", 900)), "ends inside the value of key 'k'"),
    "string-length-2^60": (one_key(T.STRING, string("v", 2**60)), "1152921504606846976 bytes"),
    "string-of-array-length-2^60": (
        one_key(T.ARRAY, array(T.STRING, string("a") + string("b", 2**60), 2)),
        "1152921504606846976 bytes",
    ),
    "string-of-array-size=-1": (one_key(T.ARRAY, array(T.STRING, string("b", 2**64 - 1), 1)), "more than"),
    "string-of-array-past-the-end": (one_key(T.ARRAY, array(T.STRING, string("b", 2), 1)), "ends inside"),
    "string-array-ends-early": (one_key(T.ARRAY, array(T.STRING, string("b"), 3)), "ends inside"),
    "array-length=-1": (one_key(T.ARRAY, array(T.UINT8, b"", 2**64 - 1)), "18446744073709551615 elements"),
    "array-length-2^60": (one_key(T.ARRAY, array(T.INT32, b"", 2**60)), "1152921504606846976 elements"),
    "array-length-2^24": (one_key(T.ARRAY, array(T.INT32, bytes(64), 2**24)), "67108864 bytes needed"),
    "array-of-arrays": (one_key(T.ARRAY, array(T.ARRAY, array(T.UINT8, b"", 0), 1)), "array of arrays"),
    "array-of-unknown-type": (one_key(T.ARRAY, array(77, bytes(8), 1)), "unknown type 77"),
    "alignment-13": (alignment(13), "alignment is 13"),
    "alignment-0": (alignment(0), "alignment is 0"),
    "alignment-0x80000000": (alignment(0x8000_0000), "alignment is 2147483648"),
    "alignment-2MiB": (alignment(2 << 20), "alignment is 2097152"),
    "alignment-is-uint64": (alignment(np.uint64(32)), "must be a uint32, not uint64"),
    "alignment-is-a-string": (alignment("32"), "must be a uint32, not string"),
    "alignment-is-an-array": (alignment(np.array([32], np.uint32)), "must be a uint32, not array"),
}


def one_tensor(ne: tuple[int, ...], ggml_type: int = W.F32, *, name: str | bytes = "t", offset: int = 0) -> bytes:
    return assemble(infos=[tensor_info(name, ne, ggml_type, offset)], data=ROW)


def two_tensors(offset: int, name: str = "u") -> bytes:
    return assemble(infos=[tensor_info("t", (8,)), tensor_info(name, (8,), offset=offset)], data=ROW + ROW)


TENSORS = {
    "name-of-65": (one_tensor((8,), name="n" * 65), "65 bytes, more than 64"),
    "name-size=-1": (assemble(infos=[string("t", 2**64 - 1) + bytes(32)], data=ROW), "18446744073709551615 bytes"),
    "name-empty": (one_tensor((8,), name=""), "tensor has an empty name"),
    "name-not-utf8": (one_tensor((8,), name=b"\xc3"), "name of a tensor is not UTF-8"),
    "5-dimensions": (one_tensor((8, 1, 1, 1, 1)), "'t' has 5 dimensions"),
    "n_dims-2^32-1": (
        assemble(infos=[tensor_info("t", (8,), n_dims=2**32 - 1)], data=ROW),
        "'t' has 4294967295 dimensions",
    ),
    "shape--1": (one_tensor((-1,)), "impossible shape"),
    "shape--1-rows": (one_tensor((8, -1)), "impossible shape"),
    "shape--1-rows-hidden-by-0": (one_tensor((8, -1, 0)), "impossible shape"),
    "shape-2^63": (one_tensor((2**63,)), "impossible shape"),
    "product-wraps-to-0": (one_tensor((2**32, 2**32)), "impossible shape"),
    "product-wraps-to-8": (one_tensor((2**62, 2**62, 2**62, 8)), "impossible shape"),
    "ne0-times-18-wraps-in-Q4_0": (one_tensor((5124095576030431008,), W.Q4_0), "impossible shape"),
    "bytes-wrap-in-F32": (one_tensor((2**62,)), "impossible shape"),
    "bytes-wrap-in-F64": (one_tensor((2**61,), W.F64), "impossible shape"),
    "padding-wraps": (one_tensor((2**62 - 8,)), "impossible shape"),
    "larger-than-the-file": (one_tensor((2**40,)), "'t' needs bytes 64 .. 4398046511168 of 96"),
    "rows-no-multiple-of-block": (one_tensor((16,), W.Q4_0), "Q4_0's block of 32"),
    "unknown-type": (one_tensor((8,), 4242), "unknown weight type 4242"),
    "removed-type-Q4_2": (one_tensor((32,), 4), "unknown weight type 4"),
    "unknown-type-2^32-1": (one_tensor((8,), 2**32 - 1), "unknown weight type 4294967295"),
    "offset-misaligned": (one_tensor((4,), offset=16), "offset 16 is not aligned"),
    "offset-past-the-end": (one_tensor((8,), offset=64), "'t' needs bytes 128 .. 160 of 96"),
    "offset-end-past-the-end": (one_tensor((16,)), "'t' needs bytes 64 .. 128 of 96"),
    "offset=-32-wraps": (one_tensor((8,), offset=-32), "'t' needs bytes 18446744073709551648"),
    "offset-2^63": (one_tensor((8,), offset=2**63), "'t' needs bytes 9223372036854775872"),
    "empty-tensor-past-the-end": (one_tensor((0,), offset=2**40), "'t' needs bytes"),
    "overlapping-same-place": (two_tensors(0), "'t' and 'u' overlap"),
    "overlapping-by-half": (
        assemble(infos=[tensor_info("t", (16,)), tensor_info("u", (8,), offset=32)], data=ROW * 2),
        "'t' and 'u' overlap",
    ),
    "duplicate-name": (two_tensors(32, name="t"), "'t' twice"),
    "header-ends-early": (assemble(infos=[tensor_info("t", (8,))], n_tensors=2, data=b""), "claims 2 tensors"),
}


def check_refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    message = refusal(GGUFError, lambda: open_gguf(path))
    assert message.startswith(f"{path}: ") and "; " in message
    return message


@pytest.mark.parametrize(("content", "words"), HEADER.values(), ids=HEADER.keys())
def test_header(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in check_refused(tmp_path / "x.gguf", content)


@pytest.mark.parametrize(("content", "words"), KEYS.values(), ids=KEYS.keys())
def test_keys_and_values(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in check_refused(tmp_path / "x.gguf", content)


@pytest.mark.parametrize(("content", "words"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in check_refused(tmp_path / "x.gguf", content)


def test_array_element_of_the_wrong_type(tmp_path: Path) -> None:
    """int8 scores: the file opens, and whoever asks for float32 scores gets an error that names both types."""
    scores = key_value("tokenizer.ggml.scores", np.zeros(8, np.int8))
    (tmp_path / "x.gguf").write_bytes(assemble([scores]))
    with open_gguf(tmp_path / "x.gguf") as file:
        message = refusal(GGUFError, lambda: file.array("tokenizer.ggml.scores", np.float32))
    assert "array of float32" in message and "array of int8" in message


def test_header_larger_than_its_limit(tmp_path: Path) -> None:
    """Five strings of 60 MiB, each legal, are more than the 256 MiB that all metadata may have."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as out:
        out.write(assemble(n_kv=5))
        for i in range(5):  # sparse: nothing of this is on the disk
            out.write(raw_key_value(string(f"k{i}"), T.STRING, string("", 60 << 20)))
            out.seek(60 << 20, os.SEEK_CUR)
        out.truncate()
    assert "larger than 256 MiB" in refusal(GGUFError, lambda: open_gguf(path))


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    key = "k\n" * 30_000
    message = check_refused(tmp_path / "x.gguf", assemble([key_value(key, 1), key_value(key, 1)]))
    assert len(message) < 1000


def complete_file() -> bytes:
    """Every kind of value and five weight types in 1.3 kB; the last tensor is not padded."""
    rng = np.random.default_rng(1)
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "a.uint8": np.uint8(1),
        "a.int64": np.int64(-5),
        "a.float64": np.float64(0.5),
        "a.bool": True,
        "a.tokens": ["<unk>", "", b"\xff", "word"],
        "a.scores": np.array([0.0, -1.0, np.nan], np.float32),
        "a.flags": np.array([True, False]),
    }
    tensors: dict[str, np.ndarray | Packed] = {
        "norm": np.ones(4, np.float32),
        "bias": np.ones(3, np.float64),
        "empty": np.ones((0, 8), np.float16),
        "q4_0": random_blocks(W.Q4_0, (32, 2), rng),
        "q4_k": random_blocks(W.Q4_K, (256,), rng),
        "iq4_nl": random_blocks(W.IQ4_NL, (32, 1, 3), rng),
    }
    return gguf_bytes(metadata, tensors)


def touch_everything(path: Path) -> None:
    """Open, read every value and every tensor, close."""
    with open_gguf(path) as file:
        for key in file.metadata:
            assert file.metadata[key] is not None
            file.metadata.length(key)
        for name, info in file.tensors.items():
            assert file.raw(name).size == info.n_bytes
            assert file.array_of(name).shape == info.shape
            file.release(name)


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    """Header ends early, data ends early at each tensor: no prefix of a file loads."""
    path = tmp_path / "x.gguf"
    content = complete_file()
    path.write_bytes(content)
    touch_everything(path)
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(GGUFError):
            open_gguf(path)


NASTY = [0, 1, 2, 4, 8, 9, 13, 31, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """A few bytes flipped, inserted, deleted or replaced by a nasty integer; mostly in the header."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "insert", "delete", "integer"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "integer":
                form = draw(st.sampled_from(["<I", "<Q"]))
                mask = 2**32 - 1 if form == "<I" else 2**64 - 1
                value = pack(form, draw(st.sampled_from(NASTY)) & mask)
                data[at : at + len(value)] = value
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_mutated_files_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(data.draw(mutated(complete_file())))
    tracemalloc.start()
    start = time.process_time()
    try:
        touch_everything(path)
    except GGUFError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - start < 2
