"""Flags that change what a model file says of itself: RoPE, YaRN, and any key by its name.

Names and meanings are llama-cli's: 0 for RoPE's numbers and a negative one for YaRN's leave the file's value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mixkv.cli.flags import flag
from mixkv.kernels.errors import ConfigError

ROPE = "Against the model file (RoPE, YaRN, metadata)"
SCALINGS = ("none", "linear", "yarn")
_KEY = "{arch}.rope."
_KEYS = {
    "rope_scaling": "scaling.type",
    "rope_scale": "scaling.factor",
    "rope_freq_base": "freq_base",
    "yarn_orig_ctx": "scaling.original_context_length",
    "yarn_ext_factor": "scaling.yarn_ext_factor",
    "yarn_attn_factor": "scaling.attn_factor",
    "yarn_beta_slow": "scaling.yarn_beta_slow",
    "yarn_beta_fast": "scaling.yarn_beta_fast",
}
_PAIR = re.compile(r"([^=,]+)=(int|float|bool|str):(.*)", re.DOTALL)
_NEXT_PAIR = re.compile(r",(?=[^=,]+=(?:int|float|bool|str):)")


@dataclass(frozen=True)
class OverrideFlags:
    """What the model file is to say instead; None where a flag was not given."""

    rope_scaling: str | None = flag(
        "--rope-scaling",
        panel=ROPE,
        metavar="none|linear|yarn",
        help="How positions are stretched",
        default="the model's",
    )
    rope_scale: float | None = flag("--rope-scale", panel=ROPE, help="Stretch the context to N times its length")
    rope_freq_scale: float | None = flag("--rope-freq-scale", panel=ROPE, help="The same, as 1/N")
    rope_freq_base: float | None = flag("--rope-freq-base", panel=ROPE, help="Base frequency", default="the model's")
    yarn_orig_ctx: int | None = flag("--yarn-orig-ctx", panel=ROPE, help="YaRN: tokens before it was stretched")
    yarn_ext_factor: float | None = flag("--yarn-ext-factor", panel=ROPE, help="YaRN: extrapolation mix; 0: none")
    yarn_attn_factor: float | None = flag("--yarn-attn-factor", panel=ROPE, help="YaRN: factor on cos and sin")
    yarn_beta_slow: float | None = flag("--yarn-beta-slow", panel=ROPE, help="YaRN: turns below which all is stretched")
    yarn_beta_fast: float | None = flag("--yarn-beta-fast", panel=ROPE, help="YaRN: turns above which nothing is")
    override_kv: list[str] | None = flag(  # noqa: RUF009  # a new list is made for each run
        "--override-kv", panel=ROPE, metavar="KEY=TYPE:VALUE",
        help="Metadata of the model file; TYPE: int, float, bool, str; may be repeated, or with commas between",
    )  # fmt: skip


def overrides(flags: OverrideFlags) -> dict[str, object]:
    """`load`'s overrides. ConfigError for a value that cannot be one."""
    found: dict[str, object] = {}
    if flags.rope_scaling is not None and flags.rope_scaling not in SCALINGS:
        raise ConfigError(f"--rope-scaling {flags.rope_scaling!r}: use none, linear or yarn")
    if flags.rope_scale and flags.rope_freq_scale:
        raise ConfigError("--rope-scale and --rope-freq-scale say the same in two ways: give one of them")
    for name, key in _KEYS.items():
        value = getattr(flags, name)
        if name == "rope_scale" and flags.rope_freq_scale:
            name, value = "rope_freq_scale", flags.rope_freq_scale
        if value is None or (name.startswith("yarn") and value < 0) or (name != "yarn_ext_factor" and value == 0):
            continue
        if not isinstance(value, str) and not 0 <= value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give a positive number")
        found[_KEY + key] = 1.0 / value if name == "rope_freq_scale" else value
    for text in flags.override_kv or []:
        found.update(_pair(pair) for pair in _NEXT_PAIR.split(text))
    return found


def _pair(text: str) -> tuple[str, object]:
    """KEY=TYPE:VALUE, the value in its type."""
    match = _PAIR.fullmatch(text)
    if match is not None:
        key, kind, value = match.groups()
        try:
            if kind == "bool":
                return key, {"true": True, "false": False}[value]
            return key, {"int": int, "float": float, "str": str}[kind](value)
        except (KeyError, ValueError):
            pass
    raise ConfigError(
        f"--override-kv {text!r}: write KEY=TYPE:VALUE, such as tokenizer.ggml.add_bos_token=bool:false; "
        "TYPE is int, float, bool or str"
    )
