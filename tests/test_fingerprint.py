"""The fingerprint of a model: each thing that changes logits or ids counts in itself, and loading stays quick."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf
from model_changes import OTHERS, nudged, written
from tokenizer_vocabs import bpe_metadata

from mixkv.kernels import default_backend
from mixkv.kernels.ggml import WeightType
from mixkv.models.config import ModelConfig
from mixkv.models.fingerprint import fingerprint, tensor_digest
from mixkv.models.gguf import open_gguf
from mixkv.models.gguf_types import TensorInfo
from mixkv.models.layers import Attention, Recurrent
from mixkv.models.registry import load_model, read_config
from mixkv.models.rope import RopeConfig


def fingerprint_of(path: Path) -> str:
    with open_gguf(path) as gguf:
        return load_model(gguf, default_backend()).fingerprint


def test_each_change_gives_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    """One that is seen only together with another would hide."""
    changes = [None, None, *OTHERS.values()]
    found = [fingerprint_of(written(tmp_path / f"{i}.gguf", change)) for i, change in enumerate(changes)]
    assert found[0] == found[1] and len(set(found)) == len(OTHERS) + 1


def other_value(value: Any) -> Any:
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 0
    if isinstance(value, tuple):
        return (*value, "x")
    return value + 1 if isinstance(value, int) else value * 1.5 + 0.5


@pytest.mark.parametrize("name", [f.name for f in fields(ModelConfig) if f.name not in ("name", "layers")])
def test_every_hyper_parameter_counts(tmp_path: Path, name: str) -> None:
    """Those that a later version adds as well."""
    with open_gguf(written(tmp_path / "m.gguf")) as gguf:
        config = read_config(gguf)
        other = replace(config, **{name: other_value(getattr(config, name))})
        assert fingerprint(other, gguf.metadata, {}) != fingerprint(config, gguf.metadata, {})


def with_mixer(config: ModelConfig, mixer: Attention | Recurrent) -> ModelConfig:
    """The last layer's changed, the others left."""
    return replace(config, layers=(*config.layers[:-1], replace(config.layers[-1], mixer=mixer)))


@pytest.mark.parametrize("name", [f.name for f in fields(Attention) if f.name != "rope"])
def test_every_field_of_a_layer_counts(tmp_path: Path, name: str) -> None:
    """Of any layer, not of the first alone."""
    with open_gguf(written(tmp_path / "m.gguf")) as gguf:
        config = read_config(gguf)
        attention = config.attentions[0]
        other = with_mixer(config, replace(attention, **{name: other_value(getattr(attention, name))}))
        recurrent = with_mixer(config, Recurrent((1,), None))
        found = {fingerprint(c, gguf.metadata, {}) for c in (config, other, recurrent)}
        assert len(found) == 3


@pytest.mark.parametrize("name", [f.name for f in fields(RopeConfig)])
def test_every_parameter_of_rope_counts(tmp_path: Path, name: str) -> None:
    with open_gguf(written(tmp_path / "m.gguf")) as gguf:
        config = read_config(gguf)
        attention = config.attentions[0]
        rope = replace(attention.rope, **{name: other_value(getattr(attention.rope, name))})
        other = with_mixer(config, replace(attention, rope=rope))
        assert fingerprint(other, gguf.metadata, {}) != fingerprint(config, gguf.metadata, {})


def test_every_tensor_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", OTHERS["rope_freqs"])
    wanted = fingerprint_of(path)
    with open_gguf(path) as gguf:
        names = list(gguf.tensors)
    for name in names:

        def change(metadata: dict[str, Any], tensors: dict[str, Any], name: str = name) -> None:
            OTHERS["rope_freqs"](metadata, tensors)
            nudged(name, -1)(metadata, tensors)

        assert fingerprint_of(written(tmp_path / "c.gguf", change)) != wanted, name


@pytest.mark.parametrize("key", ["merges", "tokens", "pre"])
def test_vocabularies_with_merges(tmp_path: Path, key: str) -> None:
    """The order of merges and the pre-tokenizer decide how a text becomes ids."""
    metadata, tensors = tiny_llama(n_layers=1)
    metadata = {k: v for k, v in metadata.items() if not k.startswith("tokenizer.")} | bpe_metadata()
    values = metadata[f"tokenizer.ggml.{key}"]
    changed = [*values[:-2], values[-1], values[-2]] if isinstance(values, list) else "qwen2"
    n_vocab = len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    tensors |= {name: np.ones((n_vocab, 32), np.float32) for name in ("token_embd.weight", "output.weight")}
    one = fingerprint_of(write_gguf(tmp_path / "one.gguf", metadata, tensors))
    other = fingerprint_of(write_gguf(tmp_path / "other.gguf", metadata | {f"tokenizer.ggml.{key}": changed}, tensors))
    assert one != other


def digest_of(raw: np.ndarray) -> bytes:
    return tensor_digest(TensorInfo("w", WeightType.F32, (1, raw.size // 4), 0, raw.size), raw.reshape(1, -1))


@pytest.mark.parametrize("n_bytes", [1, 7, 8, 9, 34, 4096, 65_537, 100_003, 1_000_000, 40_000_006])
def test_four_kilobytes_anywhere_in_a_tensor_are_noticed(n_bytes: int) -> None:
    """A fine-tune may leave the beginning of every tensor alone, and train but a few rows of the vocabulary."""
    rng = np.random.default_rng(n_bytes)
    raw = rng.integers(0, 256, n_bytes, np.uint8)
    before, run = digest_of(raw), min(4096, n_bytes)
    for start in {0, n_bytes - run, *rng.integers(0, n_bytes - run + 1, 40).tolist()}:
        raw[start : start + run] ^= 1
        assert digest_of(raw) != before, start
        raw[start : start + run] ^= 1
    raw[-1] ^= 1
    assert digest_of(raw) != before


def test_small_tensors_are_read_whole() -> None:
    """Norms and biases are the smallest part of a fine-tune."""
    raw = np.zeros(65_535, np.uint8)
    before = digest_of(raw)
    for at in range(0, raw.size, 97):
        raw[at] ^= 1
        assert digest_of(raw) != before, at
        raw[at] ^= 1


def test_large_tensors_are_not_read_whole() -> None:
    """Hashing every byte would double the time that loading takes: of single bytes few are looked at."""
    rng = np.random.default_rng(0)
    raw = np.zeros(40 << 20, np.uint8)
    before, noticed = digest_of(raw), 0
    for at in rng.integers(0, raw.size, 100):
        raw[at] ^= 1
        noticed += digest_of(raw) != before
        raw[at] ^= 1
    assert noticed < 5


def test_the_order_in_which_tensors_are_taken_does_not_count(tmp_path: Path) -> None:
    """It is the program's, and may change with its next version."""
    with open_gguf(written(tmp_path / "m.gguf")) as gguf:
        one, other = (
            fingerprint(read_config(gguf), gguf.metadata, d) for d in ({"a": b"1", "b": b"2"}, {"b": b"2", "a": b"1"})
        )
    assert one == other
