"""Which caches to compare: `f16,q8_0,mixed:hot=64,k=q8_0,mixed` read into configurations.

A variant is `f16`, `f32`, `q8_0` or `q4_0` (a uniform cache of that type) or `mixed`, and may change settings after
a colon. Settings and variants are both parted by commas: an item with `=` belongs to the variant before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixkv.engine.cache_config import KVCacheConfig
from mixkv.kernels import CACHE_TYPES
from mixkv.kernels.errors import ConfigError

BASE = "f16"
"""What the others are measured against."""


def _tokens(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is not a number of tokens")
    return int(text)


SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "hot": ("hot_window", _tokens),
    "sink": ("sink_tokens", _tokens),
    "k": ("type_k", str),
    "v": ("type_v", str),
    "rotate": ("rotate", str),
    "scale": ("q4_scale", str),
    "plan": ("kv_plan", str),
}


@dataclass(frozen=True)
class Variant:
    """One cache to measure. name: as the user wrote it."""

    name: str
    config: KVCacheConfig

    @property
    def is_base(self) -> bool:
        """Whether this is the plain FP16 cache itself."""
        return self.config == BASE_VARIANT.config


def parse_variants(text: str) -> list[Variant]:
    """The variants of a list of caches, in its order; one written twice counts once. ConfigError names the bad item."""
    groups: list[list[str]] = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            raise ConfigError(f"the list of caches {text!r} has an empty item: write for example f16,q4_0,mixed:hot=64")
        if "=" in item and ":" not in item:
            if not groups:
                raise ConfigError(
                    f"the list of caches {text!r} begins with the setting {item!r}: name a cache first, mixed:{item}"
                )
            groups[-1].append(item)
        else:
            kind, _, setting = item.partition(":")
            groups.append([kind, *([setting] if setting else [])])
    variants = {v.name: v for v in (_variant(kind, settings) for kind, *settings in groups)}
    return list(variants.values())


def _variant(kind: str, settings: list[str]) -> Variant:
    name = kind + (":" + ",".join(settings) if settings else "")
    if kind != "mixed" and kind not in CACHE_TYPES:
        raise ConfigError(f"there is no cache {kind!r}: use mixed, {', '.join(CACHE_TYPES)}")
    fields: dict[str, Any] = {"mixed_kv_cache": True} if kind == "mixed" else {"type_k": kind, "type_v": kind}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in SETTINGS or not equals:
            raise ConfigError(
                f"the cache {name}: {setting!r} is no setting; use {', '.join(f'{k}=' for k in SETTINGS)}"
            )
        if kind != "mixed" and key in ("hot", "sink"):
            raise ConfigError(f"the cache {name}: only the mixed cache has {key}=; write mixed:{setting}")
        field, read = SETTINGS[key]
        try:
            fields[field] = read(value)
        except ConfigError as error:
            raise ConfigError(f"the cache {name}: {key}= {error}") from None
    try:
        return Variant(name, KVCacheConfig(**fields))
    except ConfigError as error:
        raise ConfigError(f"the cache {name}: {error}") from None


BASE_VARIANT = Variant(BASE, KVCacheConfig(type_k=BASE, type_v=BASE))
