"""Texts with bytes that the vocabulary has no token for: these are left out, with one warning, the rest is there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf
from test_tokenizer_hostile import BPE_TOKENS, BPE_TYPES, SPM_TOKENS, SPM_TYPES, changed
from tokenizer_vocabs import BPE_MERGES, bpe_metadata, spm_metadata, tokenizer_of

import mixkv
from mixkv.engine.tokenizer import Tokenizer
from mixkv.kernels.errors import MixkvWarning


def left_out(tokenizer: Tokenizer, text: str, words: str) -> list[int]:
    """Ids of a text that the vocabulary does not cover: one warning for it all, and the rest is there."""
    with pytest.warns(MixkvWarning, match=words) as caught:
        ids = tokenizer.encode(text, add_special=False)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    return ids


def test_spm_without_bytes_uses_the_unknown_token_or_leaves_out(tmp_path: Path) -> None:
    """A text with one such character was refused whole."""
    tokens = [*SPM_TOKENS[:3], *(f"[{i}]" for i in range(256)), *SPM_TOKENS[259:]]
    types = np.where(SPM_TYPES == 6, 1, SPM_TYPES).astype(np.int32)
    spm = tokenizer_of(tmp_path, spm_metadata(tokens=tokens, token_type=types))
    assert spm.encode("hello\u00e9", add_special=False) == [287, 0, 0]
    without = tokenizer_of(tmp_path, spm_metadata(tokens=tokens, token_type=changed(types, 0, 1)))
    ids = left_out(without, "\u00e9hello\nhello\u4e2d", r"no token for 5 bytes of the text \(the first is 0xC3, in")
    assert ids == [263, 285, 271, 259, 287]


def test_bytes_without_a_token_are_left_out_and_named(tmp_path: Path) -> None:
    """SmolLM2 has no token for eight bytes; one of them in a line ended a whole chat. llama.cpp drops the byte."""
    tokens = ["[no A]" if token == "A" else "[no d]" if token == "d" else token for token in BPE_TOKENS]
    bpe = tokenizer_of(tmp_path, bpe_metadata(tokens=tokens))
    assert bpe.encode("hello") == [259]
    b, c = bpe.encode("BC")
    for _ in range(2):  # a word that was seen before is counted again
        assert left_out(bpe, "ABC hello A", r"for 2 bytes of the text \(the first is 0x41, in 'ABC hello A'\)") == [
            b, c, *bpe.encode(" hello "),
        ]  # fmt: skip
    assert left_out(bpe, "A", "for a byte of the text") == []
    assert bpe.encode("ld") == [BPE_TOKENS.index("ld")]  # no token itself, but merged into one
    assert left_out(bpe, "<tool>d", "0x64") == bpe.encode("<tool>")
    hidden = tokenizer_of(tmp_path, bpe_metadata(token_type=changed(BPE_TYPES, BPE_TOKENS.index("A"), 3)))
    assert left_out(hidden, "ABC", "0x41") == [b, c]


def test_bytes_are_counted_behind_user_defined_tokens_of_merges(tmp_path: Path) -> None:
    """Such a token prints what the file writes ("\u0120hello"), which is longer than the bytes it stands for."""
    tokens = ["[no d]" if token == "d" else token for token in BPE_TOKENS]
    types = changed(BPE_TYPES, BPE_TOKENS.index("\u0120hello"), 4)
    bpe = tokenizer_of(tmp_path, bpe_metadata(tokens=tokens, token_type=types, merges=BPE_MERGES[:5]))
    ids = left_out(bpe, "x hellod", r"for a byte of the text \(the first is 0x64")
    assert ids == [BPE_TOKENS.index("x"), BPE_TOKENS.index("\u0120hello")]


def test_a_chat_goes_on_where_a_byte_has_no_token(tmp_path: Path) -> None:
    """One such byte in a line ended the whole conversation."""
    meta, tensors = tiny_llama()
    tokens: list[str] = meta["tokenizer.ggml.tokens"]  # type: ignore[assignment]
    types: np.ndarray = meta["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    tokens[tokens.index("<0x1D>")] = "[nothing]"
    types[tokens.index("[nothing]")], types[0] = 1, 3  # and no unknown token to stand for it
    meta |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    llm = mixkv.load(write_gguf(tmp_path / "m.gguf", meta, tensors), n_ctx=128, n_threads=1)
    messages: list[Any] = []
    for turn in ("hello", "press \x1d now", "how are you"):
        messages.append({"role": "user", "content": turn})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reply = llm.chat(messages, max_tokens=2, temperature=0.0)
        words = "no token for a byte of the text (the first is 0x1D"
        said = any(words in str(w.message) for w in caught)
        assert said == (turn != "hello"), "each prompt has all that was said"
        messages.append(reply.message)
    assert reply.usage.cached_tokens > 0
