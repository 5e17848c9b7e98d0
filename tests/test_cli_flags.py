"""Flags without a process: how llama-cli's spellings are read, what presets and flags add up to, what contradicts."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from mixkv.cli import main, settings
from mixkv.cli.accepted import AcceptedFlags, notes
from mixkv.cli.flags import spell_out
from mixkv.cli.machine import MachineFlags, chosen_cpus
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
from mixkv.cli.overrides import OverrideFlags, overrides
from mixkv.cli.sampling_options import LETTERS, ChainFlags, SamplingFlags
from mixkv.cli.terminal import harmless
from mixkv.cli.text import own_prompt, unescape, with_system
from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError

GROUP: Any = typer.main.get_command(main._app())
GENERATE: Any = GROUP.commands["generate"]


def parsed(line: str) -> dict[str, Any]:
    """The parameters that the real parser finds in a command line of `mixkv-cli`."""
    context = GENERATE.make_context("mixkv-cli", spell_out(line.split(), GENERATE.params, ["-h", "--help"]))
    assert isinstance(context.params, dict)
    return context.params


@pytest.mark.parametrize(
    ("line", "switch", "other"),
    [
        ("-fa", "on", {}),
        ("-p hi -fa", "on", {"prompt": "hi"}),
        ("-fa -t 8", "on", {"n_threads": 8}),
        ("-fa off -t 8", "off", {"n_threads": 8}),
        ("-fa auto", "auto", {}),
        ("-t 8 --flash-attn --mixed-kv-cache", "on", {"n_threads": 8, "mixed_kv_cache": True}),
        ("--flash-attn=off", "off", {}),
        ("-p -fa", None, {"prompt": "-fa"}),
        ("-p hi", None, {}),
    ],
)
def test_a_bare_fa_is_legal_everywhere_and_values_of_other_flags_are_not_touched(
    line: str, switch: str | None, other: dict[str, Any]
) -> None:
    found = parsed(line)
    assert found["flash_attn"] == switch
    assert {name: found[name] for name in other} == other


def accepted(line: str) -> AcceptedFlags:
    """The flags without effect of a command line."""
    found = parsed(line)
    return AcceptedFlags(**{field.name: found[field.name] for field in dataclasses.fields(AcceptedFlags)})


@pytest.mark.parametrize("flags", [ChainFlags(samplers="temp;nucleus;top-k"), ChainFlags(sampler_seq="tpk")])
def test_samplers_are_named_in_every_way_of_llama_cli(flags: ChainFlags) -> None:
    params = settings.sampling_params(SamplingFlags(), CacheFlags(), escape=True, chain=flags)
    assert params.samplers == ("temperature", "top_p", "top_k")
    assert "".join(LETTERS) == "edskypmxt", "llama-cli's own default sequence"
    assert (
        settings.sampling_params(SamplingFlags(), CacheFlags(), escape=True, chain=ChainFlags(samplers="")).samplers
        == ()
    )


def test_what_the_model_file_is_to_say_instead() -> None:
    flags = OverrideFlags(
        rope_scaling="yarn", rope_freq_scale=0.25, rope_freq_base=5e5, yarn_orig_ctx=64, yarn_ext_factor=0.0,
        yarn_attn_factor=-1.0, override_kv=["a.b=str:x,y,c=int:-3", "d=bool:true,e=float:1e-5"],
    )  # fmt: skip
    assert overrides(flags) == {
        "{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0, "{arch}.rope.freq_base": 5e5,
        "{arch}.rope.scaling.original_context_length": 64, "{arch}.rope.scaling.yarn_ext_factor": 0.0,
        "a.b": "x,y", "c": -3, "d": True, "e": 1e-5,
    }  # fmt: skip
    unset = OverrideFlags(rope_scale=0.0, rope_freq_base=0.0, yarn_orig_ctx=0, yarn_ext_factor=-1.0)
    assert overrides(unset) == {}, "llama-cli's own defaults leave what the file says"


def test_cores_are_those_of_mask_and_range_together() -> None:
    assert chosen_cpus(MachineFlags()) is None
    assert chosen_cpus(MachineFlags(cpu_mask="0xA")) == {1, 3}
    assert chosen_cpus(MachineFlags(cpu_mask="8", cpu_range="0-0")) == {0, 3}
    assert chosen_cpus(MachineFlags(cpu_range="-")) == set(range(max(os.sched_getaffinity(0)) + 1))


def test_every_word_of_the_command_line_contract_is_understood() -> None:
    """The table of shared flags, each spelled in every way that llama-cli has."""
    found = parsed(
        "-m m.gguf -p hi -sys kind -n 5 -c 64 -t 2 -tb 2 -b 32 -ub 32 -s 7 -e --no-display-prompt -no-cnv --keep 1 "
        "-r A -r B --ignore-eos -v --color --temp 0.5 --top-k 3 --top-p 0.5 --min-p 0.1 --typical 0.9 "
        "--repeat-penalty 1.1 --repeat-last-n 9 --presence-penalty 0.1 --frequency-penalty 0.2 --dry-multiplier 0.8 "
        "--dry-base 1.7 --dry-allowed-length 3 --dry-penalty-last-n 64 --dry-sequence-breaker x --xtc-probability 0.5 "
        "--xtc-threshold 0.2 --mirostat 2 --mirostat-lr 0.2 --mirostat-ent 4 -l 15043+1 -l 2-inf -fa on "
        "-ngl 10 --mlock --no-mmap --mixed-kv-cache -ctk q8_0 -ctv q4_0 --hot-window 64 --sink-tokens 4 --kv-rotate on "
        "--preset default --json"
    )
    assert list(found["stop"]) == ["A", "B"]
    assert (found["temperature"], found["mirostat_ent"], list(found["dry_sequence_breakers"])) == (0.5, 4.0, ["x"])
    assert (found["type_k"], found["type_v"], found["rotate"], found["color"]) == ("q8_0", "q4_0", "on", "on")
    pairs = [
        "--n-predict --predict -n", "--ctx-size -c", "--threads -t", "--threads-batch -tb", "--batch-size -b",
        "--ubatch-size -ub", "--seed -s", "--gpu-layers --n-gpu-layers -ngl", "--keep",
    ]  # fmt: skip
    for names in pairs:
        values = [{k: v for k, v in parsed(f"{name} 3").items() if v in (3, "3")} for name in names.split()]
        assert values[0]
        assert all(value == values[0] for value in values)
    negative = parsed("-n -1 -s -1 -t -1")
    assert (negative["max_tokens"], negative["seed"], negative["n_threads"]) == (-1, -1, -1)
    assert parsed("-cnv")["conversation"]
    assert parsed("-i")["interactive"]
    assert parsed("-f x")["file"] == "x"
    assert parsed("--ctx_size 3 --repeat_penalty=2 -p --ctx_size")["n_ctx"] == 3, "llama-cli takes _ for -"


@pytest.mark.parametrize("flags", [SamplingFlags, CacheFlags])
def test_flags_are_fields_of_the_engine_and_the_help_states_their_defaults(flags: type) -> None:
    """A flag without a field would be dropped; a default that moves in the engine must move in the help."""
    engine = {f.name: f.default for kind in (SamplingParams, KVCacheConfig) for f in dataclasses.fields(kind)}
    for field in dataclasses.fields(flags):
        if field.name == "preset":
            continue
        assert field.name in engine
        default, option = engine[field.name], field.metadata["option"]
        stated = re.search(r"\(default: (-?[0-9.]+)\)", option.help)
        if type(default) in (int, float) or field.name in ("max_tokens", "seed"):
            assert stated, field.name
            assert float(stated[1]) == (-1 if default is None else default), field.name
        else:
            assert not stated, field.name


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (r"a\nb\tc\rd", "a\nb\tc\rd"),
        (r"\\n \" \'", "\\n \" '"),
        (r"\x41\xc3\xa9", "Aé"),
        (r"\q \x4 C:\dir", r"\q \x4 C:\dir"),
        ("\\", "\\"),
        ("é", "é"),
    ],
)
def test_escapes_mean_what_they_mean_to_llama_cli(text: str, meaning: str) -> None:
    assert unescape(text) == meaning


def test_flags_win_over_the_preset_and_the_preset_over_the_defaults() -> None:
    config = settings.cache_config(CacheFlags(preset="low-memory", sink_tokens=2))
    assert config == KVCacheConfig(mixed_kv_cache=True, hot_window=64, sink_tokens=2, type_k="q4_0", type_v="q4_0")
    assert settings.cache_config(CacheFlags()) == KVCacheConfig()
    assert settings.cache_config(CacheFlags(mixed_kv_cache=True, rotate="off")) == KVCacheConfig(True, rotate="off")
    assert settings.cache_config(CacheFlags(type_k="q8_0")) == KVCacheConfig(type_k="q8_0")
    chosen = settings.cache_config(CacheFlags(q4_scale="plain", kv_plan="off"))
    assert chosen == KVCacheConfig(q4_scale="plain", kv_plan="off")


def test_types_of_a_preset_are_not_carried_over_to_the_other_kind_of_cache() -> None:
    """Cold types of 4 bits would become those of the whole cache, and f16 would become the cold type."""
    plain = settings.cache_config(CacheFlags(preset="default", mixed_kv_cache=False))
    assert (plain.mixed_kv_cache, plain.type_k, plain.type_v) == (False, None, None)
    mixed = settings.cache_config(CacheFlags(preset="llama-cpp", mixed_kv_cache=True))
    assert mixed == KVCacheConfig(mixed_kv_cache=True)


def test_sampling_flags_become_sampling_params(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("[sampling]\ntop_k = 7\ntop_p = 0.5\n", encoding="utf-8")
    flags = SamplingFlags(
        max_tokens=-2, top_p=0.25, stop=[r"\n"], logit_bias=["5+1.5", "7-inf", "9-2e1"], dry_sequence_breakers=["none"]
    )
    params = settings.sampling_params(flags, CacheFlags(preset=str(preset)), escape=True, logprobs=2)
    assert params == SamplingParams(
        top_k=7, top_p=0.25, stop=("\n",), logit_bias={5: 1.5, 7: float("-inf"), 9: -20.0}, dry_sequence_breakers=(),
        logprobs=2,
    )  # fmt: skip
    assert settings.sampling_params(flags, CacheFlags(), escape=False).stop == (r"\n",)


@pytest.mark.parametrize("bias", ["5", "+1", "a+1", "5+", "5+1+1", "5+nan", "5 1", "-5+1"])
def test_a_logit_bias_that_is_none_is_refused(bias: str) -> None:
    with pytest.raises(ConfigError, match="logit-bias"):
        settings.sampling_params(SamplingFlags(logit_bias=[bias]), CacheFlags(), escape=True)


BAD_PAIRS = ["", "a", "a=1", "a=int:x", "a=bool:yes", "a=float:", "a=list:1", "=int:1"]


def contradictions() -> list[tuple[str, Any]]:
    """(what the message says, the check that must raise)"""
    mixed_only = [CacheFlags(hot_window=1), CacheFlags(preset="llama-cpp", sink_tokens=1)]
    greedy = SamplingParams(max_tokens=5)
    cache = PromptCacheFlags(prompt_cache="x")
    both = PromptCacheFlags(prompt_cache="x", prompt_cache_all=True, prompt_cache_ro=True)
    return [
        *(("mixed cache only", lambda flags=flags: settings.cache_config(flags)) for flags in mixed_only),
        (
            "contradicts -cnv",
            lambda: settings.wants_chat(ConversationFlags(no_conversation=True, interactive=True), TurnFlags()),
        ),
        ("-q (--log-disable) contradicts -v", lambda: settings.check_output(OutputFlags(quiet=True, verbose=True))),
        ("use on, off or auto", lambda: settings.check_output(OutputFlags(color="maybe"))),
        ("add --json", lambda: settings.check_output(OutputFlags(), JsonFlags(logprobs=1))),
        ("contradicts a chat", lambda: settings.check_output(OutputFlags(), JsonFlags(json=True), chat=True)),
        ("-c -5", lambda: settings.context_size(ModelFlags(n_ctx=-5))),
        ("-p and -f", lambda: own_prompt(PromptFlags(prompt="x", file="y"))),
        ("-fa perhaps: use on, off, auto", lambda: notes(AcceptedFlags(flash_attn="perhaps"), ModelFlags())),
        ("-ngl many", lambda: notes(AcceptedFlags(gpu_layers="many"), ModelFlags())),
        ("in two ways", lambda: ChainFlags(samplers="top_k", sampler_seq="k").chosen()),
        ("no sampler 'infill'", lambda: ChainFlags(samplers="top_k;infill").chosen()),
        ("no sampler 'z'", lambda: ChainFlags(sampler_seq="kz").chosen()),
        ("in two ways", lambda: overrides(OverrideFlags(rope_scale=2.0, rope_freq_scale=0.5))),
        ("--rope-freq-scale -2", lambda: overrides(OverrideFlags(rope_freq_scale=-2.0))),
        ("--rope-scaling 'ntk'", lambda: overrides(OverrideFlags(rope_scaling="ntk"))),
        *(("KEY=TYPE:VALUE", lambda text=text: overrides(OverrideFlags(override_kv=[text]))) for text in BAD_PAIRS),
        *(("-C", lambda mask=mask: chosen_cpus(MachineFlags(cpu_mask=mask))) for mask in ("", "zz", "-1")),
        *(("-Cr", lambda cpus=cpus: chosen_cpus(MachineFlags(cpu_range=cpus))) for cpus in ("", "1", "a-b", "1,2")),
        (
            "need --prompt-cache",
            lambda: settings.check_prompt_cache(PromptCacheFlags(prompt_cache_ro=True), greedy, chat=False),
        ),
        ("contradicts --prompt-cache-ro", lambda: settings.check_prompt_cache(both, greedy, chat=False)),
        ("not for a chat", lambda: settings.check_prompt_cache(cache, greedy, chat=True)),
        ("-n 0", lambda: settings.check_prompt_cache(cache, SamplingParams(max_tokens=0), chat=False)),
    ]


@pytest.mark.parametrize(("message", "check"), contradictions())
def test_contradictions_are_refused(message: str, check: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check()


def test_flags_that_ask_for_what_happens_anyway_say_nothing() -> None:
    words = "-fa -ngl 0 -tb 4 -ub 256 -nkvo --no-context-shift --no-warmup -sm none -dev none -fit on --cpu-strict 0"
    assert notes(accepted(words), ModelFlags(n_threads=4, n_batch=256)) == []


def test_the_system_prompt_goes_first() -> None:
    assert with_system(PromptFlags(system=r"Be\nkind."), "Hello") == "Be\nkind.\n\nHello"
    assert with_system(PromptFlags(system="Be kind."), "") == "Be kind.\n\n"


def test_text_from_a_model_cannot_steer_a_terminal() -> None:
    assert harmless("a\x1b[2J\x07\x9b1m\tb\n") == "a�[2J��1m\tb\n"
