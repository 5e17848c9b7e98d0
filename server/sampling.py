"""A request's sampling: names of OpenAI's and llama-server's interfaces as fields of SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sampling.params import CONSTRAINTS, MAX_SEED
from mixkv.server.body import Fields
from mixkv.server.errors import ApiError

MAX_STOPS, MAX_CHOICES, MAX_TEMPERATURE = 64, 16, 100.0
ALIASES = {
    "n_predict": "max_tokens", "max_completion_tokens": "max_tokens", "max_tokens": "max_tokens",
    "mirostat_tau": "mirostat_ent", "mirostat_eta": "mirostat_lr", "repetition_penalty": "repeat_penalty",
}  # fmt: skip
"""What clients call them besides; of several that are given, the last here counts."""
_OWN = ("logprobs", "skip_special_tokens", "max_tokens", "logit_bias", *CONSTRAINTS)
_PLAIN = tuple(name for name in SamplingParams.names() if name not in _OWN)


def sampling_params(
    fields: Fields, defaults: SamplingParams, *, logprobs: int | None = None, least: int = 1
) -> SamplingParams:
    """What a request asks for, on top of `defaults`. logprobs: alternatives of each token. least: the
    smallest max_tokens. ApiError and ConfigError name the field."""
    given = {name: fields.any(name) for name in _PLAIN if name in fields}
    for alias, name in ALIASES.items():
        if alias in fields:
            given[name] = fields.any(alias)
            if name == "max_tokens" and given[name] != -1:
                given[name] = fields.integer(alias, None, least, 2**62)
    temperature = given.get("temperature", 0.0)
    if isinstance(temperature, int | float) and not 0.0 <= temperature <= MAX_TEMPERATURE:
        raise ApiError(400, f"temperature must be between 0 and {MAX_TEMPERATURE:g}", param="temperature")
    if isinstance(given.get("stop"), list) and len(given["stop"]) > MAX_STOPS:
        raise ApiError(400, f"stop has more than {MAX_STOPS} texts", param="stop")
    for name in CONSTRAINTS:
        if name in fields and fields.any(name) != "":  # clients of llama-server send an empty grammar
            given[name] = fields.any(name)
    if "logit_bias" in fields:
        given["logit_bias"] = _bias(fields.any("logit_bias"))
    given["logprobs"] = logprobs
    if any(name in given for name in CONSTRAINTS):
        defaults = replace(defaults, json_schema=None, regex=None, grammar=None)
    return SamplingParams.on_top_of(defaults, given)


def choices(fields: Fields, params: SamplingParams) -> list[SamplingParams]:
    """The sampling of each of `n` choices: with a seed, the first has it, and each other one the next number."""
    n = fields.integer("n", 1, 1, MAX_CHOICES)
    assert n is not None
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=(params.seed + i) % (MAX_SEED + 1)) for i in range(n)]


def _bias(given: object) -> dict[int, Any]:
    """{"15": -1} or [[15, -1], [16, false]], false being a ban."""
    pairs: list[Any] = list(given.items()) if isinstance(given, Mapping) else given if isinstance(given, list) else [()]
    bias: dict[int, Any] = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ApiError(400, 'logit_bias must be an object such as {"15": -1.5}', param="logit_bias")
        token, amount = pair
        if isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) < 12:
            token = int(token)
        if not isinstance(token, int) or isinstance(token, bool):
            raise ApiError(400, f"logit_bias has the key {str(token)[:40]!r}: expected a token id", param="logit_bias")
        bias[token] = float("-inf") if amount is False else amount
    return bias
