"""Vocabularies small enough to read, one of each kind; as dictionaries of GGUF metadata.

All hold ordinary pieces, control tokens (one that ends a generation) and user-defined tokens; in the first two one of
these begins like another. `SPM` and `RAW` have all 256 bytes, `BPE` all characters of GPT-2's alphabet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf_tools import write_gguf

from mixkv.engine.tokenizer import Tokenizer, load_tokenizer
from mixkv.engine.tokenizer.bpe import ALPHABET
from mixkv.models.gguf import open_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SPM_PIECES = [*"▁abcdehlortw.<>/s", "he", "ll", "lo", "▁he", "▁w", "hell", "▁hell", "▁hello", "or", "▁wor", "▁▁"]
SPM_SPECIAL = {"\n": USER_DEFINED, "<tool>": USER_DEFINED, "<tool>r": USER_DEFINED, "<|im_end|>": CONTROL}
BPE_MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w", "o r", "Ġw or", "l d", "< |", "| >", "s >"]
RAW_MERGES = ["h e", "l l", "he ll", "hell o", "\u2581 hello", "a \u2581", "a\u2581 b"]
BPE_SPECIAL = {"<|endoftext|>": CONTROL, "<|im_end|>": CONTROL, "<tool>": USER_DEFINED, "<tool>r": USER_DEFINED}


def spm_metadata(**changes: object) -> dict[str, object]:
    """A `llama` vocabulary; `changes` are keys below `tokenizer.ggml.`, None removes one."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *SPM_SPECIAL, *SPM_PIECES]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *SPM_SPECIAL.values(), *[NORMAL] * len(SPM_PIECES)]
    n_first = len(tokens) - len(SPM_PIECES)
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        "scores": np.array([0.0] * n_first + [-float(i) for i in range(len(SPM_PIECES))], np.float32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _metadata(values, changes)


def bpe_metadata(**changes: object) -> dict[str, object]:
    """A `gpt2` vocabulary with the pre-tokenizer of GPT-2; `changes` as above."""
    merged = ["he", "ll", "hell", "hello", "Ġhello", "Ġw", "or", "Ġwor", "ld", "<|", "|>", "s>"]
    tokens = [*ALPHABET, *merged, *BPE_SPECIAL]
    types = [NORMAL] * (256 + len(merged)) + list(BPE_SPECIAL.values())
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        "merges": BPE_MERGES,
        "bos_token_id": tokens.index("<|endoftext|>"),
        "eos_token_id": tokens.index("<|endoftext|>"),
    }
    return _metadata(values, changes)


def raw_metadata(**changes: object) -> dict[str, object]:
    """A `gemma4` vocabulary, one merge of which crosses a space; `changes` as above."""
    space = "\u2581"
    plain = ["\n", space * 2, space, *"hela", "hello", f"{space}hello", "he", "ll", "hell", "o", f"a{space}"]
    tokens = [*(f"<0x{i:02X}>" for i in range(256)), *plain, "a\u2581b", "\n\n", "<bos>", "<tool>", "<turn|>", "b"]
    types = [BYTE] * 256 + [NORMAL] * (len(plain) + 2) + [CONTROL, USER_DEFINED, CONTROL, NORMAL]
    values = {
        "model": "gemma4",
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        "merges": RAW_MERGES,
        "bos_token_id": tokens.index("<bos>"),
    }
    return _metadata(values, changes)


def tokenizer_of(folder: Path, metadata: dict[str, object]) -> Tokenizer:
    """Write the metadata as a GGUF file and load the tokenizer from it."""
    with open_gguf(write_gguf(folder / "vocab.gguf", metadata, {})) as gguf:
        return load_tokenizer(gguf)


def _metadata(values: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    merged: dict[str, object] = {"general.architecture": "llama"}
    merged |= {f"tokenizer.ggml.{k}": v for k, v in (values | changes).items() if v is not None}
    return merged
