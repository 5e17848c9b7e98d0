"""Prompt lookup: what is proposed never changes a text, and is proposed only where it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tools import random_llama

import mixkv
from mixkv.engine.decode import Processor
from mixkv.engine.lookup import LENGTHS, PROBE_EVERY, SHORTEST, PromptLookup

REPEATING = [*range(20, 60), *range(20, 60), *range(20, 33)]
CACHES: dict[str, dict[str, Any]] = {
    "f16": {},
    "mixed": {"mixed_kv_cache": True, "hot_window": 17, "sink_tokens": 3},
    "no window": {"type_k": "q4_0", "type_v": "q8_0"},
    "reserve": {"mixed_kv_cache": True, "hot_window": 16, "rollback_reserve": 9},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of full length wherever there is a match, right or wrong."""
    monkeypatch.setattr(PromptLookup, "_best_length", lambda self: LENGTHS[-1])


class Wrong(PromptLookup):
    """Proposes what the text never says: every draft is rolled back."""

    def propose(self, most: int) -> list[int]:
        return [7, 8, 9, 10, 11, 12, 13][:most]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["eager", "wrong"])
def test_the_text_is_that_without_drafts(
    path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, options: dict[str, Any], drafter: str
) -> None:
    """Also with penalties, which look at every token, and where every proposal is turned down: a rejected draft that
    left a trace in the cache or in the random numbers would show in the tokens or in the logits afterwards."""
    llm, control = (mixkv.load(path, n_threads=1, n_ctx=256, **CACHES[cache]) for _ in range(2))
    options |= {"max_tokens": 100, "repeat_penalty": 1.1, "ignore_eos": True}
    wanted = control.generate(REPEATING, **options)
    if drafter == "eager":
        eager(monkeypatch)
    else:
        monkeypatch.setattr("mixkv.engine.generation.PromptLookup", Wrong)
    got = llm.generate(REPEATING, draft="lookup", **options)
    assert got.tokens == wanted.tokens and got.text == wanted.text
    assert llm.tokens == control.tokens and llm.cache.stats().degraded_tokens == 0
    assert llm.cache.stats().n_tokens == control.cache.stats().n_tokens
    a, b = (model.sequence.feed([5, 6]) for model in (llm, control))
    assert abs(a - b).max() <= 1e-3


def test_drafts_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that repeats itself takes fewer forward passes than it has tokens."""
    eager(monkeypatch)
    llm = mixkv.load(path, n_threads=1, n_ctx=512)
    bias = {11: 100.0}
    stream = llm.stream([5, 6, 7], max_tokens=80, temperature=0.0, logit_bias=bias, draft="lookup", ignore_eos=True)
    assert stream.completion().tokens == [11] * 80
    assert stream.job.steps <= 1 + SHORTEST + 80 // 8 + 2


def test_the_context_and_the_limit_end_a_draft(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft past the last place in the cache would be a ContextFullError for a text that fits."""
    eager(monkeypatch)
    llm = mixkv.load(path, n_threads=1, n_ctx=128)
    options: dict[str, Any] = {"temperature": 0.0, "logit_bias": {11: 100.0}, "ignore_eos": True, "draft": "lookup"}
    out = llm.generate([5, 6, 7], **options)
    assert (out.finish_reason, len(out.tokens), llm.cache.n) == ("length", 126, 128)
    llm.reset()
    for n in range(1, 12):
        assert len(llm.generate([5, 6, 7], max_tokens=n, **options).tokens) == n


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
@settings(max_examples=200)
def test_a_proposal_is_what_followed_the_same_tokens(text: list[int], most: int) -> None:
    lookup = PromptLookup()
    lookup.judged(0, 0, 1.0)
    lookup.extend(text)
    found = lookup.propose(most)
    assert len(found) <= min(most, LENGTHS[-1])
    if found:
        last = tuple(text[-SHORTEST:])
        begins = [i for i in range(len(text) - SHORTEST) if tuple(text[i : i + SHORTEST]) == last]
        assert any((text + found)[i + SHORTEST :][: len(found)] == found for i in begins)


def test_it_gives_up_where_it_does_not_pay_and_tries_again_later() -> None:
    """Wrong drafts, and right ones that cost as much as they save, are not proposed for long."""
    for kept, seconds in ((0, 1.3), (7, 9.0)):
        lookup = PromptLookup()
        lookup.extend([1, 2, 3, 4] * 5)
        tried = []
        for _ in range(20 * PROBE_EVERY):
            draft = lookup.propose(7)
            tried.append(len(draft))
            lookup.judged(len(draft), min(kept, len(draft)), seconds if draft else 1.0)
            lookup.extend([(len(lookup._text) % 4) + 1])
        assert sum(n > 0 for n in tried[4 * PROBE_EVERY :]) <= 16 + 1
        assert any(tried[4 * PROBE_EVERY :]), "it would never notice that the text has begun to repeat itself"


class Alternating(Processor):
    """Even and odd tokens in turn, and what was accepted."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def mask(self, logits: np.ndarray) -> np.ndarray:
        masked = np.full_like(logits, -np.inf)
        masked[len(self.seen) % 2 :: 2] = logits[len(self.seen) % 2 :: 2]
        return masked

    def accept(self, token: int) -> None:
        self.seen.append(token)


@pytest.mark.parametrize("draft", [None, "lookup"])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_processors_decide_with_drafts_as_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, draft: str | None, options: dict[str, Any]
) -> None:
    """A mask that is a token ahead, or that was told of a rejected one, lets the wrong half through."""
    eager(monkeypatch)
    llm, rule = mixkv.load(path, n_threads=1, n_ctx=256), Alternating()
    out = llm.generate(REPEATING, max_tokens=40, ignore_eos=True, processors=[rule], draft=draft, **options)
    assert [token % 2 for token in out.tokens] == [0, 1] * 20 and rule.seen == out.tokens
    assert out.tokens == llm.generate(
        REPEATING, max_tokens=40, ignore_eos=True, processors=[Alternating()], **options
    ).tokens  # fmt: skip


def test_what_a_processor_raises_ends_its_own_text(path: Path) -> None:
    class Broken(Alternating):
        def accept(self, token: int) -> None:
            raise ValueError("the grammar's own bug")

    llm = mixkv.load(path, n_threads=1, n_ctx=256, n_parallel=2)
    other = llm.stream([9, 8, 7], max_tokens=5, ignore_eos=True)
    next(other)
    with pytest.raises(ValueError, match="own bug"):
        llm.generate([5, 6], max_tokens=5, processors=[Broken()])
    assert len(list(other)) == 5
