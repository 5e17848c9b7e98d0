"""The flags of all commands, declared once, in groups. A command asks for groups by its parameters' types.

Know before you change this room: names and defaults of flags are llama-cli's. A field that sets a field of
KVCacheConfig or SamplingParams has its name (settings.py copies by name), and None means "not given", so that a
preset can speak. The defaults in the help are tested against those dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.cli.flags import flag

MODEL, PROMPT, CACHE, OUTPUT = "Model and machine", "Prompt", "KV cache", "Output"


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and how it runs."""

    model: str | None = flag("-m", "--model", panel=MODEL, metavar="FILE", help="GGUF model", default="the demo model")
    n_ctx: int = flag("-c", "--ctx-size", panel=MODEL, value=0, help="Tokens the context holds; 0: as the model")
    n_threads: int = flag("-t", "--threads", panel=MODEL, value=-1, help="Threads; -1 and 0: the usable cores")
    n_batch: int = flag("-b", "--batch-size", panel=MODEL, value=512, help="Prompt tokens at a time", default="512")
    exact: bool = flag("--exact", panel=MODEL, value=False, help="Float32 activations: slower, not rounded to 8 bits")


@dataclass(frozen=True)
class PromptFlags:
    """What to continue."""

    prompt: str | None = flag("-p", "--prompt", panel=PROMPT, metavar="TEXT", help="Text to continue")
    file: str | None = flag(
        "-f", "--file", panel=PROMPT, metavar="FILE", help="The same from a file, taken as it is; -: stdin"
    )
    system: str | None = flag("-sys", "--system-prompt", panel=PROMPT, metavar="TEXT", help="Goes before everything")
    escape: bool = flag(
        "-e", "--escape/--no-escape", panel=PROMPT, value=True, default="on",
        help=r"Read \n \t \r \' \" \\ \xHH in -p, -sys and -r as characters",
    )  # fmt: skip
    parse_special: bool | None = flag(
        "--parse-special/--no-parse-special", panel=PROMPT, default="on; in a chat they are text",
        help="Special tokens written in the prompt count as such",
    )  # fmt: skip
    no_display_prompt: bool = flag(
        "--no-display-prompt/--display-prompt", panel=PROMPT, value=False,
        help="Leave the prompt out of the output (it is only shown on a terminal)",
    )  # fmt: skip


@dataclass(frozen=True)
class ConversationFlags:
    """Whether `generate` is a chat."""

    conversation: bool = flag(
        "-cnv", "--conversation", panel=PROMPT, value=False,
        help="Chat, as `mixkv chat`; by itself at a terminal, where the model has a chat template",
    )  # fmt: skip
    no_conversation: bool = flag("-no-cnv", "--no-conversation", panel=PROMPT, value=False, help="No chat")
    interactive: bool = flag("-i", "--interactive", panel=PROMPT, value=False, help="The same as -cnv")


@dataclass(frozen=True)
class TurnFlags:
    """How long a chat is."""

    single_turn: bool = flag(
        "-st", "--single-turn", panel=PROMPT, value=False, help="A chat of one turn: -p, or a line"
    )


@dataclass(frozen=True)
class CacheFlags:
    """Fields of KVCacheConfig, and the preset, which has those of SamplingParams as well."""

    mixed_kv_cache: bool | None = flag(
        "--mixed-kv-cache/--no-mixed-kv-cache", panel=CACHE, default="off",
        help="Recent tokens exact, old ones in the types of -ctk, -ctv",
    )  # fmt: skip
    type_k: str | None = flag(
        "-ctk", "--cache-type-k", panel=CACHE, metavar="TYPE", default="f16; q4_0 if mixed",
        help="Keys: f32, f16, q8_0, q4_0",
    )  # fmt: skip
    type_v: str | None = flag(
        "-ctv", "--cache-type-v", panel=CACHE, metavar="TYPE", default="f16; q4_0 if mixed", help="Values, likewise"
    )
    hot_window: int | None = flag("--hot-window", panel=CACHE, help="Newest tokens kept exact, if mixed", default="512")
    sink_tokens: int | None = flag("--sink-tokens", panel=CACHE, help="First tokens kept exact, if mixed", default="16")
    rotate: str | None = flag(
        "--kv-rotate", panel=CACHE, metavar="auto|on|off", default="auto: for 4 bits", help="Rotate before quantization"
    )
    q4_scale: str | None = flag(
        "--kv-scale", panel=CACHE, metavar="plain|unbiased", default="unbiased", help="Scales of q4_0; plain: as GGML"
    )
    kv_plan: str | None = flag(
        "--kv-plan", panel=CACHE, metavar="auto|off", default="auto",
        help="If mixed: more bits for keys of layers whose weights ask for them; `mixkv inspect --kv-plan` shows which",
    )  # fmt: skip
    preset: str | None = flag(
        "--preset", panel=CACHE, metavar="NAME",
        help="Cache and sampling: default, llama-cpp, long-context, low-memory or a .toml file; flags win over it",
    )  # fmt: skip


@dataclass(frozen=True)
class PromptCacheFlags:
    """A computed prompt on disk."""

    prompt_cache: str | None = flag(
        "--prompt-cache", panel=CACHE, metavar="FILE",
        help="Start from the computed prompt in FILE, if it holds one; save a longer or another one there. Without -p: "
        "go on from it",
    )  # fmt: skip
    prompt_cache_all: bool = flag("--prompt-cache-all", panel=CACHE, value=False, help="Save the generated text, too")
    prompt_cache_ro: bool = flag("--prompt-cache-ro", panel=CACHE, value=False, help="Only read FILE")


@dataclass(frozen=True)
class OutputFlags:
    """What is shown."""

    special: bool = flag("-sp", "--special", panel=OUTPUT, value=False, help="Print special tokens, too")
    quiet: bool = flag(
        "-q", "--quiet", "--log-disable", panel=OUTPUT, value=False, help="No progress, statistics, warnings"
    )
    perf: bool | None = flag(
        "--perf/--no-perf", "--show-timings/--no-show-timings", panel=OUTPUT, default="at a terminal",
        help="Statistics at the end",
    )  # fmt: skip
    verbose: bool = flag(
        "-v", "--verbose", panel=OUTPUT, value=False, help="Statistics and warnings also where stderr is no terminal"
    )
    color: str = flag(
        "-co", "--color", panel=OUTPUT, value="off", metavar="[on|off|auto]", help="Prompt in colour, on a terminal"
    )


@dataclass(frozen=True)
class JsonFlags:
    """Output for programs."""

    json: bool = flag("--json", panel=OUTPUT, value=False, help="One JSON object: text, tokens, finish_reason, stats")
    logprobs: int | None = flag("--logprobs", panel=OUTPUT, help="With --json: log probabilities, and the N best")
