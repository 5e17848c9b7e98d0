"""Turns of a chat with models whose state cannot be cut back: each computes the new turn alone, as other models do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import families
from tiny_parts import VOCAB

import mixkv
from mixkv.engine.sequence import common_prefix
from mixkv.engine.waypoints import BEFORE_END, LEAST, REPLY_EVERY

NAMES = ["qwen35", "lfm2", "granitehybrid", "falcon-h1", "mamba2", "nemotron_h", "gemma3", "gpt-oss"]
FILES = families()
REPLY, TURN, TURNS = 75, 40, 10
SETTINGS: dict[str, Any] = {
    "n_ctx": 2048, "n_batch": 48, "n_threads": 1, "mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 4,
    "kv_plan": "off", "prefix_reuse": "exact",
}  # fmt: skip
OPTIONS: dict[str, Any] = {"max_tokens": REPLY, "temperature": 0.0, "ignore_eos": True}
THINK = [3, 4]
"""What a prompt ends with, and a template leaves out of the next."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chats")


@cache
def file_of(folder: Path, name: str) -> Path:
    return FILES[name].write(folder / f"{NAMES.index(name)}.gguf", "Q8_0")


@pytest.fixture(params=NAMES)
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[mixkv.LLM]:
    with mixkv.load(file_of(folder, request.param), **SETTINGS) as llm:
        yield llm


def words(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(5, VOCAB, n).tolist()


TEMPLATES = {
    "as sampled": (lambda prompt, reply: prompt + reply, 0),
    "another end": (lambda prompt, reply: prompt + reply[:-4] + [3], 2 * REPLY_EVERY),
    "without thinking": (lambda prompt, reply: prompt[: -len(THINK)] + reply[-20:], BEFORE_END + LEAST),
}
"""How a template writes an answer down, and how many tokens more are computed again than differ."""


@pytest.mark.parametrize("template", TEMPLATES)
def test_ten_turns(llm: mixkv.LLM, folder: Path, template: str) -> None:
    """Every turn computed the whole conversation again, where the answer came back in other tokens than were sampled.
    What other models would reuse is what these reuse, but for a few tokens; and the text is that of a fresh start."""
    written, most = TEMPLATES[template]
    prompt = [1, *words(TURN, 0), *THINK]
    for turn in range(1, TURNS):
        reply = llm.generate(prompt, **OPTIONS)
        assert len(reply.tokens) == REPLY
        before = llm.tokens
        prompt = [*written(prompt, reply.tokens), *words(TURN, turn), *THINK]
        common = common_prefix(before, prompt)
        reused = llm.generate(prompt, max_tokens=1, temperature=0.0).stats.reused_tokens
        assert common - most <= reused <= common, f"turn {turn}"
        assert llm.cache.stats().degraded_tokens == 0
    mine = llm.generate(prompt, **OPTIONS).tokens
    llm.reset()
    assert llm.generate(prompt, **OPTIONS).tokens == mine


def test_the_same_prompt_once_more(llm: mixkv.LLM) -> None:
    """The last token is computed for its logits, and the checkpoint stood behind it: all was computed again."""
    prompt = [1, *words(200, 0)]
    first = llm.generate(prompt, **OPTIONS)
    again = llm.generate(prompt, **OPTIONS)
    assert again.stats.reused_tokens >= len(prompt) - BEFORE_END - 1 and again.tokens == first.tokens


def test_instructions_that_prompts_have_in_common(llm: mixkv.LLM) -> None:
    """The second prompt shows where the first one's instructions ended; from the third on they are there."""
    system = [1, *words(300, 0)]
    reused = [llm.generate([*system, 5 + i, *words(TURN, i)], **OPTIONS).stats.reused_tokens for i in range(4)]
    assert reused[0] == 0 and reused[2:] == [len(system)] * 2


def test_sessions_and_forks(llm: mixkv.LLM, folder: Path, tmp_path: Path) -> None:
    """A fork has its original's checkpoints; a restored session goes on where it was saved."""
    prompt = [1, *words(100, 0), *THINK]
    reply = llm.generate(prompt, **OPTIONS).tokens
    llm.save_session(tmp_path / "s")
    stats, fork = llm.cache.stats(), llm.fork()
    assert fork.cache.stats() == stats
    shorter, longer = [*prompt[:-2], *reply[-5:], *words(20, 1)], [*prompt, *reply, *words(20, 1)]
    expected = {}
    for case in (shorter, longer):
        llm.reset()
        expected[tuple(case)] = llm.generate(case, **OPTIONS).tokens
    with fork, fork.fork() as other:
        for copy, case in ((fork, shorter), (other, longer)):
            got = copy.generate(case, **OPTIONS)
            assert got.tokens == expected[tuple(case)]
            assert got.stats.reused_tokens >= len(prompt) - BEFORE_END
    llm.load_session(tmp_path / "s")
    got = llm.generate(longer, **OPTIONS)
    assert got.stats.reused_tokens == len(prompt) + REPLY - 1 and got.tokens == expected[tuple(longer)]


def test_a_long_prompt_has_checkpoints_inside(folder: Path) -> None:
    """Whoever changes a message in the middle goes on from there."""
    with mixkv.load(file_of(folder, "lfm2"), **{**SETTINGS, "n_ctx": 4096, "n_batch": 512}) as llm:
        prompt = [1, *words(4000, 0)]
        llm.generate(prompt, max_tokens=1)
        changed = [*prompt[:3000], 3, 4, *prompt[3000:]]
        assert llm.generate(changed, max_tokens=1).stats.reused_tokens == 2048
        stats = llm.cache.stats()
        assert 0 < stats.checkpoint_bytes <= stats.nbytes <= stats.peak_bytes


def test_models_of_keys_alone_stop_for_nothing(folder: Path, tmp_path: Path) -> None:
    """Neither checkpoints nor passes: 48 tokens are one step."""
    with mixkv.load(FILES["llama"].write(tmp_path / "m.gguf", "Q8_0"), **SETTINGS) as llm:
        stream = llm.stream([1, *words(47, 0)], max_tokens=50, temperature=0.0)
        next(stream)
        assert stream.job.steps == 1
        list(stream)
        assert llm.cache.stats().checkpoint_bytes == 0 and not llm.cache.needs_checkpoints
