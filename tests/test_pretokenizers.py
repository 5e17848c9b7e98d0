"""The rules that cut text into words: nothing is lost, and nothing takes long, whatever stands in a text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from mixkv.engine.tokenizer.pretokenizers import RULES, find_rule, pre_tokenizer

DIFFERENT = {tuple(rule.expressions): name for name, rule in RULES.items()}  # one name for each list of expressions
RUNS = [" ", "\n", "\r\n", "\t", "\u3000", "\u2028", "a", "A", "aA", "\u01c5", "7", "!", "'s", "\u4e2d", "\uac00",
        "\u0301", "A\u0301", "\U0001f600", " \n", " a"]  # fmt: skip
ENDS = ["", "x", "1", "!", "\u4e2d"]
LENGTH = 40_000


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_pre_tokenizer_keeps_the_text(name: str) -> None:
    """Cut text, put together, is the text: nothing lost at the cuts."""
    text = "It's 12345 Words,\tfooBar \u00e9\u00c9 \u4e2d\u6587 \uac00  \r\n\n x<|y|>^~ \U0001f600\u3000\u0301a"
    cuts = pre_tokenizer(RULES[name]).pre_tokenize_str(text)
    assert "".join(piece for piece, _ in cuts) == text and all(piece for piece, _ in cuts)
    assert len(cuts) > 8


@pytest.mark.parametrize("name", sorted(DIFFERENT.values()))
def test_no_run_of_characters_takes_long(name: str) -> None:
    """`deepseek-llm` took 9 s for 40,000 spaces before a digit, four times as long for twice as many: `\\s+$` was tried
    at each of them. Every class of characters, with each end that can break a match off at the last moment."""
    cut = pre_tokenizer(RULES[name]).pre_tokenize_str
    for run in RUNS:
        for end in ENDS:
            text = run * (LENGTH // len(run)) + end
            start = time.process_time()
            pieces = cut(text)
            seconds = time.process_time() - start
            assert seconds < 3, f"{run!r} with {end!r} behind: {seconds:.0f} s"
            assert sum(len(piece) for piece, _ in pieces) == len(text)


@pytest.mark.parametrize(
    ("name", "same"), [("kormo", "qwen2"), ("f2llmv2", "qwen2"), ("jina-v5-nano", "llama-bpe"), ("talkie", "gpt-4o")]
)
def test_names_that_mean_the_same(name: str, same: str) -> None:
    """Files with newer names were cut by the default rule, with a warning."""
    assert find_rule(name) == find_rule(same)


def test_minicpm5_cuts_numbers_in_threes() -> None:
    """MiniCPM 5 is stored as `llama` and was cut by the default rule, which keeps longer words apart."""
    rule = find_rule("minicpm5")
    cuts = [piece for piece, _ in pre_tokenizer(rule).pre_tokenize_str("It's 12345 fooBar!\n\nx")]
    assert cuts == ["It", "'s", " ", "123", "45", " fooBar", "!\n\n", "x"] and rule.ignore_merges


def rule_of(expressions: list[str]) -> PreTokenizer:
    return Sequence([Split(Regex(e), behavior="isolated", invert=False) for e in expressions])


ORIGINAL_ENDS = {"deepseek-llm": (r"(?<!\s)\s+$", r"\s+$")}
"""What an expression was before it was made fast."""


@pytest.mark.parametrize("name", ORIGINAL_ENDS)
@given(text=st.text(st.sampled_from(" \t\n\r\v\u3000\u2028\u00a0aA1!\u4e2d\u0301"), max_size=24))
def test_fast_expressions_cut_like_those_of_the_vocabulary(name: str, text: str) -> None:
    """Cuts are what models were trained with: only the way there may change."""
    fast, original = ORIGINAL_ENDS[name]
    assert fast in RULES[name].expressions
    slow = rule_of([original if e == fast else e for e in RULES[name].expressions])
    assert pre_tokenizer(RULES[name]).pre_tokenize_str(text) == slow.pre_tokenize_str(text)
