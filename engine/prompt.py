"""From a prompt's text to its token ids, and what a user ought to know about a prompt or a context before it runs."""

from __future__ import annotations

import warnings

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import MixkvWarning
from mixkv.models.config import ModelConfig


def encode_prompt(text: str, tokenizer: Tokenizer, *, parse_special: bool) -> list[int]:
    """Ids of a prompt, BOS in front where the model wants it. An empty one is BOS alone; no ids where there is none.

    MixkvWarning where the text brings a BOS of its own to a model that gets one anyway: it has never seen two.
    """
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    if not text:
        return [] if bos is None else [bos]
    ids = tokenizer.encode(text, add_eos=False, parse_special=parse_special)
    if bos is not None and ids[:2] == [bos, bos]:
        warnings.warn(
            "the prompt begins with two BOS tokens: the model puts one in front itself, leave out the one in the text",
            MixkvWarning,
            stacklevel=5,
        )
    return ids


def warn_beyond_training(n_ctx: int, config: ModelConfig) -> None:
    """MixkvWarning for a context that is longer than the model was trained for, RoPE's stretching counted in."""
    ropes = [a.rope for a in config.attentions if a.rope is not None and a.rope.scaling != "none"]
    limit = max([config.n_ctx_train, *(int(rope.n_ctx_orig * rope.factor) for rope in ropes)])
    if n_ctx > limit:
        warnings.warn(
            f"a context of {n_ctx} tokens is more than the {limit} that the model was trained for: expect nonsense "
            "beyond those",
            MixkvWarning,
            stacklevel=3,
        )
