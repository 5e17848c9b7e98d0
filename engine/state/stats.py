"""Tokens and bytes of a sequence's cache: as it is (CacheStats), and as it will be when full (cache_bytes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state import chunked, mixed, recurrent, sliding
from mixkv.engine.state.group import KindStats, group_layers
from mixkv.models.config import ModelConfig


@dataclass(frozen=True)
class CacheStats:
    """Tokens and bytes of a cache, all layers together.

    Bytes are those of stored tokens; `scale_bytes` are part of `cold_bytes`. window_bytes: of layers that see a window
    or a chunk. state_bytes: of recurrent layers. checkpoint_bytes: of what `truncate` may come back to, without the
    pages that the sequence has in use as well. peak_bytes: the most there ever was, the moments inside a prompt's
    pieces included. fp16_bytes: what as many tokens take in a plain FP16 cache. degraded_tokens: tokens read as hot
    whose values were restored from the cold form.
    """

    n_tokens: int
    n_ctx: int
    sink_tokens: int
    hot_tokens: int
    cold_tokens: int
    degraded_tokens: int
    sink_bytes: int
    hot_bytes: int
    cold_bytes: int
    scale_bytes: int
    peak_bytes: int
    fp16_bytes: int
    bits_per_element: float
    window_bytes: int = 0
    state_bytes: int = 0
    checkpoint_bytes: int = 0

    @classmethod
    def of(
        cls, kinds: Sequence[KindStats], *, n_tokens: int, n_ctx: int, peak_bytes: int, checkpoint_bytes: int
    ) -> CacheStats:
        """Of all groups of layers together: bytes are sums; tokens are the same in all groups that count them."""
        elements = sum(s.elements for s in kinds)
        return cls(
            n_tokens=n_tokens,
            n_ctx=n_ctx,
            sink_tokens=max(s.sink_tokens for s in kinds),
            hot_tokens=max(s.hot_tokens for s in kinds),
            cold_tokens=max(s.cold_tokens for s in kinds),
            degraded_tokens=max(s.degraded_tokens for s in kinds),
            sink_bytes=sum(s.sink_bytes for s in kinds),
            hot_bytes=sum(s.hot_bytes for s in kinds),
            cold_bytes=sum(s.cold_bytes for s in kinds),
            scale_bytes=sum(s.scale_bytes for s in kinds),
            peak_bytes=peak_bytes,
            fp16_bytes=sum(s.fp16_bytes for s in kinds),
            bits_per_element=8 * sum(s.token_bytes for s in kinds) / elements if elements else 0.0,
            window_bytes=sum(s.window_bytes for s in kinds),
            state_bytes=sum(s.state_bytes for s in kinds),
            checkpoint_bytes=checkpoint_bytes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        tokens = self.sink_bytes + self.hot_bytes + self.cold_bytes + self.window_bytes
        return tokens + self.state_bytes + self.checkpoint_bytes


def cache_bytes(model: ModelConfig, plan: CachePlan, n_ctx: int, chunk: int) -> dict[str, int]:
    """Bytes of a full cache of n_ctx tokens at the fullest moment, by the kind of what is kept: from the layers'
    specifications alone. Checkpoints come on top, as many as are made."""
    plan = plan.within(n_ctx)
    found: dict[str, int] = {}
    for group in group_layers(model.layers):
        if group.kind == "recurrent":
            n = recurrent.full_bytes(group)
        else:
            kinds = {"sliding": sliding.full_bytes, "chunked": chunked.full_bytes, "mixed": mixed.full_bytes}
            n = kinds[group.kind](group, plan, n_ctx, chunk)
        found[group.kind] = found.get(group.kind, 0) + n
    return found
