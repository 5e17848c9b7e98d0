"""BPE on text as it is (`gemma4`), against its definition and against the `tokenizers` package.

The ids of the small vocabulary were written down from llama.cpp (of llama-cpp-python 0.3.36) on the same file.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_vocabs import BYTE, CONTROL, NORMAL, USER_DEFINED, raw_metadata, tokenizer_of

from mixkv.engine.tokenizer import Tokenizer, Vocabulary, build_tokenizer, make_vocabulary
from mixkv.engine.tokenizer.raw_bpe import RawBPETokenizer
from mixkv.kernels.errors import MixkvWarning, TokenizerError

BYTES = [f"<0x{b:02X}>".encode() for b in range(256)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("raw"), raw_metadata())


def definition(vocab: Vocabulary, text: str) -> list[int]:
    """Spaces are U+2581; runs of line ends that are tokens are taken whole; in each stretch between, and in other runs,
    the leftmost pair of the lowest rank is merged until none is left; what is no token then is bytes."""
    ranks = {merge: rank for rank, merge in enumerate(vocab.merges or [])}
    ids = []
    for stretch in re.findall("\n+|[^\n]+", text.replace(" ", "\u2581")):
        parts = [stretch] if stretch[0] == "\n" and stretch.encode() in vocab.ids else list(stretch)
        while True:
            pairs = [f"{a} {b}".encode() for a, b in pairwise(parts)]
            known = [i for i, pair in enumerate(pairs) if pair in ranks]
            if not known:
                break
            i = min(known, key=lambda i: (ranks[pairs[i]], i))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        for part in parts:
            there = vocab.ids.get(part.encode())
            ids += [vocab.ids[BYTES[b]] for b in part.encode()] if there is None else [there]
    return ids


def package(vocab: Vocabulary) -> tokenizers.Tokenizer:
    """The same vocabulary as the `tokenizers` package runs it, on texts without line ends."""
    ids = {token.decode(): i for token, i in vocab.ids.items()}
    pairs = [tuple(merge.decode().split(" ")) for merge in vocab.merges or []]
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=pairs, byte_fallback=True))
    engine.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    return engine


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Merges of a few characters, some across spaces, in an order that has nothing to do with their length."""
    parts, merges = ["a", "b", "\u2581", "\u00e9", "\n"], []
    for left, right in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)):
        a, b = parts[left % len(parts)], parts[right % len(parts)]
        if len(a + b) <= 8 and ("\n" in a) == ("\n" in b):
            merges.append(f"{a} {b}".encode())
            parts += [a + b] if a + b not in parts else []
    tokens = [*BYTES, *(part.encode() for part in draw(st.permutations(parts)))]
    return make_vocabulary("gemma4", tokens, merges=draw(st.permutations([*dict.fromkeys(merges)])))


@settings(max_examples=300)
@given(vocab=vocabularies(), texts=st.lists(st.text("ab  \u00e9\n\u4e2d", max_size=30), min_size=1, max_size=8))
def test_random_vocabularies(vocab: Vocabulary, texts: list[str]) -> None:
    """Words are cut out of lines to be remembered: that must not change an id, whatever merges cross spaces."""
    ours, theirs = build_tokenizer(vocab), package(vocab)
    for text in texts:
        ids = ours.encode(text, add_special=False)
        assert ids == definition(vocab, text) and ours.decode(ids) == text
        for line in text.split("\n"):
            assert ours.encode(line, add_special=False) == theirs.encode(line).ids


def test_lines_are_cut_into_words_where_no_merge_crosses(raw: Tokenizer) -> None:
    """What makes it fast: lines are never the same, so a vocabulary that took them whole remembered nothing."""
    assert isinstance(raw, RawBPETokenizer)
    words = ["he", "\u2581\u2581hello,", "\u2581a\u2581b", "\u2581a", "\n\n", "\u2581b"]
    assert list(raw._words("he  hello, a b a\n\n b")) == words


CASES = {
    "hello hello": [263, 264],
    " hello": [264],
    "   hello": [258, 258, 264],
    "a b": [270],
    "hello\n\nhello\n\n\n": [263, 271, 263, 256, 256, 256],
    "\u00e9": [0xC3, 0xA9],
    "h\u2581e": [259, 258, 260],
    "<0x41>": [0x3C, 0x30, 0x78, 0x34, 0x31, 0x3E],
    "<tool>hello": [273, 263],
    "<turn|>": [0x3C, 0x74, 0x75, 0x72, 0x6E, 0x7C, 0x3E],
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_ids(raw: Tokenizer, text: str) -> None:
    assert raw.encode(text, add_special=False) == CASES[text]
    assert raw.encode(text) == [272, *CASES[text]]
    assert raw.decode(raw.encode(text)) == text.replace("\u2581", " ")


def test_special_tokens(raw: Tokenizer) -> None:
    assert raw.encode("hello<turn|>\nhello", parse_special=True) == [272, 263, 274, 256, 263]
    assert raw.decode([272, 263, 274]) == "hello" and raw.eog_ids == {274} and (raw.bos_id, raw.eos_id) == (272, None)
    assert raw.piece(0x0A) == b"\n" and raw.piece(264) == b" hello"


def test_bos_stands_in_front_whatever_the_file_says(tmp_path: Path) -> None:
    """As in llama.cpp: early files say no, and without it the model answers nonsense."""
    assert tokenizer_of(tmp_path, raw_metadata(add_bos_token=False)).encode("a") == [272, 262]
    assert tokenizer_of(tmp_path, raw_metadata(add_bos_token=False, bos_token_id=None)).encode("a") == [262]


@pytest.mark.parametrize("pre", ["granite-embed-multi-311m", "sarvam-moe"])
def test_pre_tokenizers_of_this_kind_in_files_of_the_kind_gpt2(tmp_path: Path, pre: str) -> None:
    """Their bytes are marked as ordinary tokens; runs of line ends are merged by `sarvam-moe`, like anything else."""
    types = raw_metadata()["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    types[types == BYTE] = NORMAL
    other = tokenizer_of(tmp_path, raw_metadata(model="gpt2", pre=pre, token_type=types, eos_token_id=274))
    for text, ids in CASES.items():
        expected = [256 if i == 271 else i for i in ids for _ in range(2 if i == 271 else 1)]
        assert other.encode(text, add_special=False) == (expected if pre == "sarvam-moe" else ids)
        assert other.decode(ids) == text.replace("\u2581", " ")
    assert other.add_bos == (pre != "sarvam-moe")


def test_merges_never_build_a_control_token_and_a_character_is_none(tmp_path: Path) -> None:
    """A file whose types call `hello` and `a` control tokens would let users write them: they are bytes then."""
    types = raw_metadata()["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    types[263] = types[262] = CONTROL
    tokenizer = tokenizer_of(tmp_path, raw_metadata(token_type=types))
    ids = tokenizer.encode("hello a", add_special=False)
    assert not any(map(tokenizer.is_control, ids)) and tokenizer.decode(ids) == "hello a" and 0x61 in ids


def test_bytes_without_a_token_are_left_out_and_named(tmp_path: Path) -> None:
    tokens = [*raw_metadata()["tokenizer.ggml.tokens"]]  # type: ignore[misc]
    tokens[0xA9] = "[nothing]"
    tokenizer = tokenizer_of(tmp_path, raw_metadata(tokens=tokens, token_type=None))
    for _ in range(2):  # a word that was seen before is counted again
        with pytest.warns(MixkvWarning, match=r"no token for a byte of the text \(the first is 0xA9"):
            assert tokenizer.encode("a\u00e9 hello", add_special=False) == [262, 0xC3, 264]


def test_user_defined_tokens_print_as_they_are(tmp_path: Path) -> None:
    types = raw_metadata()["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    types[264] = USER_DEFINED
    tokenizer = tokenizer_of(tmp_path, raw_metadata(token_type=types))
    assert tokenizer.piece(264) == "\u2581hello".encode()


def test_what_a_file_must_hold(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="merges is missing, and a vocabulary of the kind 'gemma4'"):
        tokenizer_of(tmp_path, raw_metadata(merges=None))


@pytest.mark.parametrize("char", [" ", "a", "\n", "\u00e9", "hello ", "a b "])
def test_long_runs_take_no_time(raw: Tokenizer, char: str) -> None:
    """Neither cutting nor merging may be quadratic."""
    text = char * (100_000 // len(char))
    assert raw.decode(raw.encode(text)) == text


def test_no_bytes_are_needed(tmp_path: Path) -> None:
    tokens = ["a", "\u2581", "<s>"]
    types = np.array([NORMAL, NORMAL, CONTROL], np.int32)
    small = tokenizer_of(tmp_path, raw_metadata(tokens=tokens, token_type=types, merges=[], bos_token_id=2))
    with pytest.warns(MixkvWarning, match="no token for 3 bytes"):
        assert small.encode("a \u4e2da") == [2, 0, 1, 0]
