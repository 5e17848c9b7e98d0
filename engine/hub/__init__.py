"""Models from the hub: `hf://USER/REPO:QUANT` becomes a local file, downloaded once, checked, kept in the hub's cache.

Know before you change this room: addresses, tokens and the cache's place are those of the `huggingface_hub` package
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE), which is imported when a model of the hub is asked for and not before.
Rooms: reference.py (what a name means), choice.py (which of a repository's files), cache.py (where they lie),
download.py (bytes, resumed and verified), client.py (all of it together), inventory.py (what there is, and removal).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mixkv.engine.hub.reference import SCHEME, Reference

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


def local_model(path: str | Path, progress: Progress | None = None) -> str | Path:
    """The path of a local file for an `hf://` name; any other path as it is. Raises ConfigError, HubError."""
    if not isinstance(path, str) or not path.startswith(SCHEME):
        return path
    from mixkv.engine.hub.client import Hub

    return Hub().get(Reference.parse(path), progress)
