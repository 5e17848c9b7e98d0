"""The plan of the cache: it acts where keys would drown in their own biases, and nowhere else.

The model that needs it is qwen2-like: small biases everywhere, and in layers 0 and 2 three dimensions of each key head
with one as large as Qwen2.5's, beside weights that make keys of norm 8.
"""

from __future__ import annotations

import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from gguf_tools import Packed, spm_vocabulary, tiny_llama, write_gguf
from model_tools import random_llama
from numpy.typing import NDArray

import mixkv
from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.evaluate.divergence import score_rows
from mixkv.engine.kv_plan import MOST_LOSS, plan_cache, plan_layers
from mixkv.engine.load import demo_model
from mixkv.kernels import LayerFormat, default_backend
from mixkv.kernels.errors import ConfigError
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import HeadStatistics, _row_norms
from mixkv.models.layers import Attention, LayerSpec, Recurrent

F32 = NDArray[np.float32]
Tensors = dict[str, np.ndarray | Packed]
MIXED = KVCacheConfig(mixed_kv_cache=True)
QUANTIZER_ALONE: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 0, "sink_tokens": 0}
LOUD = (0, 2)
N_LAYERS, DIM, N_HEADS, N_KV_HEADS, HEAD_DIM, N_FF = 3, 64, 4, 2, 64, 96


SPECS = [LayerSpec(Attention(4, 2, 8, 8, 1.0, None), None)]
"""A layer that attends to everything: what sizes it has changes no plan."""


def qwen2(bias: float) -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors; bias: the size of the large key biases."""
    vocabulary = spm_vocabulary()
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    q_dim, kv_dim = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
    numbers = {
        "block_count": N_LAYERS, "context_length": 512, "embedding_length": DIM, "feed_forward_length": N_FF,
        "attention.head_count": N_HEADS, "attention.head_count_kv": N_KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM, "rope.freq_base": 1e6,
    }  # fmt: skip
    metadata = {"general.architecture": "qwen2", **{f"qwen2.{k}": v for k, v in numbers.items()}, **vocabulary}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, DIM), "output_norm.weight": (DIM,)}
    for i in range(N_LAYERS):
        shapes |= {
            f"blk.{i}.{name}.bias": (n,) for name, n in (("attn_q", q_dim), ("attn_k", kv_dim), ("attn_v", kv_dim))
        }
        shapes |= {
            f"blk.{i}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (DIM,), "ffn_norm": (DIM,), "attn_q": (q_dim, DIM), "attn_k": (kv_dim, DIM),
                "attn_v": (kv_dim, DIM), "attn_output": (DIM, q_dim), "ffn_gate": (N_FF, DIM), "ffn_up": (N_FF, DIM),
                "ffn_down": (DIM, N_FF),
            }.items()
        }  # fmt: skip
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("bias"):
            tensors[name] = noise * np.float32(0.1 if "attn_v" in name else 0.5)
        else:
            tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.float32(shape[-1]))
    for i in LOUD:
        for head in tensors[f"blk.{i}.attn_k.bias"].reshape(N_KV_HEADS, HEAD_DIM):  # type: ignore[union-attr]
            head[rng.choice(HEAD_DIM, 3, replace=False)] = bias * rng.choice([-1, 1], 3)
    return metadata, tensors


@pytest.fixture(scope="module", params=[20.0, 100.0, 300.0])
def loud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with biases that are large, very large, and as large as they get."""
    return write_gguf(tmp_path_factory.mktemp("loud") / "qwen2.gguf", *qwen2(request.param))


def layers_of(path: Path, config: KVCacheConfig = MIXED) -> tuple[LayerFormat, ...]:
    with open_gguf(path) as gguf:
        return plan_cache(HeadStatistics(gguf, default_backend()), config).layers


def logits(path: Path, ids: NDArray[np.int64], **cache: Any) -> F32:
    return mixkv.load(path, n_threads=1, dense=True, exact=True, **cache).logits(ids)


def test_with_the_plan_kl_divergence_falls_tenfold(loud: Path) -> None:
    ids = np.random.default_rng(1).integers(3, 259, 200)
    base = logits(loud, ids)

    def kld(**settings: Any) -> float:
        scores = score_rows(base, logits(loud, ids, **QUANTIZER_ALONE, **settings), ids)
        return float(scores.kld[32:].mean())

    plain = kld(rotate="off", q4_scale="plain", kv_plan="off")
    assert plain > 0.1, "the biases do harm"
    assert kld() < plain / 10
    assert kld(rotate="off") < plain / 10, "without rotation as well, if that is not wanted"


def test_only_the_layers_with_loud_biases_are_changed(loud: Path) -> None:
    with open_gguf(loud) as gguf:
        plan = plan_layers(HeadStatistics(gguf, default_backend()), MIXED)
        as_set = CachePlan.of(MIXED, SPECS * N_LAYERS).layers
        assert plan_cache(HeadStatistics(gguf, default_backend()), MIXED).layers == tuple(p.format for p in plan)
    for i, p in enumerate(plan):
        assert p.layer == i and p.changed == (i in LOUD) == (p.format != as_set[i])
        assert (p.format.type_v, p.format.rotate_v) == ("q4_0", True), "values stay as they are"
        assert p.format.type_k in (("q8_0", "f16") if i in LOUD else ("q4_0",))
        assert p.k_bias is not None and p.k_spread is not None and (p.k_bias > 3 * p.k_spread) == (i in LOUD)
        assert min(p.losses.values()) <= MOST_LOSS and p.losses["q4_0 rotated"] > MOST_LOSS * (i in LOUD)
        assert all(f"{loss:.2g} with {name}" in p.why for name, loss in p.losses.items())


def test_a_larger_bias_takes_more_bits(tmp_path: Path) -> None:
    kinds = [layers_of(write_gguf(tmp_path / "q.gguf", *qwen2(bias)))[0].type_k for bias in (1, 20, 100, 300)]
    assert kinds == ["q4_0", "q8_0", "q8_0", "f16"]


@pytest.mark.parametrize("rotate", ["on", "off"])
def test_rotation_that_was_asked_for_stays(loud: Path, rotate: str) -> None:
    for layer in layers_of(loud, KVCacheConfig(mixed_kv_cache=True, rotate=rotate)):
        assert layer.rotate_k == layer.rotate_v == (rotate == "on")


def test_settings_win_over_the_plan(loud: Path) -> None:
    """per_layer by layer, kv_plan=off for all; and a uniform cache is the type that it was asked to be."""
    keep = KVCacheConfig(mixed_kv_cache=True, per_layer={0: {"type_k": "q4_0", "rotate": "off"}})
    layers = layers_of(loud, keep)
    assert (layers[0].type_k, layers[0].rotate_k) == ("q4_0", False)
    assert layers[2].type_k != "q4_0"
    for config in (
        KVCacheConfig(mixed_kv_cache=True, kv_plan="off"), KVCacheConfig(type_k="q4_0"), KVCacheConfig(),
        KVCacheConfig(mixed_kv_cache=True, type_k="f16"),
    ):  # fmt: skip
        assert layers_of(loud, config) == CachePlan.of(config, SPECS * N_LAYERS).layers
        with open_gguf(loud) as gguf:
            assert not any(p.changed or p.losses for p in plan_layers(HeadStatistics(gguf, default_backend()), config))
    with pytest.raises(ConfigError, match="kv_plan 'yes' must be one of auto, off"):
        KVCacheConfig(kv_plan="yes")


def test_a_loaded_model_has_the_plan_and_its_sessions_fit(loud: Path, tmp_path: Path) -> None:
    llm = mixkv.load(loud, n_threads=1, dense=True, mixed_kv_cache=True, hot_window=32)
    assert llm.cache.plan.layers == layers_of(loud)
    llm.generate("the old house", max_tokens=80, temperature=0, ignore_eos=True)
    llm.save_session(tmp_path / "s")
    again = mixkv.load(loud, n_threads=1, dense=True, mixed_kv_cache=True, hot_window=32)
    assert again.load_session(tmp_path / "s") == llm.cache.n
    unplanned = mixkv.load(loud, n_threads=1, dense=True, mixed_kv_cache=True, hot_window=32, kv_plan="off")
    with pytest.raises(mixkv.SessionError, match=r"layer 0 = .*and this cache has"):
        unplanned.load_session(tmp_path / "s")


def unchanged(path: Path) -> None:
    for rotate in ("auto", "on", "off"):
        config = KVCacheConfig(mixed_kv_cache=True, rotate=rotate)
        with open_gguf(path) as gguf:
            plan = plan_layers(HeadStatistics(gguf, default_backend()), config)
        assert [p.format for p in plan] == list(CachePlan.of(config, SPECS * len(plan)).layers)
        assert all(list(p.losses) == ["q4_0" + " rotated" * (rotate != "off")] for p in plan), "predicted, and harmless"


@pytest.mark.parametrize("head_dim", [8, 32, 48, 64, 80, 128])
def test_ordinary_models_are_left_alone(tmp_path: Path, head_dim: int) -> None:
    unchanged(random_llama(tmp_path / "a.gguf", head_dim=head_dim, seed=head_dim))
    unchanged(random_llama(tmp_path / "b.gguf", head_dim=head_dim, n_heads=20, n_kv_heads=10))


@pytest.mark.parametrize(
    ("head_dim", "settings", "note"),
    [(8, {"mixed_kv_cache": True}, "72 bytes a token against 64"), (16, {"mixed_kv_cache": True}, ""), (8, {}, ""),
     (16, {"type_k": "q8_0", "type_v": "q8_0"}, "136 bytes a token against 128"), (64, {"type_k": "q8_0"}, "")],
)  # fmt: skip
def test_quantizing_that_saves_nothing_is_said(
    tmp_path: Path, head_dim: int, settings: dict[str, Any], note: str
) -> None:
    """2 KV heads, K and V: a block of 32 takes 18 or 34 bytes, however few of its numbers are in use."""
    with open_gguf(random_llama(tmp_path / "a.gguf", head_dim=head_dim)) as gguf:
        for p in plan_layers(HeadStatistics(gguf, default_backend()), KVCacheConfig(**settings)):
            assert note in p.why and ("saves no memory" in p.why) == bool(note)


def test_the_demo_model_is_left_alone() -> None:
    unchanged(demo_model())


@pytest.mark.parametrize("name", ["data/stories260K-f32", "golden/arch/tiny-llama-ropefreqs", "golden/arch/tiny-qwen2",
                                  "golden/arch/tiny-qwen3", "golden/quant/llama-Q4_K_M"])  # fmt: skip
def test_other_models_with_ordinary_keys_are_left_alone(shared: Path, name: str) -> None:
    unchanged(shared / f"{name}.gguf")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q8_0"])
def test_norms_from_some_columns_are_nearly_those_from_all(tmp_path: Path, kind: str) -> None:
    rows, cols, ggml_type = 96, 2048, GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, cols)).astype(np.float32) * np.linspace(0.1, 3, rows, dtype=np.float32)[:, None]
    gain = np.exp(0.5 * rng.standard_normal(cols)).astype(np.float32)
    packed = quantize(w, ggml_type)
    wanted = np.linalg.norm(dequantize(packed, ggml_type) * gain, axis=1)
    path = tmp_path / "w.gguf"
    write_gguf(path, {"general.architecture": "llama"}, {"w": Packed((cols, rows), ggml_type, packed.tobytes())})
    with open_gguf(path) as gguf:
        some = np.array([5, 7, 90])
        found = _row_norms(gguf, "w", (rows, cols), some, gain, default_backend())
        assert found is not None
        np.testing.assert_allclose(found, wanted[some], rtol=0.15)
        assert _row_norms(gguf, "w", (rows, cols + 32), some, gain, default_backend()) is None


def test_only_slices_are_dequantized_and_it_is_quick(tmp_path: Path) -> None:
    """The matrices for queries and keys of this layer are 21 MB."""
    path = random_llama(tmp_path / "wide.gguf", n_embd=2048, head_dim=64, n_heads=32, n_kv_heads=8, n_layers=1, n_ff=16)
    with open_gguf(path) as gguf:
        start = time.process_time()
        plan_layers(HeadStatistics(gguf, default_backend()), MIXED)
        assert time.process_time() - start < 0.5
        tracemalloc.start()
        plan_layers(HeadStatistics(gguf, default_backend()), MIXED)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 << 20


def broken(name: str, tensors: Tensors) -> None:
    tensor = tensors[name]
    assert isinstance(tensor, np.ndarray)
    tensor.reshape(-1)[:] = np.nan


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda t, name=name: t.pop(name) for name in ("blk.0.attn_k.weight", "blk.0.attn_norm.weight")),
        lambda t: t.update({"blk.0.attn_q.weight": np.zeros((7, 32), np.float32)}),
        lambda t: t.update({"blk.0.attn_k.bias": np.zeros(5, np.float32)}),
        *(lambda t, name=name: broken(name, t) for name in ("blk.0.attn_k.weight", "blk.0.attn_norm.weight")),
        lambda t: t.update({"blk.0.attn_k.bias": np.full(16, np.inf, np.float32)}),
        lambda t: t.update({"blk.0.attn_k.bias": np.full(16, 3e38, np.float32)}),
        lambda t: t["blk.0.attn_norm.weight"].fill(0),
    ],
)  # fmt: skip
def test_weights_that_tell_nothing_change_nothing(tmp_path: Path, damage: Any) -> None:
    """What is wrong with them loading says; the plan makes neither noise nor a decision."""
    metadata, tensors = tiny_llama()
    damage(tensors)
    with open_gguf(write_gguf(tmp_path / "broken.gguf", metadata, tensors)) as gguf, warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = plan_layers(HeadStatistics(gguf, default_backend()), MIXED)
    assert not any(p.changed for p in plan)
    assert plan[1].losses, "the other layer is planned as ever"


def test_layers_that_see_a_window_or_keep_nothing_are_not_planned(loud: Path) -> None:
    """A window is kept exactly, so its keys, however loud, need no more bits; a layer without keys has no format."""
    config = KVCacheConfig(mixed_kv_cache=True)
    window, none = sorted(LOUD)[0], next(i for i in range(N_LAYERS) if i not in LOUD)
    with open_gguf(loud) as gguf:
        heads = HeadStatistics(gguf, default_backend())
        layers = list(heads.config.layers)
        attention = heads.config.attentions[window]
        layers[window] = LayerSpec(replace(attention, window=30), layers[window].ffn)
        layers[none] = LayerSpec(Recurrent((4,), None), layers[none].ffn)
        heads.config = replace(heads.config, layers=tuple(layers))
        plan, formats = plan_layers(heads, config), plan_cache(heads, config).layers
    assert formats[window] == plan[window].format == LayerFormat("f16", "f16", "f16", "f16")
    assert formats[none] is None and plan[none].why.startswith("keeps no keys")
    assert not plan[window].changed and "window of 30" in plan[window].why
    assert [p.changed for p in plan if p.layer != window] == [i in LOUD for i in range(N_LAYERS) if i != window]
