"""Streams that were begun, and what else happens to the sequence in hand meanwhile.

A stream that goes on after its tokens were replaced writes fluent nonsense: it must end with an error, whichever way
they were.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from gguf_tools import tiny_llama, write_gguf

import mixkv

PROMPT = list(range(5, 25))
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
Change = Callable[[mixkv.LLM, Path], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "llama.gguf", *tiny_llama())


@pytest.fixture(scope="module")
def session(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 30 other tokens."""
    llm = mixkv.load(model, n_threads=1, n_ctx=128)
    llm.logits(list(range(30, 60)))
    path = tmp_path_factory.mktemp("session") / "s"
    llm.save_session(path)
    return path


@pytest.fixture
def llm(model: Path) -> mixkv.LLM:
    return mixkv.load(model, n_threads=1, n_ctx=128)


def same_length(llm: mixkv.LLM, _: Path) -> None:
    """As many tokens as before, and others: no count of tokens shows it."""
    n = len(llm.tokens)
    llm.generate([9] * n, max_tokens=1, **GREEDY)
    assert len(llm.tokens) == n


REPLACED: dict[str, Change] = {
    "load_session": lambda llm, session: llm.load_session(session),
    "load_session-of-itself": lambda llm, session: (llm.save_session(session.parent / "own"),
                                                    llm.load_session(session.parent / "own")),
    "load_session-convert": lambda llm, session: llm.load_session(session, convert=True),
    "reset": lambda llm, _: llm.reset(),
    "truncate": lambda llm, _: llm.truncate(3),
    "truncate-by-nothing": lambda llm, _: llm.truncate(len(llm.tokens)),
    "logits": lambda llm, _: llm.logits([7, 8]),
    "generate": lambda llm, _: llm.generate([7, 8], max_tokens=3, **GREEDY),
    "generate-same-length": same_length,
    "generate-same-prompt": lambda llm, _: llm.generate(PROMPT, max_tokens=3, **GREEDY),
    "generate-to-the-end": lambda llm, _: llm.generate([7, 8], **GREEDY),
    "stream": lambda llm, _: next(llm.stream([7, 8], **GREEDY)),
    "sequence.feed": lambda llm, _: llm.sequence.feed([7]),
    "sequence.truncate": lambda llm, _: llm.sequence.truncate(4),
}  # fmt: skip


@pytest.mark.parametrize("change", REPLACED)
@pytest.mark.parametrize("begun", [1, 5])
def test_a_stream_ends_when_its_tokens_are_replaced(llm: mixkv.LLM, session: Path, change: str, begun: int) -> None:
    """After `load_session` it went on in the sequence from before, and so, too, in a context that others had filled."""
    stream = llm.stream(PROMPT, **GREEDY)
    tokens = [next(stream).token for _ in range(begun)]
    REPLACED[change](llm, session)
    after = llm.tokens
    with pytest.raises(mixkv.InputError, match="this stream is over"):
        next(stream)
    assert list(stream) == [] and stream.tokens == tokens
    assert llm.tokens == after, "the stream left the new tokens alone"
    assert llm.generate(PROMPT, max_tokens=begun, **GREEDY).tokens == tokens


UNCHANGED: dict[str, Change] = {
    "save_session": lambda llm, session: llm.save_session(session.parent / "other"),
    "new_sequence": lambda llm, _: llm.new_sequence(mixkv.KVCacheConfig(), 64).feed([7, 8]),
    "a-stream-not-begun": lambda llm, _: llm.stream([7, 8]),
    "tokenize": lambda llm, _: llm.tokenize("the"),
    "load_session-refused": lambda llm, session: llm.load_session(session.parent),
    "truncate-refused": lambda llm, _: llm.truncate(200),
    "generate-refused": lambda llm, _: llm.generate([1000]),
    "logits-refused": lambda llm, _: llm.logits([]),
}


@pytest.mark.parametrize("change", UNCHANGED)
def test_a_stream_goes_on_when_nothing_was_replaced(llm: mixkv.LLM, session: Path, change: str) -> None:
    wanted = llm.generate(PROMPT, max_tokens=10, **GREEDY).tokens
    stream = llm.stream(PROMPT, max_tokens=10, **GREEDY)
    for _ in range(4):
        next(stream)
    with pytest.raises(mixkv.MixkvError) if change.endswith("refused") else nullcontext():
        UNCHANGED[change](llm, session)
    assert len(list(stream)) == 7 and stream.tokens == wanted


def test_a_stream_not_begun_starts_from_what_is_loaded(llm: mixkv.LLM, session: Path) -> None:
    """It has no tokens yet that could be replaced; it must not compute in the sequence from before."""
    prompt = [*range(30, 60), 7]
    stream = llm.stream(prompt, max_tokens=3, **GREEDY)
    llm.load_session(session)
    assert len(list(stream)) == 4 and stream.stats.reused_tokens == 30
    assert llm.tokens[:31] == prompt


def test_the_sequence_in_hand_stays_the_same_object(llm: mixkv.LLM, session: Path) -> None:
    """Whoever holds it must not go on with one that the LLM has forgotten."""
    sequence = llm.sequence
    llm.load_session(session)
    assert llm.sequence is sequence and sequence.tokens == list(range(30, 60)) and sequence.cache is llm.cache
