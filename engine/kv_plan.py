"""Which layers' keys need more than the settings give them, decided at load from the weights alone.

Four bits are enough for most keys, and ruin some: Qwen2's biases, for one, put hundreds into a few dimensions of every
key, whose quantization step then drowns the rest. For each layer typical queries and keys (models/key_sample.py) go
through the
cache's own encoder; what that does to scores is compared with what the content of the keys does to them. The cheapest
option that leaves the content audible is taken: the settings' own first, then the same type with or without rotation,
q8_0, and f16, which is to stay hot. Layers that are fine are left exactly as the settings have them. Only the mixed
cache is planned; a uniform one is what it was asked to be, and so are layers in `per_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mixkv.engine.cache_config import CachePlan, KVCacheConfig, as_kept, turns_cold
from mixkv.engine.state.mixed import RowBytes
from mixkv.kernels import CACHE_TYPES, LayerFormat, cache_type
from mixkv.kernels.formats import decode, encode
from mixkv.kernels.numeric import hadamard
from mixkv.models.key_sample import HeadSample, HeadStatistics
from mixkv.models.layers import Attention, LayerSpec

MOST_LOSS = 0.2
"""Loss (see `score_loss`) up to which a layer's keys are left alone: twice what 4 bits cost ordinary keys."""
LEAST_SIGNAL = 0.25
"""Nats of difference between two keys' scores below which a head hardly chooses, so that its error matters no more."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer's format (None: it keeps no keys) and why. changed: whether it differs from what the settings alone
    give.

    losses: predicted `score_loss` of each option that was looked at ("q4_0 rotated", "q8_0"), in that order.
    k_bias, k_spread: norm of the largest key bias of a head, and of what varies in that head's keys. None and no
    losses: not looked at.
    """

    layer: int
    format: LayerFormat | None
    why: str
    changed: bool = False
    losses: Mapping[str, float] = field(default_factory=dict)
    k_bias: float | None = None
    k_spread: float | None = None


def plan_cache(heads: HeadStatistics, config: KVCacheConfig) -> CachePlan:
    """The cache of the model that `heads` are of: what `config` says, with the layers changed that need it.

    Raises ConfigError as CachePlan.of does.
    """
    plan = CachePlan.of(config, heads.config.layers)
    if not _is_planned(config):
        return plan
    return replace(plan, layers=tuple(layer.format for layer in plan_layers(heads, config)))


def plan_layers(heads: HeadStatistics, config: KVCacheConfig) -> list[LayerPlan]:
    """The plan of every layer, with its reasons. Raises what `plan_cache` raises."""
    model = heads.config
    formats = CachePlan.of(config, model.layers).layers
    plans = [_plan_layer(heads, config, i, base) for i, base in enumerate(formats)]
    return [replace(p, why=p.why + _note_on_bytes(model.layers[p.layer], p.format)) for p in plans]


def _note_on_bytes(spec: LayerSpec, layer: LayerFormat | None) -> str:
    """Small heads are padded to whole blocks, which may cost more than quantizing saves: people should know."""
    if layer is None or not isinstance(spec.mixer, Attention):
        return ""
    rows = RowBytes.of(spec.mixer.kv_shape, [layer])
    if rows.cold < rows.hot or (cache_type(layer.type_k).is_float and cache_type(layer.type_v).is_float):
        return ""
    return (
        f"; saves no memory, {rows.cold} bytes a token against {rows.hot} in FP16, since heads of "
        f"{spec.mixer.head_dim_k} numbers are padded to blocks of 32: use the plain f16 cache"
    )


def _is_planned(config: KVCacheConfig) -> bool:
    return config.kv_plan == "auto" and config.mixed_kv_cache


def _plan_layer(heads: HeadStatistics, config: KVCacheConfig, layer: int, base: LayerFormat | None) -> LayerPlan:
    spec = heads.config.layers[layer]
    attention = spec.mixer
    if base is None or not isinstance(attention, Attention):
        return LayerPlan(layer, base, "keeps no keys of its own")
    if not turns_cold(spec):
        return LayerPlan(layer, base, f"sees {attention.sees}, which is kept exactly")
    if not _is_planned(config):
        return LayerPlan(layer, base, "as the settings say: only the mixed cache is planned, where kv_plan is auto")
    if layer in config.per_layer:
        return LayerPlan(layer, base, "as per_layer says")
    if cache_type(base.type_k).is_float:
        return LayerPlan(layer, base, f"as the settings say: {base.type_k} loses nothing")
    sample = heads.sample(layer)
    if sample is None:
        return LayerPlan(layer, base, "as the settings say: the weights do not tell")
    losses: dict[LayerFormat, float] = {}
    best = base
    for step in _options(base, config.rotate, attention):
        losses |= {option: score_loss(sample, option, attention.scale) for option in step}
        best = min(losses, key=lambda option: losses[option])
        if losses[best] <= MOST_LOSS:
            break
    numbers = ", ".join(f"{loss:.2g} with {_name(option)}" for option, loss in losses.items())
    why = f"scores lose {numbers}; key bias {sample.bias:.3g}, the rest {sample.spread:.3g}"
    named = {_name(option): loss for option, loss in losses.items()}
    return LayerPlan(layer, best, why, best != base, named, sample.bias, sample.spread)


def _name(f: LayerFormat) -> str:
    return f.type_k + " rotated" * f.rotate_k


def _options(base: LayerFormat, rotate: str, attention: Attention) -> list[list[LayerFormat]]:
    """What a layer's keys may be, in steps of equal cost: `base`, then types of as many bits or more, up to f16.

    Where `rotate` is auto a step has both forms of a quantized type.
    """
    kinds = [k for k in CACHE_TYPES.values() if cache_type(base.type_k).bits <= k.bits <= cache_type("f16").bits]
    steps = [[base]]
    for kind in sorted(kinds, key=lambda k: k.bits):
        turns = (False, True) if rotate == "auto" and not kind.is_float else (rotate == "on",)
        scale = base.q4_scale if "q4_0" in (kind.name, base.type_v) else "plain"
        step = [as_kept(replace(base, type_k=kind.name, rotate_k=turn, q4_scale=scale), attention) for turn in turns]
        steps.append([option for option in dict.fromkeys(step) if option != base])
    return [step for step in steps if step]


def score_loss(sample: HeadSample, layer: LayerFormat, scale: float) -> float:
    """How much of the scores' content the keys' cold form destroys: the error's size relative to the content's.

    Error: scale * q.(cold k - k). Content: scale * q.(k - k'), over sqrt(2), for keys k, k' of other tokens at the same
    position, and at least LEAST_SIGNAL. Sizes are root mean squares over queries and keys; the worst head counts. What
    is the same for all keys of a query does not: softmax takes it out. Ordinary keys in q4_0 lose 0.08 to 0.12.
    """
    q, k, other = (hadamard(x) if layer.rotate_k else x for x in (sample.q, sample.k, sample.other_k))
    with np.errstate(all="ignore"):
        hot = k.astype(np.float16 if layer.hot_k == "f16" else np.float32).astype(np.float32)
        lost = decode(encode(hot, layer.type_k, layer.q4_scale), layer.type_k, k.shape[2]) - k
        error, content = (scale * q.transpose(1, 0, 2) @ x.transpose(1, 2, 0) for x in (lost, k - other))
        error -= error.mean(axis=2, keepdims=True)  # (heads, queries, keys)
        size, signal = (np.sqrt(np.square(x).mean(axis=(1, 2))) for x in (error, content))
        worst = (size / np.maximum(signal * 0.5**0.5, LEAST_SIGNAL)).max()
    return float(worst) if np.isfinite(worst) else float("inf")
