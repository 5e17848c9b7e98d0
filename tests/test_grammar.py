"""Constrained output: every text fits, and it is the text that masks alone would give, token by token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammar_tools import DEFS, EVERY_KIND, KINDS, accepts, constraint, drawn
from jsonschema import Draft202012Validator, FormatChecker
from model_tools import random_llama
from tokenizer_vocabs import NORMAL, bpe_metadata, spm_metadata, tokenizer_of

import mixkv
from mixkv.engine.decode import FORCED_AT_ONCE, Processor
from mixkv.engine.grammar.constraint import Constraint
from mixkv.engine.grammar.vocabulary import GrammarVocabulary
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.tokenizer import build_tokenizer, make_vocabulary
from mixkv.engine.tokenizer.bpe import ALPHABET

HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}  # fmt: skip


def check(text: str | bytes, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(text))


@pytest.fixture(scope="module")
def demo() -> mixkv.LLM:
    return mixkv.load(None, n_threads=1, n_parallel=4)


@pytest.fixture(scope="module", params=["spm", "bpe"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GrammarVocabulary:
    made = spm_metadata() if request.param == "spm" else bpe_metadata()
    return GrammarVocabulary(tokenizer_of(tmp_path_factory.mktemp("vocab"), made))


# Every text fits


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_each_kind_fits_its_schema_whatever_is_drawn(vocabulary: GrammarVocabulary, kind: str) -> None:
    """Noise in place of a model: a keyword that is read past, or a mask that is a token late, shows in some."""
    schema = {"$defs": DEFS, **KINDS[kind]}
    ended = 0
    for seed in range(25):
        text = drawn(constraint(vocabulary, json_schema=schema), vocabulary.tokenizer, seed)
        if text is not None:
            check(text, schema)
            ended += 1
    assert ended >= 20


def test_a_model_at_a_high_temperature_writes_json_of_every_kind(demo: mixkv.LLM) -> None:
    """All kinds in one object, each text another draw; the demo model has never seen JSON. docs/log.md has 200 of them,
    with all the blanks that it likes to write."""
    schema = {**EVERY_KIND, "x-guidance": {"whitespace_flexible": False}}
    params = [SamplingParams(json_schema=schema, temperature=1.5, seed=seed) for seed in range(8)]
    for out in demo.generate_batch(["Once upon a time"] * len(params), params=params):
        assert out.finish_reason == "stop" and out.error is None
        check(out.text, EVERY_KIND)


@pytest.mark.parametrize(
    "settings, pattern",
    [
        ({"regex": r"[A-Z][a-z]{1,6}(, [0-9]{1,3})?\."}, r"[A-Z][a-z]{1,6}(, [0-9]{1,3})?\."),
        ({"grammar": 'root ::= ("yes" | "no") "!"{1,3}'}, "(yes|no)!{1,3}"),
        ({"grammar": 'start: WORD ("," WORD)~0..2\nWORD: /[a-z]{1,4}/'}, "[a-z]{1,4}(,[a-z]{1,4}){0,2}"),
        ({"grammar": 'start: "(" inner ")"\ninner: start | "é" | "日本"'}, r"\(+(é|日本)\)+"),
    ],
    ids=["regex", "gbnf", "lark", "recursive"],
)
def test_texts_match(demo: mixkv.LLM, settings: dict[str, Any], pattern: str) -> None:
    for seed in range(10):
        out = demo.generate("Once", **settings, **HOT, seed=seed, max_tokens=200)
        assert out.finish_reason == "length" or re.fullmatch(pattern, out.text), out.text


# Forced tokens


class Alone(Constraint):
    """Never says what is forced: each token is computed by itself."""

    def forced(self) -> list[int]:
        return []


@pytest.mark.parametrize("options", [{"temperature": 0.0}, HOT, {"mirostat": 2}], ids=["greedy", "hot", "mirostat"])
@pytest.mark.parametrize("draft", [None, "lookup"])
@pytest.mark.parametrize("cache", [{}, {"mixed_kv_cache": True, "hot_window": 16}], ids=["f16", "mixed"])
def test_forced_tokens_change_nothing_but_the_number_of_steps(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], draft: str | None, cache: dict[str, Any]
) -> None:
    """Computed as one batch they must be counted, streamed and judged like all others, with the same bits and the same
    random numbers: log probabilities tell."""
    llm, control = (mixkv.load(None, n_threads=1, n_ctx=512, **cache) for _ in range(2))
    options = {**options, "json_schema": PERSON, "seed": 7, "logprobs": 3, "repeat_penalty": 1.1}
    stream = llm.stream("Once upon a time", draft=draft, **options)
    chunks = list(stream)
    with monkeypatch.context() as patched:
        patched.setattr("mixkv.engine.grammar.constraint.Constraint", Alone)
        single = control.stream("Once upon a time", **options)
        wanted = single.completion()
    assert (stream.tokens, stream.text, stream.finish_reason) == (wanted.tokens, wanted.text, wanted.finish_reason)
    assert stream.logprobs == wanted.logprobs
    assert [chunk.token for chunk in chunks[:-1]] == wanted.tokens
    assert stream.stats.generated_tokens == len(wanted.tokens)
    assert stream.job.steps < single.job.steps and single.job.steps >= len(wanted.tokens)
    assert llm.tokens == control.tokens
    assert np.array_equal(llm.sequence.feed([5, 6]), control.sequence.feed([5, 6]))
    check(wanted.text, PERSON)


def test_limits_and_stops_cut_forced_text_where_they_say(demo: mixkv.LLM) -> None:
    """A run that is computed at once could run past max_tokens, the context, or a stop string."""
    whole = demo.generate("Once", regex="the whole of this sentence is forced", temperature=0.0)
    assert (whole.text, whole.finish_reason) == ("the whole of this sentence is forced", "stop")
    for n in range(len(whole.tokens)):
        out = demo.generate("Once", regex="the whole of this sentence is forced", temperature=0.0, max_tokens=n)
        assert (out.tokens, out.finish_reason) == (whole.tokens[:n], "length")
    out = demo.generate("Once", regex="the whole of this sentence is forced", stop=[" sentence"])
    assert (out.text, out.stop, out.finish_reason) == ("the whole of this", " sentence", "stop")
    small = mixkv.load(None, n_threads=1, n_ctx=8)
    assert small.generate([5, 6, 7], regex="the whole of this sentence is forced").tokens == whole.tokens[:6]


@pytest.mark.parametrize("n_batch, at_once", [(512, FORCED_AT_ONCE + 1), (4, 4), (1, 1)])
def test_a_long_forced_text_comes_in_pieces(n_batch: int, at_once: int) -> None:
    """A step of hundreds of tokens holds up everybody else's stream, has logits for each of them, and is more than
    the caches have room for when `n_batch` is small."""
    text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 3
    llm = mixkv.load(None, n_threads=1, n_ctx=512, n_batch=n_batch, mixed_kv_cache=True, hot_window=16)
    stream = llm.stream("Once", grammar=f"start: {json.dumps(text)}")
    out = stream.completion()
    assert (out.text, out.finish_reason) == (text, "stop")
    assert (len(out.tokens) - 1) / at_once <= stream.job.steps <= 1 + len("Once") + 1.2 * len(out.tokens) / at_once


# Ends


def test_a_text_ends_where_its_grammar_allows_it(demo: mixkv.LLM) -> None:
    """The end of the text is a token like others: likely too soon, or banned for ever."""
    eager = dict.fromkeys(demo.tokenizer.eog_ids, 1000.0)
    out = demo.generate("Once", regex="[ab]{3,5}c*", logit_bias=eager)
    assert len(out.text) in (3, 4) and out.finish_reason == "stop", "at the first chance; tokens may have two letters"
    never = dict.fromkeys(demo.tokenizer.eog_ids, -float("inf"))
    for options in ({"logit_bias": never}, {"ignore_eos": True}):
        out = demo.generate("Once", regex="[ab]{3,5}", **options, seed=1)
        assert (len(out.text), out.finish_reason) == (5, "stop"), "nothing can follow the fifth"


def test_words_that_end_a_text_are_not_drawn_as_text(tmp_path: Path) -> None:
    """GPT-2's files name no end, whose default is the token of a comma there."""
    tokenizer = tokenizer_of(tmp_path, bpe_metadata(eos_token_id=None, bos_token_id=None))
    vocabulary = GrammarVocabulary(tokenizer)
    text_ends = [i for i in tokenizer.eog_ids if not tokenizer.is_control(i)]
    assert text_ends, "this test is about an end that is written as text"
    word = tokenizer.piece(text_ends[0])[0]
    allowed = constraint(vocabulary, regex=f"[\\x{word:02x};]a").mask(np.zeros(tokenizer.n_vocab, np.float32)) == 0
    assert [tokenizer.piece(int(i)) for i in np.flatnonzero(allowed)] == [b";"]


def test_a_vocabulary_without_an_end_comes_to_one() -> None:
    """Where nothing can follow it is over; where something can, no token that does not exist is drawn."""
    tokenizer = build_tokenizer(make_vocabulary("gpt2", [c.encode() for c in ALPHABET], merges=[], pre="gpt-2"))
    assert not tokenizer.eog_ids
    text = drawn(constraint(GrammarVocabulary(tokenizer), json_schema=PERSON), tokenizer, 1)
    assert text is not None
    check(text, PERSON)
    assert drawn(constraint(GrammarVocabulary(tokenizer), regex="a+"), tokenizer, 1, most=50) is None


def test_special_tokens_are_no_text(vocabulary: GrammarVocabulary) -> None:
    """`<|im_end|>` is written with characters that a string may hold, and would print nothing."""
    tokenizer = vocabulary.tokenizer
    allowed = constraint(vocabulary, regex=r"[^x]{2,}").mask(np.zeros(tokenizer.n_vocab, np.float32)) == 0
    special = [i for i in range(tokenizer.n_vocab) if tokenizer.is_control(i)]
    assert not allowed[special].any() and allowed[tokenizer.encode_on("<tool>")].all()


# Beginning later


class Script(Processor):
    """Leaves one token each time, the next of a text's, and then has no wish; says what would have been allowed."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.allowed = list(tokens), list[np.ndarray]()

    def mask(self, logits: np.ndarray) -> np.ndarray:
        self.allowed.append(logits > -np.inf)
        if not self.tokens:
            return logits
        out = np.full_like(logits, -np.inf)
        out[self.tokens[0]] = 0
        return out

    def accept(self, token: int) -> None:
        self.tokens = self.tokens[1:]


def test_a_grammar_can_begin_behind_a_text(demo: mixkv.LLM) -> None:
    """Thoughts are free, and what follows their closing tag is held, also where the tag comes in pieces."""
    thought = demo.tokenizer.encode_on("<think> I know </think >, {no}. </think>")
    script = Script(thought)
    out = demo.generate("Once", json_schema=PERSON, starts_after="</think>", processors=[script], **HOT, seed=3)
    begin, answer = out.text.split("</think>")
    assert begin == "<think> I know </think >, {no}. " and out.finish_reason == "stop"
    check(answer, PERSON)
    assert script.allowed[0].all(), "anything may be thought"


def test_the_token_that_completes_the_text_brings_nothing_else_along(tmp_path: Path) -> None:
    """`s>` ends the tag; `s>{` would end it and begin an answer that the grammar never saw."""
    made = bpe_metadata()
    extra = ["s>{", "s>Ċ", "x</tags>y"]
    made["tokenizer.ggml.tokens"] = [*made["tokenizer.ggml.tokens"], *extra]  # type: ignore[misc]
    kinds = made["tokenizer.ggml.token_type"]
    made["tokenizer.ggml.token_type"] = np.append(kinds, [NORMAL] * len(extra)).astype(np.int32)  # type: ignore[arg-type]
    tokenizer = tokenizer_of(tmp_path, made)
    of = {tokenizer.piece(i): i for i in range(tokenizer.n_vocab)}
    rule = constraint(GrammarVocabulary(tokenizer), starts_after="</tags>", regex="[0-9]")
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    banned = np.flatnonzero(rule.mask(logits) < 0).tolist()
    assert banned == [of[b"x</tags>y"]]
    for char in b"</tag":
        rule.accept(of[bytes([char])])
    banned = np.flatnonzero(rule.mask(logits) < 0).tolist()
    assert sorted(banned) == sorted([of[b"s>{"], of[b"x</tags>y"]])
    rule.accept(of[b"s>\n"])
    assert {tokenizer.piece(int(i)) for i in np.flatnonzero(rule.mask(logits) == 0)} == {b"%d" % i for i in range(10)}


# Many at once


def test_prompts_of_a_batch_have_grammars_of_their_own(demo: mixkv.LLM) -> None:
    """Each text is that which its prompt gets alone; one that cannot begin leaves the others."""
    every = [
        SamplingParams(json_schema=PERSON, seed=1, **HOT), SamplingParams(regex="[xyz]{9}", seed=2, **HOT),
        SamplingParams(max_tokens=12, seed=3), SamplingParams(grammar='root ::= "a" [b-d]{4} "e"', seed=4),
        SamplingParams(regex="("), SamplingParams(json_schema=PERSON, seed=5, temperature=1.0),
    ]  # fmt: skip
    prompts = ["Once upon a time", "Emma", "Once upon a time", "He", "He", "Once upon"]
    outs = demo.generate_batch(prompts, params=every)
    for prompt, params, out in zip(prompts, every, outs, strict=True):
        if params.regex == "(":
            assert out.finish_reason == "error" and "regex: " in str(out.error)
            continue
        alone = mixkv.load(None, n_threads=1).generate(prompt, params=params)
        assert (out.text, out.tokens, out.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)


def test_the_same_seed_gives_the_same_text_again(demo: mixkv.LLM) -> None:
    """A matcher that is kept from one generation to the next stands at the end of the last one."""
    first, again, other = (demo.generate("Once", json_schema=PERSON, **HOT, seed=s) for s in (11, 11, 12))
    assert first.tokens == again.tokens != other.tokens


def test_a_model_with_a_small_vocabulary(tmp_path: Path) -> None:
    """276 tokens, not a multiple of 32: the last word of its mask is half empty."""
    llm = mixkv.load(random_llama(tmp_path / "llama.gguf"), n_threads=1, n_ctx=256)
    for seed in range(5):
        check(llm.generate([5, 6], json_schema=PERSON, **HOT, seed=seed).text, PERSON)


def test_texts_that_are_not_utf8_yet_are_told_from_others(vocabulary: GrammarVocabulary) -> None:
    assert accepts(vocabulary, "ñ", regex="[ñ]") and not accepts(vocabulary, "ñ", regex="[ò]")
