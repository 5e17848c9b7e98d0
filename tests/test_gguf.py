"""Good GGUF files: equal to what gguf.GGUFReader sees, lazily, and everything that must load does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from gguf_tools import (
    Packed,
    assemble,
    gguf_bytes,
    key_value,
    refusal,
    tensor_info,
    tiny_llama,
    write_gguf,
)

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile, open_gguf

W = GGMLQuantizationType
NORM: dict[str, np.ndarray | Packed] = {"norm": np.arange(8, dtype=np.float32)}


def check_against_reader(path: Path) -> None:
    """Same keys, values, tensors and bytes as the gguf package's own (slow) reader."""
    reader = GGUFReader(path)
    with open_gguf(path) as file:
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert list(file.metadata) == list(fields)
        for name, field in fields.items():
            check_value(file.metadata[name], field)
        assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            info = file.tensors[tensor.name]
            assert info.ggml_type == tensor.tensor_type
            assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (info.offset, info.n_bytes) == (tensor.data_offset, tensor.n_bytes)
            raw = file.raw(tensor.name)
            assert not raw.flags.writeable and not raw.flags.owndata
            np.testing.assert_array_equal(raw.reshape(-1), tensor.data.reshape(-1).view(np.uint8))
            expected = dequantize(np.asarray(tensor.data), tensor.tensor_type)
            np.testing.assert_array_equal(file.array_of(tensor.name), expected.reshape(info.shape))


def check_value(value: object, field: object) -> None:
    types, parts, data = field.types, field.parts, field.data  # type: ignore[attr-defined]
    if types[-1] == GGUFValueType.STRING:
        strings = [parts[i].tobytes() for i in data]
        assert value == (strings if len(types) > 1 else strings[0].decode())
    elif types[0] == GGUFValueType.ARRAY:
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, np.concatenate([parts[i] for i in data]))
    else:
        assert value == parts[data[0]][0]


def test_equals_reader_on_demo_and_stories(shared: Path) -> None:
    check_against_reader(shared / "models" / "mixkv-demo-Q8_0.gguf")
    check_against_reader(shared / "data" / "stories260K-f16.gguf")


@pytest.mark.parametrize("folder", ["arch", "quant"])
def test_equals_reader_on_golden_models(shared: Path, folder: str) -> None:
    paths = sorted((shared / "golden" / folder).glob("*.gguf"))
    assert len(paths) >= 10
    for path in paths:
        check_against_reader(path)


def test_equals_reader_on_an_spm_vocabulary(shared: Path) -> None:
    check_against_reader(shared / "data" / "vocab" / "ggml-vocab-llama-spm.gguf")


def test_equals_reader_on_what_writer_wrote(tmp_path: Path) -> None:
    path = tmp_path / "writer.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_rope_freq_base(1e6)
    writer.add_token_list(["<unk>", "ä", "", "z"])
    writer.add_token_scores([0.0, -1.5, 2.0, 3.0])
    writer.add_add_bos_token(True)
    writer.add_int64("big", -(2**40))
    rng = np.random.default_rng(0)
    for name, shape in {"a": (5,), "b": (3, 32), "c": (2, 3, 64)}.items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.add_tensor("half", rng.standard_normal((7, 3)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_against_reader(path)


def test_tools_write_what_reader_reads(tmp_path: Path) -> None:
    check_against_reader(write_gguf(tmp_path / "tiny.gguf", *tiny_llama()))


def test_large_vocabulary_opens_fast(shared: Path) -> None:
    """128k tokens and 280k merges: about 40 ms on a 2023 server core (GGUFReader: 9.5 s)."""
    start = time.process_time()
    with open_gguf(shared / "data" / "vocab" / "ggml-vocab-llama-bpe.gguf") as file:
        seconds = time.process_time() - start
        tokens, merges = file.strings("tokenizer.ggml.tokens"), file.strings("tokenizer.ggml.merges")
    assert seconds < 2
    assert (len(tokens), len(merges)) == (128_256, 280_147)
    assert tokens[0] == b"!" and tokens[128_000] == b"<|begin_of_text|>"
    assert merges[0] == "Ġ Ġ".encode()


# must load


@pytest.mark.parametrize("version", [2, 3])
def test_loads_versions_2_and_3(tmp_path: Path, version: int) -> None:
    data = assemble([key_value("k", 7)], [tensor_info("t", (2,))], bytes(8), version=version)
    (tmp_path / "x.gguf").write_bytes(data)
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.get("k") == 7 and file.array_of("t").tolist() == [0.0, 0.0]


def test_loads_empty_key_value_section(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, NORM)) as file:
        assert len(file.metadata) == 0 and "general.architecture" not in file.metadata
        np.testing.assert_array_equal(file.array_of("norm"), np.arange(8))


def test_loads_file_without_tensors(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "x.gguf", {"k": 1}, {})) as file:
        assert not file.tensors and list(file.metadata) == ["k"]


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096, 1 << 20])
def test_loads_custom_alignment(tmp_path: Path, alignment: int) -> None:
    """Alignment 1 puts tensors on odd addresses: every type must still be readable."""
    tensors = {"odd": Packed((3,), W.I8, b"abc"), **NORM, "f64": np.arange(3.0)}
    with open_gguf(write_gguf(tmp_path / "x.gguf", {"general.alignment": alignment}, tensors)) as file:
        assert all(info.offset % alignment == 0 for info in file.tensors.values())
        np.testing.assert_array_equal(file.array_of("norm"), np.arange(8))
        np.testing.assert_array_equal(file.array_of("f64"), [0.0, 1.0, 2.0])


@pytest.mark.parametrize("ne", [(0,), (32, 0), (0, 4), (2**40, 0, 2), (0, 2**50)])
def test_loads_tensor_of_zero_size(tmp_path: Path, ne: tuple[int, ...]) -> None:
    """A dimension of 0 is legal; also as the last tensor, behind padding that was not written."""
    tensors = {**NORM, "first": Packed(ne, W.F16, b""), "odd": np.ones(1, np.float32)}
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, {**tensors, "last": Packed(ne, W.Q8_0, b"")})) as file:
        for name in ("first", "last"):
            assert file.tensors[name].shape == ne[::-1] and file.tensors[name].n_bytes == 0
            assert file.raw(name).size == 0 and file.array_of(name).shape == ne[::-1]
            file.release(name)
        np.testing.assert_array_equal(file.array_of("norm"), np.arange(8))


def test_loads_name_of_64_bytes_and_scalar_without_dimensions(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(assemble([], [tensor_info("n" * 64, ())], np.float32(2.5).tobytes()))
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.array_of("n" * 64).tolist() == [2.5]


def test_loads_without_padding_at_the_end(tmp_path: Path) -> None:
    data = gguf_bytes({}, NORM)
    (tmp_path / "bare.gguf").write_bytes(data)
    (tmp_path / "padded.gguf").write_bytes(data + bytes(32))
    for name in ("bare.gguf", "padded.gguf"):
        with open_gguf(tmp_path / name) as file:
            np.testing.assert_array_equal(file.array_of("norm"), np.arange(8))


# the map


def test_release_keeps_the_data(tmp_path: Path) -> None:
    """Dropping pages is invisible: the same bytes come back, and neighbours are untouched."""
    rng = np.random.default_rng(0)
    big = rng.standard_normal((64, 1000)).astype(np.float32)
    with open_gguf(write_gguf(tmp_path / "x.gguf", {}, {**NORM, "big": big, "after": NORM["norm"]})) as file:
        view = file.raw("big")
        for name in file.tensors:
            file.release(name)
        np.testing.assert_array_equal(view.view(np.float32), big)
        np.testing.assert_array_equal(file.array_of("after"), np.arange(8))


def test_views_outlive_close(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "x.gguf", {"name": "tiny"}, NORM))
    view = file.raw("norm")
    file.close()
    file.close()
    np.testing.assert_array_equal(view.view(np.float32)[0], np.arange(8))
    assert "closed" in refusal(GGUFError, lambda: file.raw("norm"))


def test_close_unmaps(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "x.gguf", {"name": "tiny"}, NORM)) as file:
        file.array_of("norm")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()
    assert "closed" in refusal(GGUFError, lambda: file.str("name"))


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """A sparse file of 1 TiB opens at once: weights are not touched."""
    path = tmp_path / "x.gguf"
    path.write_bytes(assemble([], [tensor_info("w", (2**20, 2**18))]))
    try:
        os.truncate(path, path.stat().st_size + (1 << 40))
    except OSError:
        pytest.skip("the file system has no sparse files of 1 TiB")
    with open_gguf(path) as file:
        assert file.tensors["w"].n_bytes == 1 << 40
        assert file.raw("w")[-1, -1] == 0


# paths


def test_bad_paths(tmp_path: Path) -> None:
    """A directory, a fifo (which must not block), a device, an empty or missing file, a NUL: each one line."""
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "fifo.gguf")
    cases = {
        tmp_path: "not a regular file",
        tmp_path / "fifo.gguf": "not a regular file",
        Path("/dev/null"): "not a regular file",
        tmp_path / "empty.gguf": "the file is empty",
        tmp_path / "nowhere.gguf": "No such file",
        tmp_path / "nul\0.gguf": "null",
        tmp_path / "empty.gguf" / "x.gguf": "Not a directory",
        tmp_path / ("n" * 300): "too long",
    }
    for path, words in cases.items():
        assert words in refusal(GGUFError, lambda path=path: open_gguf(path))  # type: ignore[misc]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {}, NORM)
    path.chmod(0)
    assert "Permission denied" in refusal(GGUFError, lambda: open_gguf(path))


def test_path_may_be_text(tmp_path: Path) -> None:
    with open_gguf(str(write_gguf(tmp_path / "x.gguf", {}, NORM))) as file:
        assert isinstance(file, GGUFFile) and file.path == tmp_path / "x.gguf"
