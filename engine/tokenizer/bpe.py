"""Vocabularies of the kind `gpt2`: byte-level BPE (Llama 3, Qwen, GPT-2, StarCoder, SmolLM and most others).

Know before you change this room: tokens are written with one visible character per byte (GPT-2's alphabet, below),
so "Ġ" is a space. The `tokenizers` package does the merging; it never sees special tokens, which base.py cuts out,
and its vocabulary holds no control tokens, so that no sequence of merges in a hostile or careless file can turn a
user's text into one.
"""

from __future__ import annotations

from tokenizers import Tokenizer as MergeEngine
from tokenizers.models import BPE

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.pretokenizers import find_rule, pre_tokenizer
from mixkv.engine.tokenizer.vocab import Vocabulary
from mixkv.kernels.errors import TokenizerError


def _alphabet() -> list[str]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the rest moves up from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(b if b in visible else next(moved)) for b in range(256)]


ALPHABET = _alphabet()
_BYTE_OF = {char: b for b, char in enumerate(ALPHABET)}


class BPETokenizer(Tokenizer):
    """A byte-level BPE vocabulary."""

    def __init__(self, vocab: Vocabulary) -> None:
        """Raises TokenizerError for missing merges and merges that name unknown tokens; warns (MixkvWarning) where
        the file's pre-tokenizer is unknown."""
        rule = find_rule(vocab.pre)
        super().__init__(vocab, add_bos=rule.add_bos, add_eos=False)
        ids = {text: i for text, i in vocab.ids.items() if i not in self._special}
        hidden = {vocab.texts[i] for i in self._special}
        pairs = [(a, b) for a, b in _read_merges(vocab) if a + b not in hidden]
        try:
            model = BPE(vocab=ids, merges=pairs, ignore_merges=rule.ignore_merges)
        except Exception as error:  # the package raises bare Exception, for merges outside the vocabulary
            raise TokenizerError(_merge_problem(pairs, ids) or f"cannot use the vocabulary: {error}") from None
        self._engine = MergeEngine(model)
        self._engine.pre_tokenizer = pre_tokenizer(rule)
        self._missing = {b for b in range(256) if ALPHABET[b] not in ids}

    def _encode_plain(self, text: str, after_special: bool) -> list[int]:
        if self._missing:  # the engine would drop these bytes in silence
            absent = self._missing.intersection(text.encode())
            if absent:
                raise TokenizerError(
                    f"the vocabulary has no token for byte 0x{min(absent):02X} (in {text[:40]!r}); use a model whose "
                    "vocabulary covers this text"
                )
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def _plain_piece(self, token: bytes, kind: int) -> bytes:
        try:
            return bytes([_BYTE_OF[char] for char in token.decode("utf-8")])
        except (KeyError, UnicodeDecodeError):
            return token  # not written in the alphabet: print what stands there


def _read_merges(vocab: Vocabulary) -> list[tuple[str, str]]:
    if vocab.merges is None:
        raise TokenizerError(
            "tokenizer.ggml.merges is missing, and a vocabulary of the kind 'gpt2' cannot be used without it; "
            "convert the model again"
        )
    pairs = []
    for i, merge in enumerate(vocab.merges):
        left, space, right = merge.decode("utf-8", "replace").partition(" ")
        if not (left and space and right):
            raise TokenizerError(
                f"merge {i} of the vocabulary reads {merge[:60]!r} instead of two tokens with a space between them; "
                "convert the model again"
            )
        pairs.append((left, right))
    return pairs


def _merge_problem(pairs: list[tuple[str, str]], ids: dict[str, int]) -> str | None:
    for i, (left, right) in enumerate(pairs):
        unknown = next((token for token in (left, right, left + right) if token not in ids), None)
        if unknown is not None:
            return (
                f"merge {i} of the vocabulary ({left[:40]!r} + {right[:40]!r}) names the token {unknown[:80]!r}, "
                "which the vocabulary does not hold; convert the model again"
            )
    return None
