"""The typed getters of metadata: right types pass, everything else is an error that names key and type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType
from gguf_tools import array, assemble, key_value, raw_key_value, refusal, string

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile, open_gguf

VALUES: dict[str, object] = {
    "u8": np.uint8(200),
    "i8": np.int8(-3),
    "u16": np.uint16(65535),
    "i16": np.int16(7),
    "u32": np.uint32(2**32 - 1),
    "i32": np.int32(-1),
    "u64": np.uint64(2**64 - 1),
    "i64": np.int64(12),
    "f32": np.float32(0.5),
    "f64": np.float64(1e-300),
    "nan": np.float32(np.nan),
    "inf": np.float64(np.inf),
    "yes": True,
    "no": False,
    "text": "Ünïcode",
    "bad text": b"a\xffb",
    "empty text": "",
    "tokens": ["a", b"\xff", ""],
    "no tokens": [],
    "scores": np.array([1.0, np.nan], np.float32),
    "types": np.array([1, -2], np.int32),
    "flags": np.array([True, False]),
    "wide": np.array([2**63], np.uint64),
    "no numbers": np.array([], np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[GGUFFile]:
    path = tmp_path / "x.gguf"
    path.write_bytes(assemble([key_value(key, value) for key, value in VALUES.items()]))
    with open_gguf(path) as opened:
        yield opened


def test_is_a_mapping(file: GGUFFile) -> None:
    assert list(file.metadata) == list(VALUES) and len(file.metadata) == len(VALUES)
    assert "u8" in file.metadata and "u9" not in file.metadata
    assert file.metadata.get("u9") is None and file.get("u9", 5) == 5
    with pytest.raises(KeyError):
        file.metadata["u9"]


def test_get_gives_plain_values(file: GGUFFile) -> None:
    for key in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "yes", "no", "text", "empty text"):
        assert file.get(key) == VALUES[key]
        assert type(file.get(key)) in (int, float, bool, str)
    assert file.get("bad text") == "a\ufffdb"
    assert file.get("tokens") == [b"a", b"\xff", b""] and file.get("no tokens") == []
    for key in ("scores", "types", "flags", "wide", "no numbers"):
        value = file.get(key)
        assert isinstance(value, np.ndarray) and value.dtype == VALUES[key].dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(value, VALUES[key])


def test_typed_getters(file: GGUFFile) -> None:
    assert [file.uint(key) for key in ("u8", "u16", "i16", "u32", "i64")] == [200, 65535, 7, 2**32 - 1, 12]
    assert file.uint("u64", maximum=2**64) == 2**64 - 1 and file.uint("i8", minimum=-5) == -3
    assert file.float("f32") == 0.5 and file.float("f64") == 1e-300
    assert file.bool("yes") is True and file.bool("no") is False
    assert file.str("text") == "Ünïcode" and file.str("empty text") == ""
    assert file.strings("tokens") == [b"a", b"\xff", b""]
    assert file.array("types", np.int32).tolist() == [1, -2]
    assert file.array("types", np.uint32, np.int32).dtype == np.int32
    assert file.array("flags", bool).tolist() == [True, False]
    assert file.array("no numbers", np.float32).shape == (0,)


def test_defaults_are_for_missing_keys_only(file: GGUFFile) -> None:
    assert (file.uint("-", 0), file.float("-", 1.5), file.bool("-", False), file.str("-", "")) == (0, 1.5, False, "")
    assert file.uint("-", -1) == -1
    for wrong in (lambda: file.uint("text", 1), lambda: file.str("u8", "x"), lambda: file.bool("u8", True)):
        refusal(GGUFError, wrong)


def test_length_without_reading(file: GGUFFile) -> None:
    lengths = [file.metadata.length(key) for key in ("tokens", "no tokens", "scores", "text", "u8", "-")]
    assert lengths == [3, 0, 2, None, None, None]


WRONG: dict[str, tuple[Callable[[GGUFFile], object], str]] = {
    "uint-missing": (lambda f: f.uint("-"), "'-' should be an integer, but it is missing"),
    "uint-negative": (lambda f: f.uint("i32"), "'i32' is -1, outside 0 .. 4294967295"),
    "uint-too-large": (lambda f: f.uint("u64"), "18446744073709551615, outside"),
    "uint-maximum": (lambda f: f.uint("u8", maximum=199), "200, outside 0 .. 199"),
    "uint-minimum": (lambda f: f.uint("i16", minimum=8), "7, outside 8 .. "),
    "uint-of-float": (lambda f: f.uint("f32"), "is of type float32"),
    "uint-of-bool": (lambda f: f.uint("yes"), "is of type bool"),
    "uint-of-array": (lambda f: f.uint("types"), "is an array of int32"),
    "float-of-uint": (lambda f: f.float("u32"), "a floating-point number, but is of type uint32"),
    "float-nan": (lambda f: f.float("nan"), "is nan"),
    "float-inf": (lambda f: f.float("inf", 1.0), "is inf"),
    "bool-of-uint": (lambda f: f.bool("u8"), "a bool, but is of type uint8"),
    "str-of-uint": (lambda f: f.str("u8"), "a string, but is of type uint8"),
    "str-of-array": (lambda f: f.str("tokens"), "a string, but is an array of string"),
    "str-missing": (lambda f: f.str("-"), "it is missing"),
    "str-not-utf8": (lambda f: f.str("bad text"), "not UTF-8"),
    "strings-missing": (lambda f: f.strings("-"), "it is missing"),
    "strings-of-string": (lambda f: f.strings("text"), "is of type string"),
    "strings-of-numbers": (lambda f: f.strings("scores"), "is an array of float32"),
    "array-missing": (lambda f: f.array("-", np.float32), "array of float32, but it is missing"),
    "array-of-scalar": (lambda f: f.array("u8", np.uint8), "is of type uint8"),
    "array-of-strings": (lambda f: f.array("tokens", np.uint8), "is an array of string"),
    "array-of-another-type": (lambda f: f.array("scores", np.float64), "float64, but is an array of float32"),
    "array-of-neither": (lambda f: f.array("wide", np.int32, np.uint32), "int32 or uint32, but is an array of uint64"),
}


@pytest.mark.parametrize(("use", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_type_names_key_and_type(file: GGUFFile, use: Callable[[GGUFFile], object], words: str) -> None:
    message = refusal(GGUFError, lambda: use(file))
    assert words in message and str(file.path) in message


def test_any_byte_but_zero_is_true(tmp_path: Path) -> None:
    """A bool of 7 must not become an impossible NumPy or Python bool."""
    kinds = GGUFValueType
    flags = raw_key_value(string("flags"), kinds.ARRAY, array(kinds.BOOL, b"\x00\x07\xff", 3))
    (tmp_path / "x.gguf").write_bytes(assemble([raw_key_value(string("flag"), kinds.BOOL, b"\x07"), flags]))
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.bool("flag") is True
        assert file.array("flags", bool).view(np.uint8).tolist() == [0, 1, 1]
