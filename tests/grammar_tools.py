"""What tests of constrained output share: a schema of every kind, and texts drawn by a constraint from noise alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixkv.engine.grammar.constraint import Constraint, constraint_of
from mixkv.engine.grammar.source import grammar_of
from mixkv.engine.grammar.vocabulary import GrammarVocabulary
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.tokenizer import Tokenizer
from mixkv.kernels import default_backend

KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "maxLength": 12},
    "exact length": {"type": "string", "minLength": 4, "maxLength": 4},
    "enum": {"enum": ["red", "green", 7, None, True]},
    "const": {"const": {"version": 1.5, "tags": ["a", "b"]}},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "loose pattern": {"type": "string", "pattern": "[0-9]x", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "integer range": {"type": "integer", "minimum": -20, "maximum": 117},
    "exclusive range": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 6},
    "number range": {"type": "number", "minimum": 0.5, "maximum": 12.25},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    "boolean or null": {"type": ["boolean", "null"]},
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 4},
    "tuple": {
        "type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False, "minItems": 2,
    },
    "nested": {
        "type": "object",
        "properties": {
            "a": {"type": "object", "properties": {"b": {"enum": [1]}}, "required": ["b"], "maxProperties": 1},
        },
        "required": ["a"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"p": {"type": "boolean"}, "q": {"type": "integer", "minimum": 0, "maximum": 99}},
        "additionalProperties": False,
    },
    "map": {
        "type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False,
        "maxProperties": 3,
    },
    "reference": {"$ref": "#/$defs/point"},
    "recursive reference": {"$ref": "#/$defs/tree"},
    "any of": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"$ref": "#/$defs/point"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 44}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"enum": ["yes", "no"]}]},
}  # fmt: skip
DEFS: dict[str, Any] = {
    "point": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": -9, "maximum": 9} for name in ("x", "y")},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    "tree": {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 9},
            {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
        ]
    },
}
EVERY_KIND: dict[str, Any] = {
    "type": "object", "properties": KINDS, "required": list(KINDS), "additionalProperties": False, "$defs": DEFS,
}  # fmt: skip


def constraint(vocabulary: GrammarVocabulary, starts_after: str | None = None, **settings: Any) -> Constraint:
    """A constraint of these settings of SamplingParams."""
    return constraint_of(SamplingParams(**settings), vocabulary, default_backend(), starts_after)


def drawn(rule: Constraint, tokenizer: Tokenizer, seed: int, most: int = 400) -> bytes | None:
    """The bytes of tokens drawn by the rule's masks from random logits; None where they come to no end."""
    rng = np.random.default_rng(seed)
    said = b""
    for _ in range(most):
        logits = 3 * rng.standard_normal(tokenizer.n_vocab, dtype=np.float32)
        masked = rule.mask(logits)
        token = int(np.argmax(masked))
        assert masked[token] == logits[token], "nothing is allowed"
        if token in tokenizer.eog_ids:
            return said
        said += tokenizer.piece(token)
        rule.accept(token)
        if rule.ended:
            return said
    return None


def accepts(vocabulary: GrammarVocabulary, text: str, **settings: Any) -> bool:
    """Whether the grammar of these settings has this text, whole; written in the vocabulary's single bytes."""
    tokenizer = vocabulary.tokenizer
    byte = {tokenizer.piece(i): i for i in range(tokenizer.n_vocab) if i not in tokenizer.eog_ids}
    ids = [byte[bytes([value])] for value in text.encode()]
    matcher = vocabulary.matcher(*grammar_of(SamplingParams(**settings)))
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())
