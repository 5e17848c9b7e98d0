"""DeepSeek-V2 and V3: one row a token, whatever the file's matrices are called; and what its files may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attention_oracle import nmse
from model_tools import logits_of
from tiny_families import families
from tiny_parts import TinyFile, whole

import mixkv
from mixkv.cli.inspect_layers import layer_words
from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.kv_plan import plan_layers
from mixkv.engine.memory import plan_memory
from mixkv.engine.state.mixed import RowBytes
from mixkv.kernels import default_backend
from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import HeadStatistics
from mixkv.models.layers import Attention
from mixkv.models.registry import load_model, read_config

FILES = families()
SPLIT, MERGED, LITE = (FILES[name] for name in ("deepseek2", "deepseek2, merged", "deepseek2, Lite"))
IDS = [5, 9, 30, 7, 41, 8] * 9
MIXED = KVCacheConfig(mixed_kv_cache=True, hot_window=16, sink_tokens=4)


def write(tmp_path: Path, tiny: TinyFile, **keys: object) -> Path:
    found = tiny.keys | {key.replace("__", "."): value for key, value in keys.items()}
    return replace(tiny, keys={k: v for k, v in found.items() if v is not None}).write(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["deepseek2", "deepseek2, merged", "deepseek2, Lite"])
def test_a_token_is_one_row_of_all_heads(tmp_path: Path, name: str) -> None:
    """Its values were kept beside its keys, or its keys for each head: 4 times the bytes and more."""
    path = FILES[name].write(tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        config = read_config(gguf)
    for a in config.attentions:
        assert a.latent is not None and (a.n_heads, a.n_kv_heads) == (4, 1)
        assert a.kv_numbers == a.head_dim_k == a.latent.rank + a.latent.n_rot and a.head_dim_v == a.latent.rank
        plan = CachePlan.of(KVCacheConfig(), config.layers)
        rows = RowBytes.of(a.kv_shape, [plan.format(0)])
        assert (rows.hot, rows.elements) == (2 * a.head_dim_k, a.head_dim_k)


def test_both_kinds_of_files_are_one_model(tmp_path: Path) -> None:
    """The matrix for keys, turned over, is what files of 2025 on have; the rest of each head's rows is for values."""
    rank, heads, plain, value = 32, 4, 32, 24
    split, numbers = SPLIT, SPLIT.tensors()
    merged = dict(numbers)
    for i in range(2):
        of_key, of_value = (merged.pop(f"blk.{i}.attn_{side}_b.weight") for side in "kv")
        assert isinstance(of_key, np.ndarray) and isinstance(of_value, np.ndarray)
        both = np.concatenate([of_key.transpose(0, 2, 1), of_value], axis=1)
        merged[f"blk.{i}.attn_kv_b.weight"] = np.ascontiguousarray(both.reshape(heads * (plain + value), rank))
    keys = dict(split.keys) | {"attention.key_length": plain + 8, "attention.value_length": value}
    keys = {k: v for k, v in keys.items() if not k.endswith("_mla")} | {"attention.head_count_kv": heads}

    class Written(TinyFile):
        def tensors(self, kind: str = "F32") -> dict:
            return merged

    other = Written(split.arch, split.shapes, keys)
    logits = []
    for tiny, name in ((split, "split"), (other, "merged")):
        with open_gguf(tiny.write(tmp_path / name)) as gguf:
            model = load_model(gguf, default_backend(), n_ctx=128, exact=True)
        logits.append(logits_of(model, IDS, [20], type_k="f32", type_v="f32"))
    assert nmse(logits[1], logits[0].astype(np.float64)) < 1e-11


@pytest.mark.parametrize("name", ["deepseek2", "deepseek2, merged"])
def test_the_cache_is_planned_by_its_keys(tmp_path: Path, name: str) -> None:
    """type_v says nothing where values are part of keys; and keys that end within a block of their rotation, of whose
    32 numbers 20 are values, are not rotated, whatever is asked for."""
    path = FILES[name].write(tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        heads = HeadStatistics(gguf, default_backend())
        heads.read()
    for settings in (MIXED, replace(MIXED, type_v="f16", rotate="on"), replace(MIXED, type_k="q8_0", type_v="q4_0")):
        for layer in plan_layers(heads, settings):
            f = layer.format
            assert f is not None and layer.k_bias is not None, "the keys were looked at"
            assert (f.type_k, f.hot_k, f.rotate_k) == (f.type_v, f.hot_v, f.rotate_v)
            assert not (f.rotate_k and name == "deepseek2, merged")
    rotated = CachePlan.of(replace(MIXED, rotate="on"), heads.config.layers)
    assert [f and f.rotate_k for f in rotated.layers] == [name == "deepseek2"] * 2


def test_matrices_that_are_turned_over_are_counted(tmp_path: Path) -> None:
    """Of quantized merged files they are float32, several times what stands in the file."""
    layer = {k[6:]: shape for k, shape in MERGED.shapes.items() if k.startswith("blk.0.")}
    tiny = whole("deepseek2", [layer], **{k: v for k, v in MERGED.keys.items() if k != "block_count"})
    with open_gguf(replace(tiny, keys=tiny.keys | {"expert_count": 0}).write(tmp_path / "m.gguf")) as gguf:
        config = read_config(gguf)
        plan = CachePlan.of(KVCacheConfig(), config.layers)
        planned = plan_memory(gguf, config, plan, default_backend(), n_ctx=64, n_batch=32)
        plain = replace(config.layers[0].mixer, latent=None)  # type: ignore[type-var]
        assert isinstance(plain, Attention)
        without = replace(config, layers=(replace(config.layers[0], mixer=plain),))
        less = plan_memory(gguf, without, plan, default_backend(), n_ctx=64, n_batch=32)
    assert planned.weights - less.weights == 4 * 4 * 16 * 20


@pytest.mark.parametrize(
    ("tiny", "keys", "words"),
    [
        (SPLIT, {"attention__kv_lora_rank": None}, "kv_lora_rank"),
        (SPLIT, {"attention__kv_lora_rank": 0}, "kv_lora_rank is 0"),
        (SPLIT, {"attention__kv_lora_rank": 1020}, "more than 1024 numbers"),
        (SPLIT, {"attention__kv_lora_rank": 31}, "has shape"),
        (SPLIT, {"rope__dimension_count": 40}, "dimension_count is 40, but must lie in 1 to 39"),
        (SPLIT, {"rope__dimension_count": 0}, "dimension_count is 0"),
        (SPLIT, {"rope__dimension_count": 7}, "must be even"),
        (SPLIT, {"attention__key_length_mla": 4000}, "key_length_mla is 4000"),
        (SPLIT, {"attention__value_length_mla": None}, "value_length_mla"),
        (SPLIT, {"attention__q_lora_rank": None}, "attn_q.weight' is missing"),
        (SPLIT, {"attention__head_count": 3}, "has shape"),
        (SPLIT, {"expert_group_count": 5}, "do not divide 12 experts"),
        (SPLIT, {"expert_gating_func": 9}, "expert_gating_func is 9"),
        (SPLIT, {"attention__key_length_mla": None, "attention__key_length": 40}, "attn_kv_b.weight' is missing"),
        (MERGED, {"attention__key_length": 30}, "has shape"),
        (MERGED, {"attention__value_length": 2000}, "value_length is 2000"),
        (LITE, {"attention__q_lora_rank": 32}, "attn_q_a.weight' is missing"),
        (LITE, {"attention__temperature_scale": float("nan")}, "temperature_scale"),
    ],
)
def test_nonsense_is_one_line(tmp_path: Path, tiny: TinyFile, keys: dict[str, object], words: str) -> None:
    path = write(tmp_path, tiny, **keys)
    with pytest.raises(GGUFError, match=words) as caught:
        mixkv.load(path, n_threads=1)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_inspect_says_what_is_kept(tmp_path: Path) -> None:
    """It called rows keys of one head, as if values came on top."""
    with open_gguf(SPLIT.write(tmp_path / "m.gguf")) as gguf:
        words = layer_words(read_config(gguf).layers[0])
    assert words["mixer"] == "latent attention, 4 heads of 40 (V 24) on rows of 32 + 8, 8 dimensions rotate"
    assert words["keeps"] == "every token, 80 bytes each in FP16"
