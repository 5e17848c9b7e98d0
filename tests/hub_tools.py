"""A repository of small files for the tests of the hub, and the ways to ask for it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from hub_server import LocalHub

from mixkv.engine.hub.client import Hub
from mixkv.engine.hub.reference import Reference
from mixkv.kernels.errors import HubError

REPO = "some-one/Tiny.Model-GGUF"
Q4, Q8, PARTS = "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "big/tiny-F16-0000{}-of-00003.gguf"
DATA = random.Random(1).randbytes(300_000)
FILES = {
    "README.md": b"# Tiny",
    Q4: DATA,
    Q8: DATA[::-1],
    "small-Q2_K.gguf": b"small",
    **{PARTS.format(i): DATA[i : 5000 * i] for i in (1, 2, 3)},
}


def get(hub: LocalHub, cache: Path, name: str = REPO, **options: Any) -> Path:
    return Hub(endpoint=hub.url, cache=cache, pause=0.0, **options).get(Reference.parse(name))


def refused(hub: LocalHub, cache: Path, name: str = REPO, **options: Any) -> str:
    with pytest.raises(HubError) as caught:
        get(hub, cache, name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def blobs(cache: Path) -> dict[str, int]:
    """Names and sizes of all contents, finished or not."""
    return {path.name: path.stat().st_size for path in cache.glob("models--*/blobs/*")}


def digest(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()
