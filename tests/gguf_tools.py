"""Build small GGUF files byte by byte, good and hostile, without the code under test.

Three heights. `write_gguf(path, metadata, tensors)` writes a correct file from plain values; `tiny_llama()` gives the
two dictionaries of a complete random llama to start from (change an entry, write it, see what happens). The pieces
`string`, `key_value`, `raw_key_value`, `tensor_info` and `assemble` can lie about every length, type and count.
`refusal` runs something that must fail, and checks that it fails as promised.

Values of metadata: int -> uint32, float -> float32, bool, str or bytes -> string, a NumPy scalar -> its own type,
a 1-d array -> array of its own type, a list of str or bytes -> array of strings.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

KINDS = {
    np.dtype(name): GGUFValueType[name.upper()]
    for name in ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "uint64", "int64", "float64"]
}


@dataclass(frozen=True)
class Packed:
    """Tensor data that is packed already. ne in GGUF's order: the row length comes first."""

    ne: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    data: bytes


def refusal(error: type[Exception], action: Callable[[], object]) -> str:
    """Run `action`, which must raise exactly `error`: one line, cheap, nothing left open. Returns the message."""
    gc.disable()  # what waits for the collector counts as left open, and nothing of earlier tests vanishes meanwhile
    files = _open_files()
    tracemalloc.start()
    start = time.process_time()  # CPU time: other jobs on the machine do not count
    try:
        result = action()
    except Exception as problem:
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        assert type(problem) is error, f"{type(problem).__name__}: {problem}"
        message = str(problem)
    else:
        raise AssertionError(f"{error.__name__} expected, got {result!r}")
    finally:
        tracemalloc.stop()
        left_open = [file for file in _open_files() if file not in files]
        gc.enable()
    assert message and "\n" not in message and len(message) < 1000, message
    assert seconds < 1, f"{seconds} s"
    assert peak < 64 << 20, f"{peak} bytes"
    assert not left_open
    return message


def _open_files() -> list[str]:
    """Open descriptors and mapped model files of this process (empty where the system does not say)."""
    if not Path("/proc/self/maps").exists():
        return []
    descriptors = [f"{fd.name}: {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sorted(d for d in descriptors if "/proc/" not in d) + [line for line in maps if ".gguf" in line]


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; `length` lies about its length."""
    raw = text.encode() if isinstance(text, str) else text
    return pack("<Q", len(raw) if length is None else length) + raw


def raw_key_value(key: bytes, kind: int, payload: bytes) -> bytes:
    """Key (with its length in front), type number and value, as they are."""
    return key + pack("<I", kind) + payload


def array(element: int, payload: bytes, length: int) -> bytes:
    """Payload of an array value."""
    return pack("<IQ", element, length) + payload


def encode(value: object) -> tuple[GGUFValueType, bytes]:
    """Type and payload of a plain value (see the top of this file)."""
    if isinstance(value, np.generic):  # first: np.float64 is a float, too
        return KINDS[value.dtype], value.tobytes()
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        value = np.uint32(value)
    elif isinstance(value, float):
        value = np.float32(value)
    if isinstance(value, str | bytes):
        return GGUFValueType.STRING, string(value)
    if isinstance(value, np.ndarray):
        return GGUFValueType.ARRAY, array(KINDS[value.dtype], value.tobytes(), len(value))
    if isinstance(value, list):
        payload = b"".join(string(item) for item in value)
        return GGUFValueType.ARRAY, array(GGUFValueType.STRING, payload, len(value))
    assert isinstance(value, np.generic), f"no GGUF value: {value!r}"
    return KINDS[value.dtype], value.tobytes()


def key_value(key: str, value: object) -> bytes:
    """One entry of the key-value section."""
    kind, payload = encode(value)
    return raw_key_value(string(key), kind, payload)


def tensor_info(
    name: str | bytes, ne: Sequence[int], ggml_type: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """One tensor info; negative dimensions are written as two's complement, as a careless writer would."""
    dims = b"".join(pack("<Q", n % 2**64) for n in ne)
    n_dims = len(ne) if n_dims is None else n_dims
    return string(name) + pack("<I", n_dims) + dims + pack("<IQ", ggml_type, offset % 2**64)


def padding(n_bytes: int, alignment: int = 32) -> bytes:
    """Zeros from n_bytes to the next multiple of alignment."""
    return bytes(-n_bytes % alignment)


def assemble(
    key_values: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_kv: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. Counts are those of the lists unless they are given; -1 becomes 2^64 - 1."""
    n_tensors = len(infos) if n_tensors is None else n_tensors
    n_kv = len(key_values) if n_kv is None else n_kv
    head = magic + pack("<IQQ", version, n_tensors % 2**64, n_kv % 2**64)
    head += b"".join(key_values) + b"".join(infos)
    return head + padding(len(head), alignment) + data if infos else head


def gguf_bytes(metadata: Mapping[str, object], tensors: Mapping[str, np.ndarray | Packed]) -> bytes:
    """A correct file. Arrays are stored as F32, F16 or F64; the last tensor is not padded."""
    alignment = int(metadata.get("general.alignment", 32))  # type: ignore[call-overload]
    infos, data = [], b""
    for name, tensor in tensors.items():
        packed = _packed(tensor)
        data += padding(len(data), alignment)
        infos.append(tensor_info(name, packed.ne, packed.ggml_type, len(data)))
        data += packed.data
    return assemble([key_value(k, v) for k, v in metadata.items()], infos, data, alignment=alignment)


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, np.ndarray | Packed]) -> Path:
    """Write `gguf_bytes` to path and return path."""
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def _packed(tensor: np.ndarray | Packed) -> Packed:
    if isinstance(tensor, Packed):
        return tensor
    kinds = {2: GGMLQuantizationType.F16, 4: GGMLQuantizationType.F32, 8: GGMLQuantizationType.F64}
    return Packed(tensor.shape[::-1], kinds[tensor.dtype.itemsize], tensor.tobytes())


def random_blocks(ggml_type: GGMLQuantizationType, ne: tuple[int, ...], rng: np.random.Generator) -> Packed:
    """Packed weights of any type from random bytes (scales may be huge or NaN: data, not errors)."""
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    n_bytes = int(np.prod(ne)) // block * block_bytes
    return Packed(ne, ggml_type, rng.bytes(n_bytes))


def spm_vocabulary() -> dict[str, object]:
    """A small `llama` (SPM) vocabulary: 3 control tokens, 256 bytes, a few pieces."""
    pieces = ["▁", "▁the", "he", "e", "t", "a", "o", "n", "h", "▁t", "s", "r", "i", "l", "d", ".", ","]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(i) for i in range(len(pieces))], np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def tiny_llama(n_layers: int = 2, seed: int = 0) -> tuple[dict[str, object], dict[str, np.ndarray | Packed]]:
    """Metadata and F32 tensors of a complete random llama (dim 32, 4 heads, 2 KV heads, head_dim 8, ffn 64)."""
    dim, kv_dim, ffn = 32, 16, 64
    vocabulary = spm_vocabulary()
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "tiny random llama",
        "llama.block_count": n_layers,
        "llama.context_length": 128,
        "llama.embedding_length": dim,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        **vocabulary,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, dim)}
    for i in range(n_layers):
        block = f"blk.{i}."
        shapes[block + "attn_norm.weight"] = (dim,)
        shapes[block + "attn_q.weight"] = (dim, dim)
        shapes[block + "attn_k.weight"] = shapes[block + "attn_v.weight"] = (kv_dim, dim)
        shapes[block + "attn_output.weight"] = (dim, dim)
        shapes[block + "ffn_norm.weight"] = (dim,)
        shapes[block + "ffn_gate.weight"] = shapes[block + "ffn_up.weight"] = (ffn, dim)
        shapes[block + "ffn_down.weight"] = (dim, ffn)
    shapes |= {"output_norm.weight": (dim,), "output.weight": (n_vocab, dim)}
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray | Packed] = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.float32(shape[-1]))
    return metadata, tensors


def split_model(source: Path, folder: Path, n_tensors: int) -> list[Path]:
    """The model in parts of `n_tensors` each, written by the reference writer; the parts in order."""
    reader = GGUFReader(source)
    writer = GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=n_tensors)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("model-*.gguf"))
