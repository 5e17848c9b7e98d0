"""Text <-> token ids, from the vocabulary in a model file.

Know before you change this room: `vocab.py` reads and checks the file's vocabulary (`special.py`: the tokens that
begin, end and steer a text), `base.py` cuts out special tokens, `spm.py` (by sentencepiece), `bpe.py` and
`raw_bpe.py` (by `pretokenizers.py` and `merges.py`) encode what lies between them, `detokenizer.py` streams text out. A
new kind of vocabulary is a new subclass of Tokenizer and a line in `_KINDS`. The kinds are imported when a vocabulary
asks for them: each brings a package that takes 10 ms to import.
"""

from __future__ import annotations

from collections.abc import Callable

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.detokenizer import StreamDetokenizer
from mixkv.engine.tokenizer.vocab import Vocabulary, make_vocabulary, read_vocabulary
from mixkv.kernels.errors import TokenizerError
from mixkv.models.gguf import GGUFFile

__all__ = ["StreamDetokenizer", "Tokenizer", "Vocabulary", "build_tokenizer", "load_tokenizer", "make_vocabulary"]


def _spm(vocab: Vocabulary) -> Tokenizer:
    from mixkv.engine.tokenizer.spm import SPMTokenizer

    return SPMTokenizer(vocab)


def _bpe(vocab: Vocabulary) -> Tokenizer:
    from mixkv.engine.tokenizer.bpe import BPETokenizer
    from mixkv.engine.tokenizer.pretokenizers import find_rule
    from mixkv.engine.tokenizer.raw_bpe import RawBPETokenizer

    rule = find_rule(vocab.pre)
    return RawBPETokenizer(vocab, rule) if rule.raw else BPETokenizer(vocab, rule)


_KINDS: dict[str, Callable[[Vocabulary], Tokenizer]] = {"llama": _spm, "gpt2": _bpe, "gemma4": _bpe}
# Other kinds that files name, each with the models that have it: none is of an architecture that is run here.
_OTHERS = {
    "t5": "Unigram (UGM), of T5 and its relatives",
    "bert": "WordPiece (WPM), of BERT and other embedding models",
    "rwkv": "the longest match of RWKV",
    "plamo2": "the lattice of PLaMo 2",
    "hybriddna": "BPE with pieces of DNA between <dna> and </dna>",
    "whitespace": "BPE without white space, of embedding models",
    "none": "a file without a vocabulary",
    "no_vocab": "a file without a vocabulary",
}


def load_tokenizer(gguf: GGUFFile) -> Tokenizer:
    """The tokenizer of a model file.

    Raises TokenizerError for an unknown kind of vocabulary and one that contradicts itself, GGUFError for keys
    that are missing or of the wrong type. Warns (MixkvWarning) where the file's pre-tokenizer is unknown.
    """
    _check_kind(gguf.str("tokenizer.ggml.model"))  # before reading lists that other kinds need not have
    return build_tokenizer(read_vocabulary(gguf))


def build_tokenizer(vocab: Vocabulary) -> Tokenizer:
    """The tokenizer for a vocabulary. Raises TokenizerError."""
    _check_kind(vocab.model)
    return _KINDS[vocab.model](vocab)


def _check_kind(model: str) -> None:
    if model not in _KINDS:
        kind = f", {_OTHERS[model]}" if model in _OTHERS else ""
        raise TokenizerError(
            f"unknown tokenizer {model[:60]!r} (tokenizer.ggml.model{kind}); this program knows llama (SPM), gpt2 "
            "(BPE) and gemma4 (BPE on text as it is): use a model with one of these"
        )
