"""Merging, against the `tokenizers` package: the same ids on real and on random vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_vocabs import CONTROL, NORMAL, bpe_metadata, tokenizer_of

from mixkv.engine.tokenizer import Vocabulary, build_tokenizer, make_vocabulary
from mixkv.engine.tokenizer import bpe as bpe_module
from mixkv.engine.tokenizer.bpe import ALPHABET
from mixkv.engine.tokenizer.pretokenizers import RULES, pre_tokenizer
from mixkv.engine.tokenizer.vocab import read_vocabulary
from mixkv.models.gguf import open_gguf

REAL = ["gpt-2", "llama-bpe", "qwen2", "starcoder"]
AWKWARD = [
    "",
    " ",
    "a" * 3000,
    " " * 3000,
    "ab" * 999 + "abc" * 999,
    "\n\n \t\t \r\n" * 50,
    "1234567890" * 40,
    "It's we'll THEY'RE don'T I'D",
    "\u00e9\u00e8 \u4e2d\u6587\u5b57\u7b26",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0e44\u0e17\u0e22 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\u0301\u0301 \ufeff\ufffd\u3000\u00a0",
    "def f(x):\n        return {'a': [x**2 != 0, -1e-10]}  # </s><|endoftext|>\n",
    "supercalifragilisticexpialidocious antidisestablishmentarianism " * 3,
    "".join(map(chr, range(0x300))),
]

Encode = Callable[[str], list[int]]


def package(vocab: Vocabulary) -> Encode:
    """What the package makes of a vocabulary without special tokens and without merges that need or build one."""
    rule = RULES[vocab.pre or ""]
    ids = {token.decode(): i for token, i in vocab.ids.items() if vocab.types[i] != CONTROL}
    pairs = [tuple(merge.decode().split(" ")) for merge in vocab.merges or []]
    pairs = [(a, b) for a, b in pairs if a in ids and b in ids and a + b in ids]
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=pairs, ignore_merges=rule.ignore_merges))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([pre_tokenizer(rule), byte_level])
    return lambda text: engine.encode(text, add_special_tokens=False).ids


@cache
def both(path: Path) -> tuple[Encode, Encode]:
    with open_gguf(path) as gguf:
        vocab = read_vocabulary(gguf)
    tokenizer = build_tokenizer(vocab)
    return lambda text: tokenizer.encode(text, add_special=False), package(vocab)


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Encode, Encode]:
    return both(shared / "data" / "vocab" / f"ggml-vocab-{request.param}.gguf")


@pytest.mark.parametrize("i", range(len(AWKWARD)))
def test_awkward_texts_with_real_vocabularies(real: tuple[Encode, Encode], i: int) -> None:
    ours, theirs = real
    assert ours(AWKWARD[i]) == theirs(AWKWARD[i])


def test_prose_with_real_vocabularies(real: tuple[Encode, Encode], shared: Path) -> None:
    ours, theirs = real
    text = (shared / "data" / "books" / "Moby-Dick--Or-The-Whale.txt").read_text(encoding="utf-8")[:200_000]
    assert ours(text) == theirs(text)
    unspaced = "".join(text[:20_000].split())  # words that are in no vocabulary
    assert ours(unspaced) == theirs(unspaced)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cn"])) | st.text("abcABC \n'1.\u00e9")


@settings(max_examples=150, deadline=None)
@given(text=TEXT, times=st.sampled_from([1, 1, 3, 40]))
def test_random_texts_with_real_vocabularies(shared: Path, text: str, times: int) -> None:
    for name in REAL:
        ours, theirs = both(shared / "data" / "vocab" / f"ggml-vocab-{name}.gguf")
        assert ours(text * times) == theirs(text * times)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Merges of a few letters, in an order that has nothing to do with their length; some tokens are control tokens."""
    parts, merges = ["a", "b", "\u0120", "\u00c3", "\u00a9"], []
    for left, right in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)):
        a, b = parts[left % len(parts)], parts[right % len(parts)]
        if len(a + b) <= 12:
            merges.append(f"{a} {b}".encode())
            parts += [a + b] if a + b not in parts else []
    built = parts[5:]
    control = draw(st.sets(st.sampled_from(built), max_size=2)) if built else set()
    tokens = [token.encode() for token in [*ALPHABET, *draw(st.permutations(built))]]
    types = np.array([CONTROL if token.decode() in control else NORMAL for token in tokens], np.int32)
    pre = draw(st.sampled_from(["gpt-2", "llama-bpe"]))  # the second takes whole words without merging
    return make_vocabulary("gpt2", tokens, types=types, merges=draw(st.permutations(merges)), pre=pre)


@settings(max_examples=300, deadline=None)
@given(vocab=vocabularies(), texts=st.lists(st.text("ab \u00e9", max_size=40), min_size=1, max_size=10))
def test_random_vocabularies(vocab: Vocabulary, texts: list[str]) -> None:
    ours, theirs = build_tokenizer(vocab), package(vocab)
    for text in texts:
        ids = ours.encode(text, add_special=False)
        assert ids == theirs(text)
        assert not any(map(ours.is_control, ids)) and ours.decode(ids) == text


def doubling() -> Vocabulary:
    tokens = [*ALPHABET, *("a" * 2**i for i in range(1, 8))]
    merges = [f"{'a' * 2**i} {'a' * 2**i}".encode() for i in range(7)]
    return make_vocabulary("gpt2", [token.encode() for token in tokens], merges=merges, pre="gpt-2")


def test_one_word_of_many_letters() -> None:
    """Looking at all pairs for each merge would take an hour here, and a list that closes its gaps a minute."""
    n, longest = 500_000, 256 + 6
    ids = build_tokenizer(doubling()).encode("a" * (128 * (n // 128) + 67))
    assert ids == [longest] * (n // 128) + [longest - 1, 256, ord("a")]  # 67 = 64 + 2 + 1


def test_the_last_of_equal_merges_counts() -> None:
    """`a b` stands first and again last, so `b c` goes before it."""
    tokens = [token.encode() for token in [*ALPHABET, "ab", "bc"]]
    vocab = make_vocabulary("gpt2", tokens, merges=[b"a b", b"b c", b"a b"], pre="gpt-2")
    ids = build_tokenizer(vocab).encode("abc")
    assert [tokens[i] for i in ids] == [b"a", b"bc"] and ids == package(vocab)("abc")


def test_remembered_words_are_few_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_module, "CACHE_WORDS", 5)
    bpe = tokenizer_of(tmp_path, bpe_metadata())
    assert isinstance(bpe, bpe_module.BPETokenizer)
    words = [f"h{'e' * n} " for n in range(200)]
    for text in ["".join(words), "hello " * 100, *words]:
        assert bpe.decode(bpe.encode(text)) == text
        assert bpe.encode(text) == bpe.encode(text)
        assert len(bpe._cache) <= 5 and all(len(word) <= bpe_module.CACHE_WORD_CHARS for word in bpe._cache)
