"""Llama 4: chunks that end within a prompt, and what its files may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from family_oracle import Oracle
from model_tools import logits_of
from tiny_families import families
from tiny_parts import VOCAB

import mixkv
from mixkv.cli.inspect_layers import layer_words
from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.memory import plan_memory
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import default_backend
from mixkv.kernels.errors import ConfigError, GGUFError
from mixkv.models.config import ModelConfig
from mixkv.models.families.llama4 import Llama4
from mixkv.models.gguf import open_gguf
from mixkv.models.layers import Attention
from mixkv.models.registry import read_config
from mixkv.models.weights import Weights

TINY = families()["llama4"]
IDS = np.random.default_rng(5).integers(3, VOCAB, 90).tolist()
F32_CACHE = {"type_k": "f32", "type_v": "f32"}


def write(tmp_path: Path, **keys: object) -> Path:
    return replace(TINY, keys=TINY.keys | {k.replace("__", "."): v for k, v in keys.items()}).write(tmp_path / "m.gguf")


def config_of(path: Path) -> ModelConfig:
    with open_gguf(path) as gguf:
        return read_config(gguf)


def with_chunks(path: Path, chunk: int) -> Llama4:
    """The model, its chunks this long."""
    with open_gguf(path) as gguf:
        config = read_config(gguf)
        layers = tuple(
            replace(layer, mixer=replace(layer.mixer, chunk=chunk))
            if isinstance(layer.mixer, Attention) and layer.mixer.chunk
            else layer
            for layer in config.layers
        )
        return Llama4(replace(config, layers=layers).for_context(512), Weights(gguf, default_backend(), exact=True))


@pytest.mark.parametrize("chunk", [7, 24, 40, 90])
@pytest.mark.parametrize("cuts", [[1, 40, 80], [24, 48], [89]])
def test_a_query_reads_its_own_chunk(tmp_path: Path, chunk: int, cuts: list[int]) -> None:
    """Pieces that end at a border, before it, and far behind it, over several chunks."""
    path = TINY.write(tmp_path / "m.gguf")
    oracle = Oracle(path, 512)
    oracle.chunk = chunk
    assert nmse(logits_of(with_chunks(path, chunk), IDS, cuts, **F32_CACHE), oracle.logits(IDS)) <= 1e-10


def test_layers_are_what_llama_cpp_makes_of_them(tmp_path: Path) -> None:
    def layers(**keys: object) -> list[tuple[int, bool, str, bool]]:
        found = config_of(write(tmp_path, **keys)).attentions
        return [(a.chunk, a.rope is not None, a.qk_norm, a.temperature is not None) for a in found]

    local, whole = (8192, True, "unit", False), (0, False, "", True)
    assert layers() == [local] * 3 + [whole, local]
    assert layers(attention__sliding_window=1024) == layers(), "8192 is a constant"
    assert layers(attention__sliding_window=0) == [(0, True, "unit", False)] * 5
    two = layers(attention__sliding_window_pattern=2)
    assert [chunk for chunk, *_ in two] == [8192, 0, 8192, 0, 8192] and two[1][1:] == local[1:]
    bases = config_of(write(tmp_path, rope__freq_base=7e5, rope__freq_base_swa=3e4)).attentions
    assert [a.rope and a.rope.freq_base for a in bases] == [3e4] * 3 + [None, 3e4]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interleave_moe_layer_step": np.int32(-1)}, "interleave_moe_layer_step"),
        ({"expert_used_count": 7}, "expert_used_count is 7, but there are 6"),
        ({"rope__freq_base_swa": -1.0}, "freq_base_swa is -1.0, but must be a positive"),
        ({"attention__sliding_window_pattern": [True, False]}, "2 flags for 5 layers"),
        ({"interleave_moe_layer_step": 3}, "tensor 'blk.1.ffn_gate.weight' is missing"),
    ],
)
def test_nonsense_is_one_line(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    path = write(tmp_path, **keys)
    with pytest.raises(GGUFError, match=words) as caught:
        mixkv.load(path, n_threads=1)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_chunks_are_kept_exactly_and_counted(tmp_path: Path) -> None:
    """A ring of 8192 and a step were planned for a context of 64, and a chunk cannot be made cold."""
    config = config_of(TINY.write(tmp_path / "m.gguf"))
    settings = KVCacheConfig(mixed_kv_cache=True, hot_window=16, sink_tokens=4)
    plan = CachePlan.of(settings, config.layers)
    assert [f and f.type_k for f in plan.layers] == ["f16", "f16", "f16", "q4_0", "f16"]
    with pytest.raises(ConfigError, match="layer 0, but that one sees a chunk of 8192 tokens"):
        CachePlan.of(replace(settings, per_layer={0: {"type_k": "q8_0"}}), config.layers)
    cache = KVCache(config, plan, default_backend(), n_ctx=64, chunk=32)
    assert [s.group.kind for s in cache.states] == ["chunked", "mixed"]
    with open_gguf(tmp_path / "m.gguf") as gguf:
        planned = plan_memory(gguf, config, plan, default_backend(), n_ctx=64, n_batch=32).cache
    chunks = 4 * 64 * 128  # rows of K and V, 2 heads of 16 numbers, 2 bytes each
    assert chunks <= planned <= chunks + 2 * 64 * 128


def test_inspect_says_what_is_kept(tmp_path: Path) -> None:
    """A layer that sees its chunk kept every token there."""
    words = [layer_words(layer) for layer in config_of(TINY.write(tmp_path / "m.gguf")).layers]
    assert words[0]["mixer"] == "attention, 4 heads of 16 on 2, chunks of 8192, QK norm without a gain"
    assert words[0]["keeps"] == "the newest chunk of 8192 tokens, 128 bytes each"
    assert words[3]["mixer"] == "attention, 4 heads of 16 on 2, no rotation, temperature"
    assert words[3]["keeps"] == "every token, 128 bytes each in FP16"
