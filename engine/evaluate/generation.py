"""Greedy divergence: after how many tokens a cache's text differs from FP16's.

The FP16 cache writes the continuation. Any other cache is then fed that continuation at once, and the first position
where its most probable token is another is where its own greedy text would have left: until there both have read the
same tokens, and a cache gives the same logits however its tokens arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixkv.engine.evaluate.variants import BASE_VARIANT, Variant
from mixkv.engine.evaluate.windows import Ids
from mixkv.engine.llm import LLM
from mixkv.engine.sequence import Sequence as TokenSequence
from mixkv.kernels.errors import ConfigError
from mixkv.models.batch import F32


@dataclass(frozen=True)
class DivergenceRow:
    """One cache over all prompts.

    same_tokens: for each prompt how many tokens equal FP16's before the first that differs; lengths: how many there
    were (FP16 may end a text early). gaps: for each text that differs, how much more probable (nats) FP16 finds its
    own token than the cache's; a small gap means that it was a toss-up.
    """

    kv: str
    same_tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    gaps: tuple[float, ...]

    @property
    def mean_same(self) -> float:
        return float(np.mean(self.same_tokens))

    @property
    def median_same(self) -> float:
        return float(np.median(self.same_tokens))

    @property
    def identical(self) -> float:
        """Share of prompts whose whole text is FP16's."""
        return float(np.mean(np.equal(self.same_tokens, self.lengths)))


def greedy_divergence(
    llm: LLM, prompts: Sequence[Ids], n_predict: int, variants: Sequence[Variant],
    progress: Callable[[int, int], None] | None = None,
) -> list[DivergenceRow]:  # fmt: skip
    """A row for each variant, in their order. prompts: ids (n,) each; n_predict: tokens to generate after each.

    progress(prompts done, prompts in all). ConfigError where there is nothing to do.
    """
    if not prompts or n_predict < 1:
        raise ConfigError("greedy divergence needs at least one prompt and one token to predict")
    n_ctx = max(len(p) for p in prompts) + n_predict
    base = llm.new_sequence(BASE_VARIANT.config, n_ctx)
    others = [llm.new_sequence(v.config, n_ctx) for v in variants]
    same: list[list[int]] = [[] for _ in variants]
    gaps: list[list[float]] = [[] for _ in variants]
    lengths: list[int] = []
    for done, prompt in enumerate(prompts):
        if progress is not None:
            progress(done, len(prompts))
        logits = _greedy(base, prompt, n_predict, llm.tokenizer.eog_ids)
        picks = logits.argmax(axis=1)
        lengths.append(len(picks))
        for i, sequence in enumerate(others):
            mine = _forced(sequence, prompt, picks).argmax(axis=1)
            differs = np.flatnonzero(mine != picks)
            same[i].append(int(differs[0]) if differs.size else len(picks))
            if differs.size:
                at = differs[0]
                gaps[i].append(float(logits[at, picks[at]] - logits[at, mine[at]]))
    if progress is not None:
        progress(len(prompts), len(prompts))
    return [DivergenceRow(v.name, tuple(same[i]), tuple(lengths), tuple(gaps[i])) for i, v in enumerate(variants)]


def _greedy(sequence: TokenSequence, prompt: Ids, n_predict: int, ends: frozenset[int]) -> F32:
    """Logits (n, n_vocab) of every greedy step; the last step's token may be one that ends a text."""
    sequence.clear()
    rows = [sequence.feed(prompt.tolist())]
    while len(rows) < n_predict and (token := int(rows[-1].argmax())) not in ends:
        rows.append(sequence.feed([token]))
    return np.concatenate(rows)


def _forced(sequence: TokenSequence, prompt: Ids, picks: np.ndarray) -> F32:
    """Logits (n, n_vocab) of the steps at which `picks` (n,) were taken, whatever this cache would have taken."""
    sequence.clear()
    first = sequence.feed(prompt.tolist())
    if len(picks) == 1:
        return first
    return np.concatenate([first, sequence.feed(picks[:-1].tolist(), all_rows=True)])
