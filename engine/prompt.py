"""From a prompt's text to its token ids, and what a user ought to know about a prompt or a context before it runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence as Ids
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import InputError, MixkvWarning, PromptTooLongError
from mixkv.models.config import ModelConfig

Prompt = str | Ids[int] | NDArray[np.integer]


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, *, n_ctx: int, parse_special: bool) -> list[int]:
    """Ids of a prompt, which may be ids already. InputError for an empty one, ids that the vocabulary lacks, and more
    than n_ctx of them (PromptTooLongError)."""
    if isinstance(prompt, str):
        ids = encode_prompt(prompt, tokenizer, parse_special=parse_special)
    else:
        ids = _checked_ids(prompt, tokenizer.n_vocab)
    if not ids:
        raise InputError("the prompt is empty: give at least one character or token")
    if len(ids) > n_ctx:
        raise PromptTooLongError(len(ids), n_ctx)
    return ids


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


def _checked_ids(ids: Ids[int] | NDArray[np.integer], n_vocab: int) -> list[int]:
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):
        raise InputError("token ids must be a flat sequence of whole numbers, not lists of lists") from None
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"token ids must be a flat sequence of whole numbers, not {array.dtype} {array.shape}")
    bad = array[(array < 0) | (array >= n_vocab)]
    if bad.size:
        raise InputError(f"token id {bad[0]} is out of range: this model has ids 0 to {n_vocab - 1}")
    return cast(list[int], array.tolist())
