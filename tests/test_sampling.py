"""Sampler: the chain in its order, draws by probability, determinism, greedy, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling_filters import (
    min_p_plain,
    softmax_plain,
    top_k_plain,
    top_n_sigma_plain,
    top_p_plain,
    typical_plain,
)

from mixkv.engine.sampling import Sampler, SamplingParams, TokenLogprobs
from mixkv.kernels.errors import ConfigError, InputError

N_VOCAB = 50


def row(seed: int = 0, n: int = N_VOCAB, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=n) * scale).astype(np.float32)


def sampler(n_vocab: int = N_VOCAB, **settings: Any) -> Sampler:
    return Sampler(SamplingParams(**{"seed": 7, **settings}), n_vocab, lambda ids: "".join(f"<{i}>" for i in ids))


# --- order ---


def chain_plain(logits: np.ndarray, p: SamplingParams) -> dict[int, float]:
    """Probabilities after the chain without penalties, in llama.cpp's default order."""
    left = {i: float(x) for i, x in enumerate(logits)}
    steps: list[Callable[[dict[int, float]], set[int]]] = [
        lambda left: top_n_sigma_plain(left, p.top_n_sigma),
        lambda left: top_k_plain(left, p.top_k),
        lambda left: typical_plain(left, p.typical_p, p.min_keep),
        lambda left: top_p_plain(left, p.top_p, p.min_keep),
        lambda left: min_p_plain(left, p.min_p, p.min_keep),
    ]
    for narrow in steps:
        kept = narrow(left)
        left = {i: x for i, x in left.items() if i in kept}
    return softmax_plain({i: x / p.temperature for i, x in left.items()})


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    top_n_sigma=st.sampled_from([-1.0, 1.5]),
    top_k=st.sampled_from([0, 3, 20]),
    typical_p=st.sampled_from([0.4, 0.9, 1.0]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    min_keep=st.sampled_from([0, 2]),
)
def test_the_chain_equals_the_plain_filters_in_llama_cpps_order(seed: int, **values: Any) -> None:
    params = SamplingParams(seed=0, **values)
    got = Sampler(params, N_VOCAB).candidates(row(seed))
    want = chain_plain(row(seed), params)
    assert got.ids.tolist() == sorted(want)
    np.testing.assert_allclose(got.probs, [want[i] for i in sorted(want)], rtol=1e-6)


def test_top_k_comes_before_top_p() -> None:
    """Of (.4 .3 .2 .1) the best two are (.57 .43): the first reaches .55 alone. The other way round two would stay."""
    got = sampler(4, top_k=2, top_p=0.55, min_p=0).candidates(np.log([0.4, 0.3, 0.2, 0.1]))
    assert got.ids.tolist() == [0]


def test_temperature_comes_after_the_filters() -> None:
    cold = sampler(temperature=0.05, top_k=0).candidates(row())
    hot = sampler(temperature=50.0, top_k=0).candidates(row())
    assert cold.ids.tolist() == hot.ids.tolist()
    assert hot.probs.max() < 2 / len(hot.ids) < cold.probs.max()


def test_xtc_comes_after_top_k_and_before_temperature() -> None:
    """Among the best two, (.53 .47), both are top choices; at temperature 0.1 only one would be above 0.3."""
    logits = np.log([0.32, 0.28, 0.2, 0.2])
    got = sampler(4, top_k=2, top_p=1, min_p=0, temperature=0.1, xtc_probability=1.0, xtc_threshold=0.3)
    assert got.candidates(logits).ids.tolist() == [1]


def test_bias_comes_before_penalties_and_both_before_top_k() -> None:
    """0.5 + 3 = 3.5, halved by the repeat penalty to 1.75: among the best two. Penalised first it would be 3.25."""
    logits = np.array([0.5, 1.6, 1.8], np.float32)
    picked = sampler(3, logit_bias={0: 3.0}, repeat_penalty=2.0, top_k=2, top_p=1, min_p=0, temperature=1)
    picked.accept(0)
    left = picked.candidates(logits)
    assert left.ids.tolist() == [0, 2]
    assert left.logits[0] == pytest.approx(1.75)


# --- draws ---


def chi_square_limit(df: int) -> float:
    """99.9 % quantile of chi-square by Wilson and Hilferty's cube rule."""
    return df * (1 - 2 / (9 * df) + 3.09 * math.sqrt(2 / (9 * df))) ** 3


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}, {"typical_p": 0.7, "temperature": 1.5}],
)
def test_draws_follow_the_expected_probabilities(values: dict[str, Any]) -> None:
    n = 20_000
    logits = row(1, scale=1.0)
    draws = sampler(seed=11, **values)
    counts = np.bincount([draws.sample(logits) for _ in range(n)], minlength=N_VOCAB)
    want = chain_plain(logits, SamplingParams(**values))
    assert set(np.flatnonzero(counts)) <= set(want)
    chi = sum((counts[i] - n * q) ** 2 / (n * q) for i, q in want.items())
    assert chi < chi_square_limit(len(want) - 1)


def generate(chain: Sampler, n: int) -> list[int]:
    out = []
    for step in range(n):
        out.append(chain.sample(row(step)))
        chain.accept(out[-1])
    return out


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"repeat_penalty": 1.3, "dry_multiplier": 0.8, "xtc_probability": 0.5},
        {"mirostat": 1, "mirostat_ent": 2.0},
        {"mirostat": 2, "mirostat_ent": 2.0},
    ],
)
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(values: dict[str, Any]) -> None:
    first = generate(sampler(seed=3, **values), 60)
    assert generate(sampler(seed=3, **values), 60) == first
    assert generate(sampler(seed=4, **values), 60) != first


def test_tokens_do_not_depend_on_how_the_prompt_was_shown() -> None:
    values: dict[str, Any] = {"repeat_penalty": 1.5, "dry_multiplier": 1.0, "repeat_last_n": -1}
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, N_VOCAB, 1000)]
    whole, single = sampler(**values), sampler(**values)
    whole.extend(np.array(prompt, np.int32))
    for token in prompt:
        single.accept(token)
    assert generate(whole, 40) == generate(single, 40)


def test_a_random_seed_is_reported_and_can_be_used_again() -> None:
    first, second = sampler(seed=None), sampler(seed=None)
    assert first.seed is not None and first.seed != second.seed
    assert generate(first, 30) == generate(sampler(seed=first.seed), 30)


def test_a_generator_may_be_passed_in() -> None:
    def chain() -> Sampler:
        return Sampler(SamplingParams(), N_VOCAB, rng=np.random.default_rng(5))

    assert chain().seed is None
    assert generate(chain(), 30) == generate(chain(), 30) == generate(sampler(seed=5), 30)


# --- greedy ---


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_takes_the_lowest_id_among_equals_and_no_random_number(temperature: float) -> None:
    rng = np.random.default_rng(1)
    chain = Sampler(SamplingParams(temperature=temperature, xtc_probability=1.0), 4, rng=rng)
    assert chain.sample([1.0, 3.0, 3.0, -np.inf]) == 1
    assert rng.random() == np.random.default_rng(1).random()


def test_greedy_comes_after_bias_and_penalties() -> None:
    logits = [1.0, 3.0, 2.9, 2.0]
    assert sampler(4, temperature=0, logit_bias={1: -np.inf}).sample(logits) == 2
    chain = sampler(4, temperature=0, presence_penalty=0.5)
    chain.accept(1)
    assert chain.sample(logits) == 2
    dry = sampler(4, temperature=0, dry_multiplier=1.0)
    dry.extend([2, 0, 1, 2, 0])
    assert dry.sample(logits) == 2


def test_penalties_forget_what_left_their_window() -> None:
    chain = sampler(4, temperature=0, presence_penalty=9.0, repeat_last_n=2)
    picks = []
    for _ in range(6):
        picks.append(chain.sample([4.0, 3.0, 2.0, 1.0]))
        chain.accept(picks[-1])
    assert picks == [0, 1, 2, 0, 1, 2]


def test_dry_stops_at_a_breaker_in_the_history() -> None:
    def picked(breakers: tuple[str, ...]) -> int:
        chain = sampler(4, temperature=0, dry_multiplier=5.0, dry_sequence_breakers=breakers)
        chain.extend([2, 0, 1, 2, 0])
        return chain.sample([1.0, 3.0, 2.9, 2.0])

    assert picked(()) == 2
    assert picked(("<0>",)) == 1
    assert picked(("><",)) == 1  # straddles two tokens


def test_ignore_eos_bans_the_end_tokens() -> None:
    params = SamplingParams(temperature=0, ignore_eos=True)
    assert Sampler(params, 3, eog_tokens=[1, 2]).sample([0.0, 5.0, 4.0]) == 0
    assert Sampler(SamplingParams(temperature=0), 3, eog_tokens=[1, 2]).sample([0.0, 5.0, 4.0]) == 1


# --- errors and probabilities ---


@pytest.mark.parametrize("values", [{}, {"temperature": 0}, {"mirostat": 2}, {"repeat_penalty": 1.1}])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([0.0, np.nan, 1.0], "contain NaN"),
        ([0.0, np.inf, 1.0], r"contain \+inf"),
        ([-np.inf] * 3, "all -inf"),
        ([0.0, 1.0], "expected one row of 3"),
        ([[0.0, 1.0, 2.0]], "expected one row of 3"),
    ],
)
def test_logits_that_mean_nothing_are_an_error(values: dict[str, Any], logits: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler(3, **values).sample(logits)
    with pytest.raises(InputError, match=message):
        sampler(3, **values).logprobs(logits, 0, 1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_banning_all_tokens_is_an_error(temperature: float) -> None:
    chain = sampler(2, temperature=temperature, logit_bias={0: -np.inf})
    assert chain.sample([5.0, 1.0]) == 1
    with pytest.raises(InputError, match="no token is left"):
        chain.sample([5.0, -np.inf])


def test_ids_outside_the_vocabulary_are_errors() -> None:
    with pytest.raises(ConfigError, match="logit_bias names token 50: this model has ids 0 to 49"):
        sampler(logit_bias={50: 1.0})
    for bad in (-1, 50):
        with pytest.raises(InputError, match=f"token id {bad} is outside"):
            sampler().extend([0, bad])
        with pytest.raises(InputError, match=f"token id {bad} is outside"):
            sampler().logprobs(row(), bad, 0)


def test_dry_breakers_without_text_are_an_error() -> None:
    with pytest.raises(ConfigError, match="dry_sequence_breakers"):
        Sampler(SamplingParams(dry_multiplier=1.0), 10)
    Sampler(SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=()), 10)


def test_extreme_but_legal_numbers_still_give_a_token() -> None:
    logits = np.array([3e38, -3e38, 1.0], np.float32)
    for values in ({"temperature": 1e-300}, {"temperature": 1e300}, {"repeat_penalty": 1e-6}, {"repeat_penalty": 1e6}):
        chain = sampler(3, **values)
        chain.extend([1, 2])
        assert chain.sample(logits) == 0


def test_logprobs_are_those_of_the_model_before_any_filter() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.1, 0.3, 0.1], np.float32))
    chain = sampler(5, top_k=1, logit_bias={1: -np.inf})
    got = chain.logprobs(logits, token=4, k=3)
    assert isinstance(got, TokenLogprobs) and got.token == 4
    assert got.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [i for i, _ in got.top] == [1, 3, 0]
    np.testing.assert_allclose([x for _, x in got.top], np.log([0.4, 0.3, 0.1]), atol=1e-6)
    assert chain.logprobs(logits, 0, 0).top == ()
    assert len(chain.logprobs(logits, 0, 99).top) == 5
