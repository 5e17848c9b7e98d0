"""KVCacheConfig: what a user says about the cache, checked; and CachePlan: what that means for a given model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mixkv.kernels import LayerFormat, cache_type
from mixkv.kernels.errors import ConfigError
from mixkv.kernels.formats import check_q4_scale
from mixkv.kernels.numeric import hadamard_width
from mixkv.models.layers import Attention, LayerSpec

ROTATE = ("auto", "on", "off")
KV_PLANS = ("auto", "off")
ROTATE_BELOW_BITS = 5.5
"""`rotate = auto` turns K or V into rotated space for cold types of up to this many bits (5-bit types included)."""

LAYER_KEYS = ("type_k", "type_v", "rotate")


@dataclass(frozen=True)
class KVCacheConfig:
    """Settings of the KV cache.

    mixed_kv_cache: recent tokens exact, old ones in the cold types; off: one uniform type (llama-cli's meaning).
    hot_window: newest tokens kept in FP16 (at least so many, at most 15 more). sink_tokens: first tokens kept in FP16.
    type_k, type_v: f32, f16, q8_0 or q4_0; None is q4_0 for the mixed cache and f16 without it; where values are part
    of keys (latent attention) type_k counts for both. rotate: Hadamard rotation, auto = on for quantized types of 5
    bits and fewer. q4_scale: what Q4_0 rows take as a block's scale, unbiased (products keep their size) or plain
    (GGML's own, the largest value / -8). rollback_reserve: newest tokens that `truncate` can take back exactly,
    whatever the window. kv_plan: auto gives the mixed cache's keys more bits, or another rotation, in layers whose
    weights say that they need it (kv_plan.py); off: never. per_layer: {layer: {type_k, type_v, rotate}} where layers
    differ; these are not planned.
    """

    mixed_kv_cache: bool = False
    hot_window: int = 512
    sink_tokens: int = 16
    type_k: str | None = None
    type_v: str | None = None
    rotate: str = "auto"
    q4_scale: str = "unbiased"
    rollback_reserve: int = 0
    kv_plan: str = "auto"
    per_layer: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.mixed_kv_cache, bool):
            raise ConfigError(f"mixed_kv_cache {self.mixed_kv_cache!r} must be True or False")
        for name in ("hot_window", "sink_tokens", "rollback_reserve"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
                raise ConfigError(f"{name} {value!r} must be a number of tokens, 0 or more")
        _check_layer(self.type_k, self.type_v, self.rotate)
        check_q4_scale(self.q4_scale)
        if self.kv_plan not in KV_PLANS:
            raise ConfigError(f"kv_plan {self.kv_plan!r} must be one of {', '.join(KV_PLANS)}")
        for layer, settings in self.per_layer.items():
            if not isinstance(layer, int) or layer < 0:
                raise ConfigError(f"per_layer key {layer!r} must be a layer number")
            if unknown := set(settings) - set(LAYER_KEYS):
                raise ConfigError(f"per_layer[{layer}] has no setting {min(unknown)!r}: use {', '.join(LAYER_KEYS)}")
            _check_layer(settings.get("type_k"), settings.get("type_v"), settings.get("rotate", "auto"))

    @classmethod
    def from_keywords(cls, **settings: Any) -> KVCacheConfig:
        """From keywords; an unknown one is a ConfigError that lists those there are."""
        known = [f.name for f in fields(cls)]
        if unknown := set(settings) - set(known):
            raise ConfigError(f"unknown cache setting {min(unknown)!r}: use {', '.join(known)}")
        return cls(**settings)


def _check_layer(type_k: str | None, type_v: str | None, rotate: str) -> None:
    for kind in (type_k, type_v):
        if kind is not None:
            cache_type(kind)
    if rotate not in ROTATE:
        raise ConfigError(f"rotate {rotate!r} must be one of {', '.join(ROTATE)}")


@dataclass(frozen=True)
class CachePlan:
    """The cache of one model: a format for each layer and the policy's numbers. hot_window None: never cold.

    layers: None for those that keep no keys of their own. Layers that see a window have one type, hot and cold.
    """

    layers: tuple[LayerFormat | None, ...]
    hot_window: int | None
    sink_tokens: int
    rollback_reserve: int = 0

    @classmethod
    def of(cls, config: KVCacheConfig, layers: Sequence[LayerSpec]) -> CachePlan:
        """Resolve `config` for a model of these layers: only layers that attend to everything turn cold. ConfigError if
        per_layer names a layer that the model lacks, or that keeps nothing which could turn cold."""
        if beyond := [i for i in config.per_layer if i >= len(layers)]:
            raise ConfigError(f"per_layer names layer {beyond[0]}, but the model has layers 0 to {len(layers) - 1}")
        formats = tuple(_format_of(config, i, layer) for i, layer in enumerate(layers))
        floats = all(
            cache_type(f.type_k).is_float and cache_type(f.type_v).is_float
            for layer, f in zip(layers, formats, strict=True)
            if f is not None and turns_cold(layer)
        )
        if config.mixed_kv_cache and not floats:
            return cls(formats, config.hot_window, config.sink_tokens, config.rollback_reserve)
        # Uniform caches are this machinery with other settings: float types are hot for ever (so are cold types that
        # lose nothing, bit for bit), quantized ones have no window and no sinks, so that a token is quantized as soon
        # as its tile is full.
        return cls(formats, None if floats else 0, 0, config.rollback_reserve)

    def format(self, layer: int) -> LayerFormat:
        """Of a layer that keeps keys."""
        found = self.layers[layer]
        assert found is not None, "this layer keeps no keys"
        return found

    def within(self, n_ctx: int) -> CachePlan:
        """The plan for a context of n_ctx tokens. If the window covers it nothing turns cold, so nothing is rotated
        either: the cache is a plain FP16 one, bit for bit."""
        if self.hot_window is None or self.hot_window < n_ctx:
            return self
        layers = tuple(f and LayerFormat(f.hot_k, f.hot_v, f.hot_k, f.hot_v) for f in self.layers)
        return CachePlan(layers, None, 0, self.rollback_reserve)


def turns_cold(layer: LayerSpec) -> bool:
    """Whether a layer keeps keys for ever, of its own: those that it need not keep exactly."""
    return isinstance(layer.mixer, Attention) and not layer.mixer.sees and layer.mixer.kv_from is None


def _format_of(config: KVCacheConfig, i: int, layer: LayerSpec) -> LayerFormat | None:
    mixer = layer.mixer
    if i in config.per_layer and not turns_cold(layer):
        sees = mixer.sees if isinstance(mixer, Attention) else ""
        what = f"sees {sees}, which is kept exactly" if sees else "keeps no keys of its own"
        raise ConfigError(f"per_layer names layer {i}, but that one {what}: leave it out")
    if not isinstance(mixer, Attention) or mixer.kv_from is not None:
        return None
    chosen = as_kept(_layer_format(config, config.per_layer.get(i, {})), mixer)
    return LayerFormat(chosen.hot_k, chosen.hot_v, chosen.hot_k, chosen.hot_v) if mixer.sees else chosen


def as_kept(f: LayerFormat, attention: Attention) -> LayerFormat:
    """The format of a layer: where its values are part of its keys, that of its keys for both, rotated only if the
    rotation does not mix values with the rest."""
    if not attention.v_in_k:
        return f
    rotate = f.rotate_k and attention.head_dim_v % hadamard_width(attention.head_dim_k) == 0
    q4_scale = f.q4_scale if f.type_k == "q4_0" else "plain"
    return LayerFormat(f.type_k, f.type_k, f.hot_k, f.hot_k, rotate, rotate, q4_scale)


def _layer_format(config: KVCacheConfig, override: Mapping[str, str]) -> LayerFormat:
    default = "q4_0" if config.mixed_kv_cache else "f16"
    type_k = override.get("type_k") or config.type_k or default
    type_v = override.get("type_v") or config.type_v or default
    rotate = override.get("rotate", config.rotate)

    def rotated(kind: str) -> bool:
        return rotate == "on" or (rotate == "auto" and cache_type(kind).bits <= ROTATE_BELOW_BITS)

    def hot(kind: str) -> str:
        return "f32" if kind == "f32" else "f16"

    q4_scale = config.q4_scale if "q4_0" in (type_k, type_v) else "plain"  # equal caches have equal formats
    return LayerFormat(type_k, type_v, hot(type_k), hot(type_v), rotated(type_k), rotated(type_v), q4_scale)
