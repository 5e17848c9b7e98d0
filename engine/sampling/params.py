"""SamplingParams: every setting of one generation, checked when it is built.

A field that is added here needs a row in `_REALS` or `_INTEGERS` (or a line in `__post_init__`), so that no value
goes unchecked; a bad one is a ConfigError that names it. Names and defaults are those of llama-cli (2026).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from mixkv.kernels.errors import ConfigError

MAX_SEED = 2**64 - 1

# name -> (is the finite number acceptable, what is wanted, in words)
_REALS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: True, "a finite number; 0 or less always takes the most probable token"),
    "top_p": (lambda x: 0 <= x <= 1, "between 0 and 1; 1 switches it off"),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1; 0 switches it off"),
    "typical_p": (lambda x: 0 <= x <= 1, "between 0 and 1; 1 switches it off"),
    "top_n_sigma": (lambda x: True, "a finite number; 0 or less switches it off"),
    "repeat_penalty": (lambda x: 1e-6 <= x <= 1e6, "between 1e-6 and 1e6; 1 switches it off"),
    "presence_penalty": (lambda x: abs(x) <= 1e6, "between -1e6 and 1e6; 0 switches it off"),
    "frequency_penalty": (lambda x: abs(x) <= 1e6, "between -1e6 and 1e6; 0 switches it off"),
    "dry_multiplier": (lambda x: 0 <= x <= 1e6, "between 0 and 1e6; 0 switches DRY off"),
    "dry_base": (lambda x: 1 <= x <= 1e6, "between 1 and 1e6"),
    "xtc_probability": (lambda x: 0 <= x <= 1, "between 0 and 1; 0 switches XTC off"),
    "xtc_threshold": (lambda x: 0 <= x <= 1, "between 0 and 1; above 0.5 XTC never acts"),
    "mirostat_lr": (lambda x: 0 <= x <= 1e3, "a learning rate between 0 and 1000"),
    "mirostat_ent": (lambda x: 0 <= x <= 1e3, "a target surprise between 0 and 1000 bits"),
}

# name -> (lowest, highest, what is wanted, in words)
_INTEGERS: dict[str, tuple[int, int, str]] = {
    "max_tokens": (-1, 2**62, "a count of tokens; -1 or None runs until the context is full"),
    "top_k": (-1, 2**62, "a count of tokens; 0 or -1 switches it off"),
    "repeat_last_n": (-1, 2**62, "a count of tokens; -1 is the whole context, 0 switches the penalties off"),
    "dry_allowed_length": (0, 2**62, "a count of tokens, 0 or more"),
    "dry_penalty_last_n": (-1, 2**62, "a count of tokens; -1 is the whole context, 0 switches DRY off"),
    "mirostat": (0, 2, "0 (off), 1 or 2"),
    "min_keep": (0, 2**62, "a count of tokens, 0 or more"),
    "seed": (-1, MAX_SEED, "a whole number up to 2^64 - 1; -1 or None draws a random seed"),
    "logprobs": (0, 2**62, "a count of alternatives, 0 or more; None reports no probabilities"),
}
DRAFTERS = ("lookup",)
CONSTRAINTS = ("json_schema", "regex", "grammar")
"""Settings that say what the text may be, one of them at a time."""
_MINUS_ONE_IS_NONE = ("max_tokens", "seed")
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""The links of the chain, by llama.cpp's names and in its order."""


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one generation. Frozen; building one with a bad value raises ConfigError.

    After construction numbers are plain `int` and `float`, `max_tokens`, `seed` and `logprobs` may be None, `stop`
    and `dry_sequence_breakers` are tuples of non-empty strings, and `logit_bias` is a dict of its own.

    max_tokens: tokens to generate at most; None (or -1): until the context is full.
    temperature: divides the logits before the draw; 0 or less is greedy: after bias and penalties the most probable
        token, the lowest id among equals, no random number used.
    top_k, top_p, min_p, typical_p, top_n_sigma: filters, see `filters.py`; each leaves at least `min_keep` tokens
        where there are as many (top_k and top_n_sigma go by their own rule).
    repeat_penalty, presence_penalty, frequency_penalty: against tokens among the last `repeat_last_n`, prompt included.
    dry_*: penalty on tokens that would continue a repeated sequence, see `penalties.py`.
    xtc_*: with probability `xtc_probability` drop all tokens at or above `xtc_threshold` but the least probable.
    mirostat: 1 or 2 replaces penalties and filters by a loop that holds the surprise at `mirostat_ent` bits, moving
        its cut by `mirostat_lr` times the error.
    samplers: the chain's links and their order, names out of SAMPLERS; what is left out does not act, temperature
        included (the draw is then at 1, never greedy). logit_bias comes first always; mirostat goes by its own rule.
    logit_bias: token id -> number added to its logit; -inf bans the token.
    seed: same seed, same logits, same tokens; None (or -1): random.
    stop: strings that end the generation and are not part of its text; one str is taken as one stop, None as no stop.
    ignore_eos: end-of-generation tokens are never drawn.
    logprobs: None, or how many alternatives to report with each token's own log probability.
    draft: None, or "lookup": propose what followed the text's last tokens further up (lookup.py). The tokens are the
        same, sooner where a text repeats its prompt.
    skip_special_tokens: special tokens print nothing; False prints them, the one that ends the text included.
    json_schema: the text is JSON that fits this schema, a dict or its JSON text (kept as a dict of its own).
    regex: the whole text matches this regular expression (the syntax of Rust's regex, without look-around).
    grammar: the text is a sentence of this grammar, in GBNF or in llguidance's Lark. These three need the package
        llguidance (docs/grammar.md). A text that `max_tokens` or a stop string ends sooner is the beginning of one.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_lr: float = 0.1
    mirostat_ent: float = 5.0
    samplers: tuple[str, ...] = SAMPLERS
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_keep: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    draft: str | None = None
    skip_special_tokens: bool = True
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name in _REALS:
            self._set(name, _checked_real(name, getattr(self, name)))
        for name in _INTEGERS:
            self._set(name, _checked_integer(name, getattr(self, name)))
        if self.stop is None:
            self._set("stop", ())
        for name in ("stop", "dry_sequence_breakers"):
            self._set(name, _checked_strings(name, getattr(self, name)))
        if self.draft not in (None, *DRAFTERS):
            raise ConfigError(f"draft = {_short(self.draft)}: expected {' or '.join(DRAFTERS)}, or None")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {_short(getattr(self, name))}: expected True or False")
        if self.json_schema is not None:
            self._set("json_schema", _checked_schema(self.json_schema))
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"{name} = {_short(value)}: expected a text that is not empty, or None")
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} both say what the text may be: give one of them")
        self._set("samplers", _checked_samplers(self.samplers))
        self._set("logit_bias", _checked_bias(self.logit_bias))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in the order of their definition."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """The settings for a mapping of names to values; an unknown name is a ConfigError, not a TypeError."""
        for name in options:
            if name not in cls.names():
                import difflib  # for this message alone

                close = difflib.get_close_matches(str(name), cls.names(), n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(cls.names())}"
                raise ConfigError(f"unknown sampling setting {name!r}: {hint}")
        return cls(**options)

    @property
    def constraint(self) -> str | None:
        """The one of CONSTRAINTS that is set."""
        return next((name for name in CONSTRAINTS if getattr(self, name) is not None), None)

    @classmethod
    def on_top_of(cls, params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
        """`params`, or the defaults, with these settings in place of theirs; errors as in `from_options`."""
        alone = cls.from_options(options)  # names and values are checked on their own first
        return alone if params is None else replace(params, **options)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken at each step, without a draw."""
        return self.temperature <= 0 and ("temperature" in self.samplers or self.mirostat != 0)

    @property
    def has_penalties(self) -> bool:
        """Whether repeat, presence or frequency penalties change anything."""
        active = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return active and self.repeat_last_n != 0 and "penalties" in self.samplers

    @property
    def has_dry(self) -> bool:
        """Whether DRY is switched on."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0 and "dry" in self.samplers


def _checked_real(name: str, value: object) -> float:
    accept, wanted = _REALS[name]
    try:
        if isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and accept(number):
                return number
    except OverflowError:  # an int beyond the range of a float
        pass
    raise ConfigError(f"{name} = {_short(value)}: expected {wanted}")


def _checked_integer(name: str, value: object) -> int | None:
    low, high, wanted = _INTEGERS[name]
    if value is None and (name in _MINUS_ONE_IS_NONE or name == "logprobs"):
        return None
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return None if name in _MINUS_ONE_IS_NONE and value == -1 else int(value)
    raise ConfigError(f"{name} = {_short(value)}: expected {wanted}")


def _checked_strings(name: str, value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, tuple | list) or not all(isinstance(s, str) and s for s in strings):
        raise ConfigError(f"{name} = {_short(value)}: expected non-empty strings, one or a list of them")
    return tuple(strings)


def _checked_schema(value: object) -> dict[str, Any]:
    try:
        schema = json.loads(value if isinstance(value, str) else json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema = {_short(value)}: not JSON ({error})") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"json_schema = {_short(value)}: expected an object, such as {{'type': 'object'}}")
    return schema


def _checked_samplers(value: object) -> tuple[str, ...]:
    if isinstance(value, tuple | list) and all(name in SAMPLERS for name in value) and len(set(value)) == len(value):
        return tuple(value)
    raise ConfigError(f"samplers = {_short(value)}: expected a list of {', '.join(SAMPLERS)}, each at most once")


def _checked_bias(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"logit_bias = {_short(value)}: expected a mapping from token id to number")
    bias: dict[int, float] = {}
    for token, amount in value.items():
        if not isinstance(token, Integral) or isinstance(token, bool) or not 0 <= int(token) < 2**31:
            raise ConfigError(f"logit_bias has the key {_short(token)}: expected a token id, 0 or more")
        is_number = isinstance(amount, Real) and not isinstance(amount, bool)
        if not is_number or not (amount == -math.inf or abs(amount) <= 1e6):
            raise ConfigError(
                f"logit_bias of token {token} is {_short(amount)}: expected a number between -1e6 and 1e6, "
                "or -inf to ban the token"
            )
        bias[int(token)] = float(amount)
    return bias


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
