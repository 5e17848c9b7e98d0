"""Stop strings found in a stream must be those found in the whole text, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixkv.engine.stops import StopMatcher


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Reads the whole text, end by end: the first end at which a stop is complete, the longest stop there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


words = st.text(alphabet="abé", max_size=6)


@given(st.lists(words, max_size=12), st.lists(words.filter(bool), max_size=4))
@example(["a", "a", "b"], ["aab"])  # a false start inside the true one
@example(["aba", "b", "ab"], ["abab", "bb"])
@example(["", "ab", ""], ["ab", "b"])
def test_streamed_text_equals_the_whole_text_cut_at_its_stop(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, over = "", False
    for piece in pieces:
        emitted, over = matcher.push(piece)
        shown += emitted
        if over:
            break
    before, matched = oracle("".join(pieces), stops)
    assert (over, matcher.matched) == (matched is not None, matched)
    assert shown + matcher.flush() == before


@given(st.lists(words, max_size=12), st.lists(words.filter(bool), min_size=1, max_size=4))
def test_nothing_is_held_back_that_could_not_begin_a_stop(pieces: list[str], stops: list[str]) -> None:
    matcher, seen, shown = StopMatcher(stops), "", ""
    for piece in pieces:
        emitted, over = matcher.push(piece)
        if over:
            return
        seen, shown = seen + piece, shown + emitted
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_text_after_the_stop_is_swallowed() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one E") == ("one ", False)
    assert matcher.push("ND two") == ("", True)
    assert matcher.push("three") == ("", True)
    assert matcher.flush() == ""


def test_a_false_start_is_released() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("x <|e") == ("x ", False)
    assert matcher.push("asy") == ("<|easy", False)
    assert matcher.push("<|") == ("", False)
    assert matcher.flush() == "<|"


@pytest.mark.parametrize("stops", [[], ["\n\n"]])
def test_text_without_stops_passes_at_once(stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert matcher.push("any text") == ("any text", False)
    assert matcher.matched is None
