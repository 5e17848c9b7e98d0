"""Bias, repetition penalties and DRY against plain twins and examples worked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixkv.engine.sampling.penalties import BreakerCount, add_bias, longest_repeats, penalize, penalize_dry

N_VOCAB = 12
tokens = st.lists(st.integers(0, 3), max_size=30)


def never(token: int) -> bool:
    return False


def test_bias_adds_and_bans_and_leaves_its_input_alone() -> None:
    row = np.arange(4, dtype=np.float32)
    biased = add_bias(row, {0: 2.5, 3: -np.inf})
    assert biased.tolist() == [2.5, 1, 2, -np.inf]
    assert row.tolist() == [0, 1, 2, 3]


@given(tokens, st.sampled_from([0.5, 1.0, 1.3]), st.sampled_from([-1.0, 0.0, 0.7]), st.sampled_from([0.0, 0.25]))
def test_penalties_equal_their_definition(window: list[int], repeat: float, presence: float, frequency: float) -> None:
    row = np.linspace(-3, 3, N_VOCAB, dtype=np.float32)
    want = row.astype(np.float64)
    for token, count in Counter(window).items():
        want[token] = want[token] / repeat if want[token] > 0 else want[token] * repeat
        want[token] -= presence + frequency * count
    got = penalize(row, np.array(window, np.int64), repeat, presence, frequency)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_repeat_penalty_lowers_logits_of_either_sign() -> None:
    """Dividing a negative logit, as the paper's formula says, would reward the repetition."""
    got = penalize(np.array([2.0, -2.0, 2.0], np.float32), np.array([0, 1]), 2.0, 0.0, 0.0)
    assert got.tolist() == [1.0, -4.0, 2.0]


def test_penalty_on_a_banned_token_keeps_it_banned() -> None:
    got = penalize(np.array([-np.inf, 1.0], np.float32), np.array([0, 0]), 1.5, 1.0, 1.0)
    assert got.tolist() == [-np.inf, 1.0]


def test_dry_example_by_hand() -> None:
    """1 2 3 4 5 1 2 3 6 2 3 4 1 2 3: the end `1 2 3` stands before 4 and before 6 (length 3);
    `2 3` (length 2) stands before the second 4, where 6 precedes it, so 4 keeps its longer repeat.
    With multiplier 0.8, base 1.75 and allowed length 2 both lose 0.8 * 1.75^1 = 1.4; nothing else loses anything.
    """
    window = np.array([1, 2, 3, 4, 5, 1, 2, 3, 6, 2, 3, 4, 1, 2, 3])
    row = np.zeros(N_VOCAB, np.float32)
    got = penalize_dry(row, window, len(window), 0.8, 1.75, 2, never)
    want = np.zeros(N_VOCAB)
    want[[4, 6]] = -1.4
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # A breaker two tokens back leaves `2 3`: both repeats count as 2, the penalty is 0.8.
    want[[4, 6]] = -0.8
    np.testing.assert_allclose(penalize_dry(row, window, 2, 0.8, 1.75, 2, never), want, rtol=1e-6)
    # One token after the breaker is fewer than the allowed length.
    np.testing.assert_array_equal(penalize_dry(row, window, 1, 0.8, 1.75, 2, never), row)
    # Tokens that contain a breaker are spared.
    want[4] = 0
    np.testing.assert_allclose(penalize_dry(row, window, 2, 0.8, 1.75, 2, lambda token: token == 4), want, rtol=1e-6)


def repeats_plain(window: list[int], max_length: int, min_length: int) -> dict[int, int]:
    longest: dict[int, int] = {}
    for place in range(1, len(window)):
        length = 0
        while (
            length < min(max_length, place)
            and length < len(window)
            and window[place - 1 - length] == window[len(window) - 1 - length]
        ):
            length += 1
        if length >= min_length:
            longest[window[place]] = max(length, longest.get(window[place], 0))
    return longest


@given(tokens, st.integers(0, 8), st.integers(0, 4))
def test_longest_repeats_equal_the_plain_search(window: list[int], max_length: int, min_length: int) -> None:
    ids, lengths = longest_repeats(np.array(window, np.int64), max_length, min_length)
    want = repeats_plain(window, max_length, min_length) if max_length >= min_length else {}
    assert dict(zip(ids.tolist(), lengths.tolist(), strict=True)) == want


def test_dry_penalty_of_a_very_long_repeat_stays_finite() -> None:
    window = np.full(5000, 3)
    with np.errstate(all="raise"):
        got = penalize_dry(np.zeros(N_VOCAB, np.float32), window, 5000, 1e6, 1e6, 2, never)
    assert np.isfinite(got).all() and got[3] < -1e6
    assert penalize_dry(np.zeros(N_VOCAB, np.float32), window, 5000, 0.5, 1.0, 2, never)[3] == -0.5


TEXTS = ["a", "b", "ab", "\n", "x\ny", "", "bb"]


def text_of(ids: object) -> str:
    return "".join(TEXTS[i] for i in ids)  # type: ignore[attr-defined]


@given(
    st.lists(st.integers(0, len(TEXTS) - 1), max_size=25),
    st.sets(st.sampled_from(["\n", "ab", "bba", "aab\n"]), max_size=3),
)
@example([3, 0], {"\n", "aab\n"})  # the newline is still within reach of the longer breaker, but not new
def test_tokens_since_the_last_breaker_equal_a_search_in_the_whole_text(ids: list[int], breakers: set[str]) -> None:
    count = BreakerCount(sorted(breakers), text_of)
    for token in ids:
        count.accept(token)
    text = text_of(ids)
    last_end = max((text.rfind(b) + len(b) for b in breakers if b in text), default=0)
    # The breaker ends in the first token whose text reaches that far; what comes after it counts.
    reached = [len(text_of(ids[: i + 1])) >= last_end for i in range(len(ids))]
    want = len(ids) - 1 - reached.index(True) if last_end else len(ids)
    assert count.since == want


@pytest.mark.parametrize(("token", "contains"), [(0, False), (3, True), (4, True), (5, False)])
def test_a_token_with_a_breaker_in_its_text_is_recognised(token: int, contains: bool) -> None:
    assert BreakerCount(["\n"], text_of).contains_breaker(token) is contains
