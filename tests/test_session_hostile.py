"""Session files from strangers: damaged anywhere, or rewritten with a right checksum over nonsense.

`rebuild` (session_tools.py) makes checksums and lengths fit whatever the header claims.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_tools import rebuild

import mixkv
from mixkv.kernels.errors import MixkvError, SessionError

MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 8, "sink_tokens": 2, "n_ctx": 64}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "llama.gguf", *tiny_llama(n_layers=1))


def load(path: Path) -> mixkv.LLM:
    return mixkv.load(path, n_threads=1, **MIXED)


@pytest.fixture(scope="module")
def good(path: Path) -> bytes:
    """A session of 40 tokens: 2 sinks, 16 cold, the rest hot."""
    llm = load(path)
    llm.logits(list(range(5, 45)))
    llm.save_session(path.parent / "good")
    return (path.parent / "good").read_bytes()


@pytest.fixture(scope="module")
def llm(path: Path) -> mixkv.LLM:
    llm = load(path)
    llm.logits([7, 8, 9] * 10)
    return llm


def restore(llm: mixkv.LLM, file: Path, data: bytes, **options: bool) -> None:
    file.write_bytes(data)
    llm.load_session(file, **options)


def test_the_second_writer_agrees_with_the_first(llm: mixkv.LLM, good: bytes, path: Path, tmp_path: Path) -> None:
    assert rebuild(good, lambda header: None) == good
    other = load(path)
    restore(other, tmp_path / "s", good)
    assert other.tokens == list(range(5, 45))


def test_every_flipped_byte_is_noticed(llm: mixkv.LLM, good: bytes, tmp_path: Path) -> None:
    """All of the header and the checksum, and every 11th byte of the rows."""
    before = llm.tokens, llm.cache.stats()
    header_end = 16 + int.from_bytes(good[8:16], "little")
    for at in [*range(header_end), *range(header_end, len(good) - 32, 11), *range(len(good) - 32, len(good))]:
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        with pytest.raises(SessionError):
            restore(llm, tmp_path / "s", bytes(data))
    assert (llm.tokens, llm.cache.stats()) == before


def test_every_truncation_is_noticed(llm: mixkv.LLM, good: bytes, tmp_path: Path) -> None:
    for n in [*range(40), *range(40, len(good) - 1, 37), len(good) - 1]:
        with pytest.raises(SessionError):
            restore(llm, tmp_path / "s", good[:n])
    with pytest.raises(SessionError):
        restore(llm, tmp_path / "s", good + b"\0")


def with_field(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Of the file, or of its one group of layers."""

    def change(header: dict[str, Any]) -> None:
        (header if name in header else header["groups"][0])[name] = value

    return change


def with_fields(**fields: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["groups"][0].update(fields)

    return change


def with_layer(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["groups"][0]["layers"][0][name] = value

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        del header[name]

    return change


NONSENSE: dict[str, Callable[[dict[str, Any]], None]] = {
    "version-before": with_field("version", 2),
    "version-after": with_field("version", 4),
    "n-negative": with_field("n", -1),
    "n-2^31": with_field("n", 2**31),
    "n-2^62": with_field("n", 2**62),
    "n-overflowing-64-bits": with_field("n", 2**64 // 54 + 1),
    "n-float": with_field("n", 40.0),
    "n-bool": with_field("n", True),
    "n-text": with_field("n", "40"),
    "no-n": without("n"),
    "heads-0": with_field("n_kv_heads", 0),
    "heads-doubled-dims-halved": with_fields(n_kv_heads=4, head_dim_k=4, head_dim_v=4),
    "head_dim-huge": with_field("head_dim_k", 2**31),
    "layers-none": with_field("layers", []),
    "layers-text": with_field("layers", "all"),
    "layers-numbers": with_field("layers", [1]),
    "layers-twice": lambda header: header["groups"][0].update(layers=header["groups"][0]["layers"] * 2),
    "layer-type": with_layer("type_k", "q2_k"),
    "layer-type-list": with_layer("type_k", ["q4_0"]),
    "layer-hot-quantized": with_layer("hot_k", "q8_0"),
    "layer-extra": with_layer("surprise", 1),
    "fingerprint-number": with_field("fingerprint", 5),
    "fingerprint-other": with_field("fingerprint", "0" * 32),
    "no-fingerprint": without("fingerprint"),
    "window-negative": with_field("hot_window", -8),
    "window-text": with_field("hot_window", "8"),
    "marks-crossed": with_fields(hot_start=34, quant_end=18),
    "marks-unaligned": with_fields(hot_start=19, quant_end=19),
    "marks-beyond-the-end": with_fields(hot_start=50, quant_end=50),
    "groups-none": with_field("groups", []),
    "groups-twice": lambda header: header.update(groups=header["groups"] * 2),
    "groups-number": with_field("groups", 1),
    "group-text": with_field("groups", ["mixed"]),
    "kind-unknown": with_fields(kind="latent"),
    "kind-list": with_fields(kind=["mixed"]),
    "kind-other": lambda header: header.update(groups=[{"kind": "recurrent", "shapes": [], "n_layers": 1}]),
    "degraded-beyond-the-end": with_field("degraded_end", 41),
}


@pytest.mark.parametrize("case", NONSENSE)
@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("fits", [False, True])
def test_a_right_checksum_over_nonsense(
    llm: mixkv.LLM, good: bytes, tmp_path: Path, case: str, convert: bool, fits: bool
) -> None:
    """Whoever writes the checksum can write anything under it, and with `fits` as many bytes as it takes."""
    change = NONSENSE[case]
    payload = implied_payload(good, change) if fits else None
    before = llm.tokens, llm.cache.stats()
    with pytest.raises(SessionError) as caught:
        restore(llm, tmp_path / "s", rebuild(good, change, payload), convert=convert)
    assert "\n" not in str(caught.value) and str(tmp_path / "s") in str(caught.value)
    assert (llm.tokens, llm.cache.stats()) == before


def test_rows_that_the_settings_need_and_the_file_lacks(
    llm: mixkv.LLM, path: Path, good: bytes, tmp_path: Path
) -> None:
    """A file without cold tiles is whole in itself, but queries of this cache would read them."""
    change = with_fields(hot_start=2, quant_end=2)
    data = rebuild(good, change, implied_payload(good, change))
    with pytest.raises(SessionError, match="lacks rows"):
        restore(llm, tmp_path / "s", data)


@pytest.mark.parametrize("token", [-1, 276, 2**31 - 1])
def test_token_ids_that_the_model_lacks(llm: mixkv.LLM, good: bytes, tmp_path: Path, token: int) -> None:
    start = 16 + int.from_bytes(good[8:16], "little")
    payload = bytearray(good[start:-32])
    payload[12:16] = np.int32(token).tobytes()
    with pytest.raises(SessionError, match="token ids"):
        restore(llm, tmp_path / "s", rebuild(good, lambda header: None, bytes(payload)))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1}', b"[" * 10_000, b"1e999"])
def test_headers_that_are_no_header(llm: mixkv.LLM, tmp_path: Path, text: bytes) -> None:
    body = b"MIXKVSE1" + len(text).to_bytes(8, "little") + text
    with pytest.raises(SessionError):
        restore(llm, tmp_path / "s", body + hashlib.blake2b(body, digest_size=32).digest())


def test_what_is_no_file(llm: mixkv.LLM, path: Path, tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path / "pipe", tmp_path, tmp_path / "missing", Path("/dev/zero"), path):
        with pytest.raises(SessionError) as caught:
            llm.load_session(bad)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), convert=st.booleans(), wide=st.booleans())
def test_rows_of_random_bytes_are_data(
    llm: mixkv.LLM, path: Path, good: bytes, tmp_path: Path, seed: int, convert: bool, wide: bool
) -> None:
    """NaN and infinity among keys: the session loads, and what follows runs or says why not."""
    start = 16 + int.from_bytes(good[8:16], "little")
    payload = good[start : start + 160] + np.random.default_rng(seed).bytes(len(good) - 32 - start - 160)
    other = mixkv.load(path, n_threads=1, n_ctx=64) if convert and wide else load(path)
    restore(other, tmp_path / "s", rebuild(good, lambda header: None, payload), convert=convert)
    assert other.cache.n == 40
    try:
        other.generate([*other.tokens, 5], max_tokens=2)
    except mixkv.InputError as error:
        assert "logits" in str(error)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from(["n", "hot_start", "quant_end", "degraded_end", "sink_tokens", "hot_window", "n_kv_heads",
                         "head_dim_k", "head_dim_v"]),
        st.one_of(st.integers(0, 64), st.sampled_from([None, -1, 2**31, 2**63, 18, 34])), max_size=4,
    ),
    kinds=st.dictionaries(st.sampled_from(["type_k", "type_v", "hot_k", "hot_v", "rotate_k"]),
                          st.sampled_from(["f32", "f16", "q8_0", "q4_0", True, 0, None]), max_size=2),
    n_bytes=st.one_of(st.none(), st.integers(0, 20_000)), convert=st.booleans(),
)  # fmt: skip
def test_any_header_is_an_error_or_a_session(
    path: Path, good: bytes, tmp_path: Path, fields: dict[str, Any], kinds: dict[str, Any], n_bytes: int | None,
    convert: bool,
) -> None:  # fmt: skip
    """Fuzzed under a right checksum, in half the cases with a payload of exactly the size that the header implies."""

    def change(header: dict[str, Any]) -> None:
        group = header["groups"][0]
        group.update(fields)
        group["layers"][0].update(kinds)
        if "n" in fields:
            header["n"] = group.pop("n")

    payload = bytes(n_bytes) if n_bytes is not None else implied_payload(good, change)
    llm = load(path)
    try:
        restore(llm, tmp_path / "s", rebuild(good, change, payload), convert=convert)
        llm.generate([*llm.tokens, 5][-llm.n_ctx :], max_tokens=1)
    except MixkvError as error:
        assert "\n" not in str(error)


def implied_payload(good: bytes, change: Callable[[dict[str, Any]], None]) -> bytes | None:
    """Zeros, as many as the changed header asks for; None where it asks for nonsense, or for more than a megabyte."""
    n = int.from_bytes(good[8:16], "little")
    header = json.loads(good[16 : 16 + n])
    change(header)
    block = {"f32": 128, "f16": 64, "q8_0": 34, "q4_0": 18}
    try:
        (group,), length = header["groups"], header["n"]
        sinks, hot_start, quant_end = (group[name] for name in ("sink_tokens", "hot_start", "quant_end"))
        total = 4 * length
        for layer in group["layers"]:
            for side in "kv":
                hot_rows, cold_rows = min(length, sinks) + max(0, length - hot_start), max(0, quant_end - sinks)
                for rows, kind in ((hot_rows, layer[f"hot_{side}"]), (cold_rows, layer[f"type_{side}"])):
                    head_dim = group[f"head_dim_{side}"]
                    row = head_dim * block[kind] // 32 if kind[0] == "f" else -(-head_dim // 32) * block[kind]
                    total += rows * group["n_kv_heads"] * row
        return bytes(total) if 0 <= total <= 1 << 20 else None
    except (TypeError, KeyError, ValueError):
        return None
