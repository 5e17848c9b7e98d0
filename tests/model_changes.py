"""A small model, changes that make another model of it, and changes that do not: what a fingerprint tells apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf_tools import tiny_llama, write_gguf

Metadata = dict[str, Any]
Tensors = dict[str, Any]
Change = Callable[[Metadata, Tensors], object]


def base_model() -> tuple[Metadata, Tensors]:
    """A llama whose tensors fit other head counts and, since they have biases, another architecture."""
    metadata, tensors = tiny_llama(n_layers=1)
    metadata |= {"llama.context_length": 256, "llama.attention.key_length": 8, "llama.attention.value_length": 8}
    rng = np.random.default_rng(5)
    for name, n in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16)):
        tensors[f"blk.0.{name}.bias"] = rng.standard_normal(n).astype(np.float32)
    return metadata, tensors


def written(path: Path, change: Change | None = None) -> Path:
    """The model, changed, as a file."""
    metadata, tensors = base_model()
    if change is not None:
        change(metadata, tensors)
    return write_gguf(path, metadata, tensors)


def with_keys(**values: Any) -> Change:
    """Metadata added or replaced: rope_freq_base for llama.rope.freq_base, and so on (see `KEYS`)."""
    return lambda metadata, _: metadata.update({KEYS[name]: value for name, value in values.items()})


KEYS = {
    "heads": "llama.attention.head_count",
    "kv_heads": "llama.attention.head_count_kv",
    "head_dim_k": "llama.attention.key_length",
    "head_dim_v": "llama.attention.value_length",
    "eps": "llama.attention.layer_norm_rms_epsilon",
    "base": "llama.rope.freq_base",
    "n_rot": "llama.rope.dimension_count",
    "linear": "llama.rope.scale_linear",
    "scaling": "llama.rope.scaling.type",
    "factor": "llama.rope.scaling.factor",
    "original": "llama.rope.scaling.original_context_length",
    "attn_factor": "llama.rope.scaling.attn_factor",
    "beta_fast": "llama.rope.scaling.yarn_beta_fast",
    "beta_slow": "llama.rope.scaling.yarn_beta_slow",
    "ext_factor": "llama.rope.scaling.yarn_ext_factor",
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unknown": "tokenizer.ggml.unknown_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "add_bos": "tokenizer.ggml.add_bos_token",
    "add_eos": "tokenizer.ggml.add_eos_token",
    "add_space_prefix": "tokenizer.ggml.add_space_prefix",
    "chat_template": "tokenizer.chat_template",
    "name": "general.name",
    "author": "general.author",
    "alignment": "general.alignment",
}
YARN: dict[str, Any] = {"scaling": "yarn", "factor": 4.0, "original": 32}


def with_item(key: str, i: int, value: Any) -> Change:
    """One element of a list or an array among the vocabulary replaced."""

    def change(metadata: Metadata, _: Tensors) -> None:
        values = metadata[f"tokenizer.ggml.{key}"].copy()
        values[i] = value
        metadata[f"tokenizer.ggml.{key}"] = values

    return change


def nudged(name: str, at: Any) -> Change:
    """Some of a tensor's numbers changed a little."""

    def change(_: Metadata, tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][at] *= np.float32(1.001)

    return change


def as_qwen2(metadata: Metadata, _: Tensors) -> None:
    metadata["general.architecture"] = "qwen2"
    for key in [key for key in metadata if key.startswith("llama.")]:
        metadata[key.replace("llama.", "qwen2.")] = metadata.pop(key)


def last_key_first(metadata: Metadata, _: Tensors) -> None:
    items = list(metadata.items())
    metadata.clear()
    metadata.update([items[-1], *items[:-1]])


OTHERS: dict[str, Change] = {
    "rope-base": with_keys(base=1e6),
    "rope-dimensions": with_keys(n_rot=4),
    "rope-linear": with_keys(scaling="linear", factor=4.0),
    "rope-linear-of-2023": with_keys(linear=2.0),
    "yarn": with_keys(**YARN),
    "yarn-factor": with_keys(**YARN | {"factor": 2.0}),
    "yarn-original-context": with_keys(**YARN | {"original": 64}),
    "yarn-attn_factor": with_keys(**YARN, attn_factor=1.1),
    "yarn-beta_fast": with_keys(**YARN, beta_fast=16.0),
    "yarn-beta_slow": with_keys(**YARN, beta_slow=2.0),
    "yarn-ext_factor": with_keys(**YARN, ext_factor=0.5),
    "rope_freqs": lambda _, t: t.update({"rope_freqs.weight": np.full(4, 2, np.float32)}),
    "eps": with_keys(eps=1e-6),
    "fewer-longer-heads": with_keys(heads=2, kv_heads=1, head_dim_k=16, head_dim_v=16),
    "architecture": as_qwen2,
    "token": with_item("tokens", 262, "the"),
    "token-type": with_item("token_type", 270, 4),
    "token-score": with_item("scores", 270, -99),
    "bos": with_keys(bos=5),
    "eos": with_keys(eos=5),
    "unknown": with_keys(unknown=5),
    "eot": with_keys(eot=5),
    "add_bos": with_keys(add_bos=False),
    "add_eos": with_keys(add_eos=True),
    "add_space_prefix": with_keys(add_space_prefix=False),
    "first-row": nudged("token_embd.weight", 0),
    "last-row": nudged("token_embd.weight", -1),
    "last-rows-of-the-output": nudged("output.weight", slice(-8, None)),
    "last-column": nudged("blk.0.ffn_down.weight", (slice(None), -1)),
    "one-number": nudged("blk.0.ffn_up.weight", (63, 31)),
    "norm": nudged("output_norm.weight", 17),
    "bias": nudged("blk.0.attn_k.bias", 15),
    "tied": lambda _, t: t.pop("output.weight"),
    "no-bias": lambda _, t: t.pop("blk.0.attn_v.bias"),
    "weight-type": lambda _, t: t.update({"output.weight": t["output.weight"].astype(np.float16)}),
}
"""Each makes another model: other logits, or other ids for some text."""

SAME: dict[str, Change] = {
    "name": with_keys(name="the same under another name"),
    "author": with_keys(author="somebody"),
    "chat-template": with_keys(chat_template="{{ bos_token }}"),
    "a-default-that-is-spelled-out": with_keys(scaling="none"),
    "a-default-that-is-left-out": lambda m, _: m.pop("llama.rope.freq_base"),
    "a-wider-integer": with_keys(bos=np.int64(1)),
    "order-of-keys": last_key_first,
    "order-of-tensors": lambda _, t: t.update({"output_norm.weight": t.pop("output_norm.weight")}),
    "alignment": with_keys(alignment=64),
    "odd-addresses": with_keys(alignment=1, author="an odd length"),
    "a-tensor-that-is-ignored": lambda _, t: t.update({"blk.0.attn_rot_embd": np.ones(4, np.float32)}),
}
"""Each leaves logits and ids as they are."""
