"""Which model this is: one short text that differs where logits or token ids can differ.

Keys and values in a file are worth nothing to another model, and nothing in them says so: with another RoPE base or
another vocabulary they give fluent nonsense. So the fingerprint covers the hyper-parameters as they are used (defaults
and overrides included), the whole vocabulary, and of every tensor that the model takes the name, type, shape and
content. Not covered is what changes neither: the file's name and place, how it is split, the order in it, the chat
template. Nor how it was computed: rows made with other kernels, another instruction set, `exact` or not differ in their
last bits, and continue well.

Hashing all weights would double the time that loading takes. Small tensors, norms and biases, are hashed whole; of a
larger one 8 bytes from every 4 KiB or less, at least 32 KiB in all. Training, even of a few rows, does not get past
that; it is no defence against somebody who makes one model pass for another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from mixkv.models.config import ModelConfig
from mixkv.models.gguf_metadata import Metadata
from mixkv.models.gguf_types import TensorInfo

DIGEST_BYTES = 16
LEAST_WORDS = 4096
"""Words of 8 bytes that are taken of a tensor, if it has so many."""
LARGEST_STEP = 509
"""Words from one sample to the next. A prime, so that samples of successive rows stand in different columns."""


def tensor_digest(info: TensorInfo, raw: NDArray[np.uint8]) -> bytes:
    """Digest of one tensor's type, shape and sampled content. raw: (rows, row_bytes), read here and not kept."""
    digest = hashlib.blake2b(f"{info.ggml_type.name} {info.shape}\n".encode(), digest_size=DIGEST_BYTES)
    flat = raw.reshape(-1)
    n_words = flat.size // 8
    step = max(1, min(n_words // LEAST_WORDS, LARGEST_STEP))
    digest.update(flat[: 8 * n_words].view(np.uint64)[::step].tobytes())
    digest.update(flat[-8:].tobytes())
    return digest.digest()


def fingerprint(config: ModelConfig, metadata: Metadata, tensors: Mapping[str, bytes]) -> str:
    """32 hexadecimal digits. tensors: name -> `tensor_digest` of every tensor that the model takes."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def add(name: str, value: bytes) -> None:
        for part in (name.encode(), value):  # lengths in front: no two lists of parts run together to the same bytes
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

    hyper_parameters = asdict(config)
    del hyper_parameters["name"]
    add("hyper-parameters", json.dumps(hyper_parameters, sort_keys=True).encode())
    for key in sorted(metadata):
        if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template"):
            add(key, metadata.encoded(key))
    for name in sorted(tensors):
        add(name, tensors[name])
    return digest.hexdigest()
