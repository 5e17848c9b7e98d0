"""Counters for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mixkv.engine.results import GenerationStats
from mixkv.server.work import Workers


class Metrics:
    """What the server did so far, in a registry of its own."""

    def __init__(self, workers: Workers) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("mixkv_requests", "Requests answered", ["path", "status"], registry=registry)
        self._prompt = Counter("mixkv_prompt_tokens", "Prompt tokens, cached ones among them", registry=registry)
        self._cached = Counter("mixkv_cached_tokens", "Prompt tokens that were in the cache", registry=registry)
        self._generated = Counter("mixkv_generated_tokens", "Tokens generated", registry=registry)
        self._prompt_seconds = Histogram("mixkv_prompt_seconds", "Computing a prompt", registry=registry)
        self._decode_seconds = Histogram("mixkv_decode_seconds", "Generating a text", registry=registry)
        Gauge("mixkv_generations_running", "Choices computed now", registry=registry).set_function(
            lambda: workers.running
        )
        Gauge("mixkv_generations_waiting", "Choices that wait for a sequence", registry=registry).set_function(
            lambda: workers.waiting
        )

    def count(self, stats: GenerationStats) -> None:
        """A finished generation."""
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.reused_tokens)
        self._generated.inc(stats.generated_tokens)
        self._prompt_seconds.observe(stats.prompt_seconds)
        self._decode_seconds.observe(stats.decode_seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
