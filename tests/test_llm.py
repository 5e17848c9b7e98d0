"""The LLM as its users have it: load, generate, stream, logits, and what each does with odd requests.

Text comes from the demo model; where only tokens matter, a small random model is faster.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_tools import random_llama

import mixkv

PROMPT = "Once upon a time, in a small house by the sea,"
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}


@cache
def demo(mixed: bool = True) -> mixkv.LLM:
    return mixkv.load(n_threads=1, dense=True, mixed_kv_cache=mixed, n_ctx=256)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


@pytest.fixture
def small(path: Path) -> mixkv.LLM:
    return mixkv.load(path, n_threads=1, dense=True, n_ctx=128)


class TestAgreement:
    """Three ways to the same tokens."""

    def test_stream_and_generate(self) -> None:
        out = demo().generate(PROMPT, **GREEDY)
        stream = demo().stream(PROMPT, **GREEDY)
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == out.text == stream.text == str(out)
        assert [chunk.token for chunk in chunks if chunk.token is not None] == out.tokens == stream.tokens
        reasons = [chunk.finish_reason for chunk in chunks]
        assert reasons[-1] == out.finish_reason == stream.finish_reason == "length"
        assert not any(reasons[:-1])

    def test_text_is_that_of_the_tokens(self) -> None:
        out = demo().generate(PROMPT, **GREEDY)
        ids = demo().tokenize(PROMPT)
        assert demo().tokenizer.decode(ids + out.tokens) == PROMPT + out.text

    def test_logits_and_greedy_tokens(self) -> None:
        out = demo().generate(PROMPT, **GREEDY)
        ids = demo().tokenize(PROMPT)
        logits = demo().logits(ids + out.tokens[:-1])
        assert logits.shape == (len(ids) + 23, demo().config.n_vocab) and logits.dtype == np.float32
        assert logits[len(ids) - 1 :].argmax(axis=1).tolist() == out.tokens

    def test_logprobs_are_those_of_the_logits(self) -> None:
        """Of the model's own distribution, whatever the sampler does with it."""
        out = demo().generate(PROMPT, max_tokens=6, temperature=1.5, seed=3, logprobs=4)
        assert out.logprobs is not None and len(out.logprobs) == 6
        ids = demo().tokenize(PROMPT)
        logits = demo().logits(ids + out.tokens[:-1])[len(ids) - 1 :].astype(np.float64)
        wanted = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        wanted -= logits.max(axis=1, keepdims=True)
        for entry, token, row in zip(out.logprobs, out.tokens, wanted, strict=True):
            assert entry.token == token and entry.logprob == pytest.approx(row[token], abs=1e-3)
            best = np.argsort(-row)[:4].tolist()
            assert [t for t, _ in entry.top] == best
            np.testing.assert_allclose([p for _, p in entry.top], row[best], atol=1e-3)

    def test_chunks_carry_logprobs_only_when_asked(self, small: mixkv.LLM) -> None:
        chunk = next(small.stream([5], max_tokens=2, logprobs=2, temperature=0.0))
        assert chunk.logprob is not None and chunk.top_logprobs is not None and len(chunk.top_logprobs) == 2
        chunk = next(small.stream([5], max_tokens=2))
        assert chunk.logprob is None and chunk.top_logprobs is None
        assert small.generate([5], max_tokens=1).logprobs is None

    def test_one_shot(self) -> None:
        out = mixkv.generate(None, PROMPT, n_threads=1, mixed_kv_cache=True, n_ctx=64, max_tokens=5, temperature=0.0)
        assert out.tokens == demo().generate(PROMPT, max_tokens=5, temperature=0.0).tokens


class TestEnds:
    """Every way a generation ends."""

    def test_a_stop_string_across_tokens_is_cut_off(self) -> None:
        """Stop strings rarely fall on token borders; half of one must never be shown."""
        out = demo().generate(PROMPT, **GREEDY)
        pieces = [chunk.text for chunk in demo().stream(PROMPT, **GREEDY)]
        border = len("".join(pieces[:10]))
        stop = out.text[border - 3 : border + 3]
        assert out.text.find(stop) < border < out.text.find(stop) + len(stop) <= len(out.text)
        stream = demo().stream(PROMPT, **GREEDY, stop=stop)
        shown = [chunk.text for chunk in stream]
        assert "".join(shown) == out.text[: out.text.find(stop)] == stream.text
        assert stream.finish_reason == "stop"
        cut = demo().generate(PROMPT, **GREEDY, stop=["never said", stop])
        assert (cut.stop, cut.finish_reason, cut.text) == (stop, "stop", stream.text)
        assert cut.tokens == out.tokens[: len(cut.tokens)] and len(cut.tokens) < 24

    def test_an_end_token_ends_it_and_is_not_text(self, small: mixkv.LLM) -> None:
        eos = small.tokenizer.eos_id
        assert eos is not None
        out = small.generate("the", max_tokens=20, logit_bias={eos: 1e4})
        assert (out.text, out.tokens, out.finish_reason) == ("", [], "stop")
        out = small.generate("the", max_tokens=20, logit_bias={eos: 1e4}, ignore_eos=True)
        assert len(out.tokens) == 20 and eos not in out.tokens and out.finish_reason == "length"

    def test_a_full_context_is_length(self, small: mixkv.LLM) -> None:
        """The last token needs no place: it is never fed."""
        out = small.generate([7] * 100, ignore_eos=True)
        assert (len(out.tokens), out.finish_reason, small.cache.n) == (29, "length", 128)
        out = small.generate([7] * 128, ignore_eos=True)
        assert (len(out.tokens), out.finish_reason) == (1, "length")

    @pytest.mark.parametrize("n", [0, 1])
    def test_few_tokens(self, small: mixkv.LLM, n: int) -> None:
        out = small.generate([7, 8], max_tokens=n, ignore_eos=True)
        assert (len(out.tokens), out.finish_reason) == (n, "length")
        assert n == 1 or out.text == ""

    def test_interrupted_while_the_prompt_is_read(self, path: Path) -> None:
        """Ctrl-C returns what there is: here, nothing; and the prompt's first chunks are kept for the next call."""
        llm = mixkv.load(path, n_threads=1, n_batch=16)

        def interrupt(done: int, total: int) -> None:
            assert total == 100
            if done >= 32:
                raise KeyboardInterrupt

        ids = list(range(10, 110))
        out = llm.generate(ids, max_tokens=5, progress=interrupt)
        assert (out.tokens, out.text, out.finish_reason) == ([], "", "interrupted")
        assert llm.tokens == ids[:32]
        again = llm.generate(ids, **GREEDY)
        assert again.stats.reused_tokens == 32
        assert again.tokens == mixkv.load(path, n_threads=1).generate(ids, **GREEDY).tokens

    def test_interrupted_while_it_writes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = demo().generate(PROMPT, **GREEDY)
        stream = demo().stream(PROMPT, **GREEDY)
        sample, calls = stream.sampler.sample, 0

        def interrupted(logits: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 8:
                raise KeyboardInterrupt
            return sample(logits)

        monkeypatch.setattr(stream.sampler, "sample", interrupted)
        out = stream.completion()
        assert out.finish_reason == "interrupted"
        assert out.tokens == whole.tokens[:7] and whole.text.startswith(out.text) and out.text
        assert demo().generate(PROMPT, **GREEDY).tokens == whole.tokens

    def test_an_error_in_the_middle_leaves_the_llm_usable(self, small: mixkv.LLM) -> None:
        def fail(done: int, total: int) -> None:
            raise RuntimeError("the caller's own bug")

        wanted = small.generate([9, 8, 7], **GREEDY).tokens
        with pytest.raises(RuntimeError, match="own bug"):
            small.generate([1, 2, 3, 4], progress=fail)
        assert small.generate([9, 8, 7], **GREEDY).tokens == wanted


class TestSampling:
    def test_a_seed_repeats_and_another_differs(self, small: mixkv.LLM) -> None:
        a, b, c = (small.generate("the", max_tokens=20, seed=seed, temperature=1.0).tokens for seed in (1, 1, 2))
        assert a == b != c

    def test_a_drawn_seed_is_reported_and_repeats(self, small: mixkv.LLM) -> None:
        out = small.generate("the", max_tokens=20, temperature=1.0)
        again = small.generate("the", max_tokens=20, temperature=1.0, seed=out.stats.seed)
        assert out.stats.seed is not None and again.tokens == out.tokens

    def test_options_stand_on_top_of_params(self, small: mixkv.LLM) -> None:
        params = mixkv.SamplingParams(max_tokens=3, temperature=0.0)
        assert len(small.generate("the", params=params, ignore_eos=True).tokens) == 3
        assert len(small.generate("the", params=params, max_tokens=5, ignore_eos=True).tokens) == 5


class TestSideBySide:
    def test_two_llms_do_not_disturb_each_other(self, path: Path) -> None:
        a, b = mixkv.load(path, n_threads=1), mixkv.load(path, n_threads=1, mixed_kv_cache=True, hot_window=16)
        alone = [llm.generate([20 + i] * 40, **GREEDY).tokens for i, llm in enumerate((a, b))]
        for llm in (a, b):
            llm.reset()
        streams = [llm.stream([20 + i] * 40, **GREEDY) for i, llm in enumerate((a, b))]
        for _ in zip(*streams, strict=True):
            pass
        assert [stream.tokens for stream in streams] == alone

    def test_a_stream_that_was_overtaken_says_so(self, small: mixkv.LLM) -> None:
        """It would go on with another text's keys and values: silent garbage."""
        old = small.stream([7, 8, 9], **GREEDY)
        first = next(old).token
        assert small.generate([30, 31], **GREEDY).tokens
        with pytest.raises(mixkv.InputError, match="took its place"):
            list(old)
        assert old.tokens == [first] and list(old) == []
        assert small.generate([7, 8, 9], **GREEDY).tokens[0] == first

    def test_calls_from_other_threads_wait_for_their_turn(self, small: mixkv.LLM) -> None:
        prompts = [[10 + i] * (5 + 7 * i) for i in range(4)]
        wanted = [small.generate(prompt, **GREEDY).tokens for prompt in prompts]
        got: dict[int, list[int]] = {}

        def run(i: int) -> None:
            got[i] = small.generate(prompts[i], **GREEDY).tokens

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[i] for i in range(4)] == wanted
