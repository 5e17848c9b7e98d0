"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from mixkv.engine.sampling import SamplingParams

MIB = 1 << 20


@dataclass(frozen=True)
class ServerSettings:
    """alias: the model's name in answers. keys: any of them is let in; none: everybody is. sampling: what a request
    does not say. queue: choices that may wait for a sequence. max_body: bytes of a request. ping_seconds: silence after
    which a stream gets a comment. metrics, props: whether these pages are there. hosts: names besides this machine's
    own under which pages may use it, and under
    which it answers at all where it has no keys; "*" is any for the latter."""

    alias: str
    keys: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    queue: int = 64
    max_body: int = 32 * MIB
    ping_seconds: float = 10.0
    metrics: bool = True
    hosts: tuple[str, ...] = ()
