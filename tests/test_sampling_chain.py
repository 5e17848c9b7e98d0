"""The chain in another order, or with fewer links, does as llama.cpp's: each link on what the one before left."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_sampling import row, sampler
from test_sampling_filters import softmax_plain, top_k_plain, top_p_plain

from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sampling.params import SAMPLERS

SETTINGS: dict[str, Any] = {
    "top_k": 6, "top_p": 0.7, "min_p": 0.1, "typical_p": 0.9, "top_n_sigma": 2.0, "temperature": 3.0,
    "repeat_penalty": 1.7, "presence_penalty": 0.4, "dry_multiplier": 0.5,
}  # fmt: skip


def chosen_from(samplers: tuple[str, ...], history: list[int] | None = None, **more: Any) -> dict[int, float]:
    """Token -> probability of the next draw on row(3)."""
    drawing = sampler(samplers=samplers, **{**SETTINGS, **more})
    drawing.extend(history or [])
    left = drawing.candidates(row(3))
    return dict(zip(left.ids.tolist(), left.probs.tolist(), strict=True))


def penalized_plain(logits: dict[int, float], history: list[int]) -> dict[int, float]:
    """Repeat and presence penalty as in SETTINGS."""
    return {
        i: (x if i not in history else (x * 1.7 if x <= 0 else x / 1.7) - 0.4) for i, x in logits.items()
    }  # fmt: skip


def plainly(samplers: tuple[str, ...], history: list[int]) -> dict[int, float]:
    """The same by the plain twins of a few links."""
    left = {i: float(x) for i, x in enumerate(row(3))}
    for name in samplers:
        if name == "penalties":
            left = penalized_plain(left, history)
        elif name == "temperature":
            left = {i: x / 3.0 for i, x in left.items()}
        else:
            kept = top_k_plain(left, 6) if name == "top_k" else top_p_plain(left, 0.7, 0)
            left = {i: left[i] for i in kept}
    return softmax_plain(left)


LINKS = ("penalties", "top_k", "top_p", "temperature")


@pytest.mark.parametrize(
    "samplers", [order for n in range(5) for order in itertools.permutations(LINKS, n)], ids="-".join
)
def test_every_order_and_every_subset(samplers: tuple[str, ...]) -> None:
    """An order that is accepted and not followed gives other text than llama-cli, and no word about it."""
    best = np.argsort(-row(3))[:4].tolist()
    history = [best[0], best[2], int(np.argmin(row(3)))]
    found, expected = chosen_from(samplers, history), plainly(samplers, history)
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[i] for i in found], rel=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_link_acts_exactly_where_it_is_named(name: str) -> None:
    history = [1, 2, 3, 1, 2, 3, 1, 2]
    acting = chosen_from((name,), history, xtc_probability=1.0, xtc_threshold=0.05)
    nothing = chosen_from((), history, xtc_probability=1.0, xtc_threshold=0.05)
    assert acting != nothing
    assert nothing == pytest.approx(softmax_plain({i: float(x) for i, x in enumerate(row(3))}))


def test_without_the_temperature_nothing_is_greedy() -> None:
    """As in llama.cpp: it is that link which makes temperature 0 take the most probable token."""
    assert not SamplingParams(temperature=0.0, samplers=("top_k",)).greedy
    assert SamplingParams(temperature=0.0, samplers=("top_k", "temperature")).greedy
    assert SamplingParams(temperature=0.0, samplers=("top_k",), mirostat=2).greedy
    drawing = sampler(samplers=("top_k",), temperature=0.0, top_k=5)
    assert len({drawing.sample(row(3)) for _ in range(200)}) > 1


def test_greedy_penalties_act_before_the_temperature_only() -> None:
    best = int(np.argmax(row(3)))
    settings: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 100.0}
    for samplers, taken in ((("penalties", "temperature"), False), (("temperature", "penalties"), True)):
        drawing = sampler(samplers=samplers, **settings)
        drawing.extend([best])
        assert (drawing.sample(row(3)) == best) is taken
