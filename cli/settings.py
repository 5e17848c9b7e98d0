"""From flags to the engine's dataclasses: preset below, flags on top; contradictions and flags without effect found.

Everything here raises ConfigError, which ends with status 2, before a model is opened.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import Any

from mixkv.cli.flags import SWITCH_WORDS
from mixkv.cli.grammar_options import GrammarFlags
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
from mixkv.cli.sampling_options import ChainFlags, SamplingFlags
from mixkv.cli.text import unescape
from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sampling.params import CONSTRAINTS
from mixkv.kernels.errors import ConfigError

OFF = ("off", "0", "false", "disabled")
OF_ONE_KIND = ("type_k", "type_v", "rotate", "q4_scale", "kv_plan")
"""Settings of a preset that were meant for its own kind of cache, mixed or uniform."""


def cache_config(flags: CacheFlags) -> KVCacheConfig:
    """The cache that preset and flags describe together."""
    given = _given(flags)
    settings = _of_preset(given.pop("preset", None), "cache")
    mixed = given.get("mixed_kv_cache", settings.get("mixed_kv_cache", False))
    if mixed != settings.get("mixed_kv_cache", mixed):
        settings = {name: value for name, value in settings.items() if name not in OF_ONE_KIND}
    if not mixed:
        for name, spelled in (("hot_window", "--hot-window"), ("sink_tokens", "--sink-tokens")):
            if name in given:
                raise ConfigError(f"{spelled} is of the mixed cache only: add --mixed-kv-cache, or leave it out")
    return KVCacheConfig.from_keywords(**{**settings, **given})


def sampling_params(
    flags: SamplingFlags, cache: CacheFlags, *, escape: bool, chain: ChainFlags | None = None,
    logprobs: int | None = None, special: bool = False, grammar: GrammarFlags | None = None,
) -> SamplingParams:  # fmt: skip
    """The sampling that preset and flags describe together. escape: read \\n and the like in stop strings."""
    given = _given(flags)
    if "max_tokens" in given and given["max_tokens"] == -2:  # llama-cli's second word for the same
        given["max_tokens"] = -1
    for name in ("stop", "dry_sequence_breakers"):
        if name in given:
            given[name] = tuple(unescape(text) if escape else text for text in given[name])
    if given.get("dry_sequence_breakers") == ("none",):
        given["dry_sequence_breakers"] = ()
    if "logit_bias" in given:
        given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
    samplers = chain.chosen() if chain is not None else None
    if samplers is not None:
        given["samplers"] = samplers
    if logprobs is not None:
        given["logprobs"] = logprobs
    if special:
        given["skip_special_tokens"] = False
    settings = _of_preset(cache.preset, "sampling")
    if grammar is not None and (constraint := grammar.chosen()):
        given.update(constraint)
        settings = {name: value for name, value in settings.items() if name not in CONSTRAINTS}
    return SamplingParams.from_options({**settings, **given})


def _given(flags: Any) -> dict[str, Any]:
    """What was given: neither None nor an empty list."""
    return {name: value for name, value in asdict(flags).items() if value is not None and value != []}


def _of_preset(name: str | None, table: str) -> dict[str, Any]:
    """A table, "cache" or "sampling", of the preset with this name; empty without one."""
    if name is None:
        return {}
    from mixkv.configs import load_preset  # it reads TOML and the package's files: 8 ms for those who name no preset

    return dict(getattr(load_preset(name), table))


def _bias(text: str) -> tuple[int, float]:
    """llama-cli's TOKEN_ID(+/-)BIAS."""
    match = re.fullmatch(r"([0-9]+)([+-](?:inf|[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?))", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--logit-bias {text!r}: write a token id, a sign and a number, such as 15043+1 or 15043-inf")
    return int(match[1]), float(match[2])


def context_size(flags: ModelFlags) -> int | None:
    """Tokens that the context shall hold; None: as many as the model was made for, which llama-cli writes 0."""
    if flags.n_ctx < 0:
        raise ConfigError(f"-c {flags.n_ctx}: give a number of tokens, or 0 for what the model was made for")
    return flags.n_ctx or None


def wants_chat(flags: ConversationFlags, turns: TurnFlags) -> bool:
    """Whether `generate` was asked to be a chat; -st is one of one turn, unless -no-cnv says otherwise."""
    if flags.no_conversation and (flags.conversation or flags.interactive):
        raise ConfigError("-no-cnv contradicts -cnv and -i: give one of them")
    return flags.conversation or flags.interactive or (turns.single_turn and not flags.no_conversation)


def may_chat(flags: ConversationFlags, prompt: PromptFlags, json: JsonFlags, prompt_cache: PromptCacheFlags) -> bool:
    """Whether `generate` is a chat by itself where the model has a chat template: a person sits at both ends, and
    nothing was asked for that a chat does not do."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    other = (
        flags.no_conversation or json.json or prompt_cache.prompt_cache or prompt.parse_special or prompt.file == "-"
    )
    return at_terminal and not other


def check_output(output: OutputFlags, json: JsonFlags | None = None, *, chat: bool = False) -> None:
    """Flags about output that contradict each other."""
    if output.quiet and output.verbose:
        raise ConfigError("-q (--log-disable) contradicts -v: give one of them")
    if output.color not in SWITCH_WORDS:
        raise ConfigError(f"--color {output.color!r}: use on, off or auto")
    if json is not None:
        if json.logprobs is not None and not json.json:
            raise ConfigError("--logprobs is shown in the JSON object only: add --json")
        if json.json and chat:
            raise ConfigError("--json contradicts a chat (-cnv, -i): give one of them")


def check_prompt_cache(flags: PromptCacheFlags, sampling: SamplingParams, *, chat: bool) -> None:
    """Flags about the prompt cache that contradict each other or the rest."""
    if flags.prompt_cache is None:
        if flags.prompt_cache_all or flags.prompt_cache_ro:
            raise ConfigError("--prompt-cache-all and --prompt-cache-ro need --prompt-cache FILE")
        return
    if flags.prompt_cache_all and flags.prompt_cache_ro:
        raise ConfigError("--prompt-cache-all contradicts --prompt-cache-ro: give one of them")
    if chat:
        raise ConfigError("--prompt-cache is not for a chat (-cnv, -i): leave it out")
    if sampling.max_tokens == 0:
        raise ConfigError("--prompt-cache keeps the computed prompt, which -n 0 does not compute: use -n 1")
