"""`mixkv generate`, which is `mixkv-cli`: continue a prompt."""

from __future__ import annotations

import json as json_format
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixkv.cli import settings
from mixkv.cli.accepted import AcceptedFlags, RefusedFlags, notes, refuse
from mixkv.cli.chat_options import ChatFlags, chat_settings, without_effect
from mixkv.cli.flags import with_flags
from mixkv.cli.grammar_options import GrammarFlags
from mixkv.cli.hub import HubFlags
from mixkv.cli.machine import MachineFlags
from mixkv.cli.options import (
    CacheFlags,
    ConversationFlags,
    JsonFlags,
    ModelFlags,
    OutputFlags,
    PromptCacheFlags,
    PromptFlags,
    TurnFlags,
)
from mixkv.cli.overrides import OverrideFlags
from mixkv.cli.sampling_options import ChainFlags, SamplingFlags
from mixkv.cli.session import Opening, open_llm, show_statistics
from mixkv.cli.start import INTERRUPTED
from mixkv.cli.terminal import DONE, Terminal, harmless
from mixkv.cli.text import read_prompt
from mixkv.kernels.errors import ConfigError, SessionError

if TYPE_CHECKING:
    from mixkv.engine.generation import Generation
    from mixkv.engine.llm import LLM


@with_flags
def generate(
    prompt: PromptFlags, conversation: ConversationFlags, turns: TurnFlags, chat: ChatFlags, model: ModelFlags,
    hub: HubFlags, cache: CacheFlags, prompt_cache: PromptCacheFlags, sampling: SamplingFlags, chain: ChainFlags,
    grammar: GrammarFlags, output: OutputFlags, json: JsonFlags, machine: MachineFlags, changes: OverrideFlags,
    accepted: AcceptedFlags, refused: RefusedFlags,
) -> int:  # fmt: skip
    """Continue a prompt. The text goes to stdout and nothing else does; all other words go to stderr.

    At a terminal, with a model that has a chat template, this is a chat (-no-cnv: it is not). Without -p and -f the
    prompt is read from stdin; -f - puts piped text before that of -p. On a terminal the prompt is shown before the
    text. Exit status: 0 done, 1 the run failed, 2 the command line is wrong, 130 interrupted (what there was by then
    has been written).
    """
    refuse(refused)
    chats = settings.wants_chat(conversation, turns)
    settings.check_output(output, json, chat=chats)
    params = settings.sampling_params(
        sampling, cache, escape=prompt.escape, chain=chain, logprobs=json.logprobs, special=output.special,
        grammar=grammar,
    )  # fmt: skip
    settings.check_prompt_cache(prompt_cache, params, chat=chats)
    chosen = chat_settings(chat)
    opening = Opening(model, hub, changes, machine, settings.cache_config(cache))
    terminal = Terminal(quiet=output.quiet, verbose=output.verbose, perf=output.perf)
    for note in notes(accepted, model):
        terminal.note(note)
    llm: LLM | None = None
    if chats or settings.may_chat(conversation, prompt, json, prompt_cache):
        from mixkv.cli import chat as chat_command

        if chats:
            chat_command.check(prompt)
        llm = open_llm(opening, terminal)
        if chats or chat_command.has_template(llm, chosen):
            return chat_command.converse(llm, prompt, turns, chosen, params, terminal)
    for name in without_effect(chat):
        terminal.note(f"{name} has no effect without a chat: add -cnv")
    text = read_prompt(prompt)
    saved = _holds_something(prompt_cache.prompt_cache)
    if text is None and not saved:
        raise ConfigError("there is no prompt: give -p TEXT or -f FILE, or pipe text in (-h shows all flags)")
    llm = llm or open_llm(opening, terminal)
    if saved:
        _load_prompt_cache(llm, prompt_cache.prompt_cache)
    known = llm.tokens
    ids = known if text is None else llm.tokenize(text, parse_special=prompt.parse_special is not False)
    run = _Run(llm, ids, known, prompt_cache, terminal)
    if json.json:
        return run.as_json(params)
    shown = text if text and sys.stdout.isatty() and not prompt.no_display_prompt else ""
    return run.as_text(params, shown, color=output.color not in settings.OFF)


def _holds_something(path: str | None) -> bool:
    """Whether there is a prompt cache to start from; an empty file, as mktemp makes it, is none yet."""
    return path is not None and Path(path).exists() and Path(path).stat().st_size > 0


def _load_prompt_cache(llm: LLM, path: str | None) -> None:
    """Restore the sequence. The engine's advice is for people who write Python: here it is about flags."""
    assert path is not None
    try:
        llm.load_session(path)
    except SessionError as error:
        advice = "give the cache flags that it was saved with, or --prompt-cache another file"
        text = str(error).replace("load with the same settings, or convert it (convert=True)", advice)
        has_advice = advice in text or "load with -c" in text
        raise SessionError(text if has_advice else f"{text}; give --prompt-cache another file") from None


class _Run:
    """One generation, its text or JSON to stdout."""

    def __init__(
        self, llm: LLM, ids: list[int], saved: list[int], prompt_cache: PromptCacheFlags, terminal: Terminal
    ) -> None:
        """saved: the tokens that the prompt cache's file holds."""
        self.llm, self.ids, self.saved, self.files, self.terminal = llm, ids, saved, prompt_cache, terminal

    def as_text(self, params: Any, shown: str, *, color: bool) -> int:
        """Write the text as it comes; `shown` goes before it."""
        wrote = ""

        def write(piece: str) -> None:
            nonlocal wrote
            wrote = piece or wrote
            sys.stdout.write(harmless(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()

        def begin() -> None:
            write(shown) if not color or not shown else sys.stdout.write(f"\x1b[33m{harmless(shown)}\x1b[0m")

        generation = self._generate(params, begin, write)
        if sys.stdout.isatty() and not wrote.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        show_statistics(generation.stats, self.llm, self.terminal)
        return INTERRUPTED if generation.finish_reason in (None, "interrupted") else DONE

    def as_json(self, params: Any) -> int:
        """Write one JSON object at the end."""
        generation = self._generate(params, lambda: None, lambda piece: None)
        reason = generation.finish_reason or "interrupted"
        stats = generation.stats
        found: dict[str, Any] = {
            "text": generation.text,
            "tokens": generation.tokens,
            "finish_reason": reason,
            "stats": {
                **asdict(stats),
                "prompt_tokens_per_second": stats.prompt_tokens_per_second,
                "decode_tokens_per_second": stats.decode_tokens_per_second,
                "cache": {**asdict(stats.cache), "nbytes": stats.cache.nbytes},
            },
        }
        if params.logprobs is not None:
            found["logprobs"] = [
                {"token": entry.token, "logprob": _finite(entry.logprob),
                 "top": [[token, _finite(value)] for token, value in entry.top]}
                for entry in generation.logprobs
            ]  # fmt: skip
        print(json_format.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)
        show_statistics(stats, self.llm, self.terminal)
        return INTERRUPTED if reason == "interrupted" else DONE

    def _generate(self, params: Any, begin: Any, write: Any) -> Generation:
        """Run to the end or to Ctrl-C. begin() is called when the prompt has been computed."""
        with self.terminal.progress(f"prompt, {len(self.ids)} tokens") as report:
            generation = self.llm.stream(self.ids, params=params, progress=report)
            first = next(generation)
        if generation.finish_reason == "interrupted" and not generation.tokens:
            return generation  # within the prompt: nothing to show, nothing worth keeping
        try:
            self._save(at_end=False)
            begin()
            write(first.text)
            for chunk in generation:
                write(chunk.text)
        except KeyboardInterrupt:  # between two tokens; within one the engine ends the text itself
            pass
        self._save(at_end=True)
        return generation

    def _save(self, *, at_end: bool) -> None:
        """Write the prompt cache, unless its file holds all this already: a longer one is worth more."""
        path, tokens = self.files.prompt_cache, self.llm.tokens
        if path is None or self.files.prompt_cache_ro or self.files.prompt_cache_all is not at_end:
            return
        if tokens != self.saved[: len(tokens)]:
            self.llm.save_session(path)


def _finite(value: float) -> float | None:
    """JSON has no infinity: the log probability of what cannot be is null."""
    return value if math.isfinite(value) else None
