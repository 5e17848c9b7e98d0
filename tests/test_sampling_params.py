"""SamplingParams: llama-cli's defaults, and a ConfigError that names every bad value."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError

INF, NAN = math.inf, math.nan

BAD: list[tuple[str, Any]] = [
    *(("max_tokens", x) for x in (-2, 1.5, "8", True, 2**63)),
    *(("temperature", x) for x in (NAN, INF, "0.8", None, True, 10**400)),
    *(("top_k", x) for x in (-2, 4.0, None)),
    *((name, x) for name in ("top_p", "min_p", "typical_p", "xtc_probability") for x in (-0.1, 1.1, NAN, "1")),
    *(("top_n_sigma", x) for x in (NAN, -INF)),
    *(("repeat_penalty", x) for x in (0, -1.0, NAN, INF)),
    *(("repeat_last_n", x) for x in (-2, 0.5)),
    *((name, x) for name in ("presence_penalty", "frequency_penalty") for x in (NAN, INF, 1e7)),
    *(("dry_multiplier", x) for x in (-0.1, INF)),
    *(("dry_base", x) for x in (0.99, NAN)),
    *(("dry_allowed_length", x) for x in (-1, 2.5)),
    ("dry_penalty_last_n", -2),
    *(("dry_sequence_breakers", x) for x in (None, ("a", ""), (1,), {"a": 1})),
    ("xtc_threshold", 1.5),
    *(("mirostat", x) for x in (-1, 3, True)),
    *(("mirostat_lr", x) for x in (-0.1, NAN)),
    *(("mirostat_ent", x) for x in (-1.0, INF)),
    *(("logit_bias", x) for x in (None, [1], {-1: 0.0}, {"1": 0.0}, {1: NAN}, {1: INF}, {1: "x"}, {1.5: 0.0})),
    ("min_keep", -1),
    *(("seed", x) for x in (-2, 2**64, 1.0, "1")),
    *(("stop", x) for x in ("", ("a", ""), (b"a",), 3)),
    *(("ignore_eos", x) for x in (0, "yes", None)),
    *(("skip_special_tokens", x) for x in (0, "yes", None)),
    *(("draft", x) for x in ("model", "", 1, True)),
    *(("samplers", x) for x in (None, "top_k", ("topk",), ("top_k", "top_k"), (3,), {"top_k": 1})),
    *(("logprobs", x) for x in (-1, 2.0, True)),
    *(("json_schema", x) for x in ("", "{", "[]", 3, True, [1], {"a": {1}}, {"a": NAN}, "NaN")),
    *(("regex", x) for x in ("", b"a", 1)),
    *(("grammar", x) for x in ("", ["a"], {})),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_a_config_error_that_names_the_setting_and_the_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message and len(message) < 250
    if not isinstance(value, dict | list | tuple):
        assert repr(value)[:40] in message


def test_every_setting_has_a_bad_value_in_this_test() -> None:
    assert {name for name, _ in BAD} == set(SamplingParams.names())


def test_defaults_are_those_of_llama_cli() -> None:
    assert dataclasses.asdict(SamplingParams()) == {
        "max_tokens": None,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "mirostat": 0,
        "mirostat_lr": 0.1,
        "mirostat_ent": 5.0,
        "samplers": ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"),
        "logit_bias": {},
        "min_keep": 0,
        "seed": None,
        "stop": (),
        "ignore_eos": False,
        "logprobs": None,
        "skip_special_tokens": True,
        "draft": None,
        "json_schema": None,
        "regex": None,
        "grammar": None,
    }


def test_spellings_of_one_meaning_become_one_value() -> None:
    params = SamplingParams(max_tokens=-1, seed=-1, stop="END", top_k=np.int32(3), temperature=1, min_p=np.float32(0.5))  # type: ignore[arg-type]
    assert params.max_tokens is None and params.seed is None
    assert params.stop == ("END",)
    assert type(params.top_k) is int and type(params.temperature) is float and type(params.min_p) is float
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_params_do_not_share_the_callers_mapping() -> None:
    bias = {1: -math.inf}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 1.0
    assert params.logit_bias == {1: -math.inf}


def test_params_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3  # type: ignore[misc]


def test_an_unknown_option_is_a_config_error_that_suggests_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"temprature.*did you mean temperature"):
        SamplingParams.from_options({"temprature": 1.0})
    with pytest.raises(ConfigError, match=r"'zzz'.*known: max_tokens, temperature"):
        SamplingParams.from_options({"zzz": 1})
    assert SamplingParams.from_options({"top_k": 7}).top_k == 7


@given(
    st.sampled_from(SamplingParams.names()),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()), st.binary()),
)
def test_any_value_is_taken_or_is_a_config_error(name: str, value: Any) -> None:
    try:
        params = SamplingParams(**{name: value})
    except ConfigError as error:
        assert name in str(error)
    else:
        assert SamplingParams(**{name: getattr(params, name)}) == params
