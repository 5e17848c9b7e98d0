"""A second, independent writer of session files (session_file.py describes the format), so that checksums and lengths
can be made to fit whatever a header claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any


def rebuild(data: bytes, change: Callable[[dict[str, Any]], None], payload: bytes | None = None) -> bytes:
    """The session with a changed header (and payload), its length and checksum right."""
    n = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + n])
    change(header)
    text = json.dumps(header).encode()
    body = data[:8] + len(text).to_bytes(8, "little") + text + (data[16 + n : -32] if payload is None else payload)
    return body + hashlib.blake2b(body, digest_size=32).digest()
