"""Sampler: the chain of one generation, its history of tokens and its random numbers.

One is built for each generation. The caller shows it every token of the sequence (`extend` for the prompt, `accept`
for each generated token) and asks `sample` with the logits of the last position. Which tokens come out depends on
the parameters, the seed, the logits and the history alone: not on how the prompt was cut or how many threads ran.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixkv.engine.sampling import filters, penalties
from mixkv.engine.sampling.filters import Candidates
from mixkv.engine.sampling.mirostat import Mirostat
from mixkv.engine.sampling.params import SamplingParams
from mixkv.kernels.errors import ConfigError, InputError

Edit = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Filter = Callable[[Candidates], Candidates]
_EDITS = ("penalties", "dry")
"""Links of the chain that change single logits; the others narrow or reshape what there is."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probability of a token under the model, and the most probable tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draws token ids for one generation.

    params: the settings. n_vocab: length of a row of logits. tokens_to_text: the text of token ids, needed by DRY's
    sequence breakers only. eog_tokens: end-of-generation ids, banned with `ignore_eos`. rng: random generator; left
    out, one is made from the seed. `seed` is the one used, also where it was drawn at random (None with an rng).
    Raises ConfigError for a token id in `logit_bias` beyond the vocabulary, and for DRY without tokens_to_text.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        tokens_to_text: Callable[[Sequence[int]], str] | None = None,
        *,
        eog_tokens: Sequence[int] = (),
        rng: np.random.Generator | None = None,
    ) -> None:
        self.params, self.n_vocab = params, n_vocab
        self.seed = None if rng is not None else secrets.randbits(32) if params.seed is None else params.seed
        self._rng = rng if rng is not None else np.random.default_rng(self.seed)
        self._history = _History()
        self._breakers = _breaker_count(params, tokens_to_text)
        self._mirostat: Mirostat | None = None
        if params.mirostat and not params.greedy:
            self._mirostat = Mirostat(params.mirostat, params.mirostat_ent, params.mirostat_lr, n_vocab)
        self._edits = self._build_edits(eog_tokens)
        self._filters = self._build_filters()

    def _build_edits(self, eog_tokens: Sequence[int]) -> list[Edit]:
        """What changes single logits of the whole row, in order."""
        p, edits = self.params, list[Edit]()
        bias = dict(p.logit_bias) | (dict.fromkeys(eog_tokens, -np.inf) if p.ignore_eos else {})
        beyond = [token for token in bias if token >= self.n_vocab]
        if beyond:
            raise ConfigError(f"logit_bias names token {beyond[0]}: this model has ids 0 to {self.n_vocab - 1}")
        if bias:
            edits.append(partial(penalties.add_bias, bias=bias))
        return edits + [self._edit_of(name) for name in self._leading if self._is_active(name)]

    def _build_filters(self) -> list[Filter]:
        """What narrows the candidates, in order; those that are switched off are left out."""
        p = self.params
        if p.greedy:
            return []
        if self._mirostat is not None:
            return [partial(filters.temperature, t=p.temperature), self._mirostat.cut]
        rest = p.samplers[len(self._leading) :]
        return [self._filter_of(name) for name in rest if self._is_active(name)]

    @property
    def _leading(self) -> tuple[str, ...]:
        """The links that change single logits before any filter: they work on the row as it is."""
        p = self.params
        if p.mirostat:  # leaves penalties out, as llama.cpp does
            return ()
        if p.greedy:  # filters do not act, and after the temperature one token is left that nothing can change
            return tuple(name for name in p.samplers[: p.samplers.index("temperature")] if name in _EDITS)
        return tuple(takewhile(lambda name: name in _EDITS, p.samplers))

    def _is_active(self, name: str) -> bool:
        p = self.params
        return {
            "penalties": p.has_penalties, "dry": p.has_dry, "top_n_sigma": p.top_n_sigma > 0, "top_k": p.top_k > 0,
            "typ_p": p.typical_p < 1, "top_p": p.top_p < 1, "min_p": p.min_p > 0, "xtc": p.xtc_probability > 0,
            "temperature": True,
        }[name]  # fmt: skip

    def _edit_of(self, name: str) -> Edit:
        return self._penalize if name == "penalties" else self._penalize_dry

    def _filter_of(self, name: str) -> Filter:
        p = self.params
        if name in _EDITS:
            return partial(filters.edited, n_vocab=self.n_vocab, edit=self._edit_of(name))
        if name == "temperature":
            later = p.samplers[p.samplers.index("temperature") :]
            return partial(filters.temperature, t=p.temperature, keep_zero=any(edit in later for edit in _EDITS))
        if name == "xtc":
            return self._xtc()
        return {
            "top_n_sigma": partial(filters.top_n_sigma, n_sigma=p.top_n_sigma),
            "top_k": partial(filters.top_k, k=p.top_k),
            "typ_p": partial(filters.typical, p=p.typical_p, min_keep=p.min_keep),
            "top_p": partial(filters.top_p, p=p.top_p, min_keep=p.min_keep),
            "min_p": partial(filters.min_p, p=p.min_p, min_keep=p.min_keep),
        }[name]

    def _xtc(self) -> Filter:
        p = self.params
        return partial(
            filters.xtc,
            probability=p.xtc_probability,
            threshold=p.xtc_threshold,
            min_keep=p.min_keep,
            rng=self._rng,
        )

    def sample(self, logits: ArrayLike) -> int:
        """The next token's id for logits (n_vocab,); does not add it to the history (see `accept`).

        Raises InputError where the logits hold NaN or +inf, or where no token is left to choose from.
        """
        if self.params.greedy:
            return int(np.argmax(self._edited(logits)))
        candidates = self.candidates(logits)
        if self._mirostat is not None:
            return self._mirostat.draw(candidates, self._rng)
        return int(candidates.ids[filters.draw(candidates, self._rng)])

    def candidates(self, logits: ArrayLike) -> Candidates:
        """What the next draw chooses from, and with which probabilities. Same errors as `sample`.

        With XTC switched on this uses a random number, like the call of `sample` that it stands for.
        """
        candidates = Candidates.of(self._edited(logits))
        for narrow in self._filters:
            candidates = narrow(candidates)
        return candidates

    def accept(self, token: int) -> None:
        """Add one token to the history that the penalties look at."""
        self.extend([token])

    def extend(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        """Add tokens, a prompt for example. Raises InputError for an id outside the vocabulary."""
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.n_vocab):
            bad = int(ids[(ids < 0) | (ids >= self.n_vocab)][0])
            raise InputError(f"token id {bad} is outside the vocabulary: this model has 0 to {self.n_vocab - 1}")
        self._history.extend(ids)
        if self._breakers is not None:
            for token in ids.tolist():
                self._breakers.accept(token)

    def logprobs(self, logits: ArrayLike, token: int, k: int) -> TokenLogprobs:
        """Log probabilities of `token` and of the k most probable tokens under the model's own distribution."""
        return token_logprobs(_checked(logits, self.n_vocab), token, k)

    def _edited(self, logits: ArrayLike) -> NDArray[np.float32]:
        row = _checked(logits, self.n_vocab)
        for edit in self._edits:
            row = edit(row)
        if self._edits and row.max() == -np.inf:
            raise InputError(
                "no token is left to choose from: logit_bias, ignore_eos, a grammar and the model together ban them "
                "all; allow at least one"
            )
        return row

    def _penalize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        p = self.params
        window = self._history.last(p.repeat_last_n)
        return penalties.penalize(logits, window, p.repeat_penalty, p.presence_penalty, p.frequency_penalty)

    def _penalize_dry(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        p = self.params
        window = self._history.last(p.dry_penalty_last_n)
        count = self._breakers
        return penalties.penalize_dry(
            logits,
            window,
            max_repeat=len(window) if count is None else min(count.since, len(window)),
            multiplier=p.dry_multiplier,
            base=p.dry_base,
            allowed_length=p.dry_allowed_length,
            is_breaker=(lambda token: False) if count is None else count.contains_breaker,
        )


def token_logprobs(logits: NDArray[np.float32], token: int, k: int) -> TokenLogprobs:
    """Log softmax, in float64, of logits (n_vocab,) without NaN: the value of `token` and the k highest.

    Raises InputError where `token` is outside the vocabulary.
    """
    if not 0 <= token < len(logits):
        raise InputError(f"token id {token} is outside the vocabulary: this model has 0 to {len(logits) - 1}")
    peak = float(logits.max())
    log_sum = peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))
    best = filters.top_k(Candidates.of(logits), k)
    order = np.argsort(-best.logits, kind="stable")[:k]
    top = tuple((int(best.ids[i]), float(best.logits[i]) - log_sum) for i in order)
    return TokenLogprobs(token=token, logprob=float(logits[token]) - log_sum, top=top)


def _checked(logits: ArrayLike, n_vocab: int) -> NDArray[np.float32]:
    """The logits as float32 (n_vocab,), with at least one finite value and none above."""
    row = np.asarray(logits, dtype=np.float32)
    if row.shape != (n_vocab,):
        raise InputError(f"logits have the shape {row.shape}: expected one row of {n_vocab}, a number for each token")
    peak = row.max()  # NaN where any is NaN
    if not np.isfinite(peak):
        what = "are all -inf" if peak == -np.inf else "contain NaN" if np.isnan(peak) else "contain +inf"
        raise InputError(f"the model's logits {what}: the model file is damaged, or its numbers overflowed")
    return row


def _breaker_count(
    params: SamplingParams, tokens_to_text: Callable[[Sequence[int]], str] | None
) -> penalties.BreakerCount | None:
    if not params.has_dry or not params.dry_sequence_breakers:
        return None
    if tokens_to_text is None:
        raise ConfigError(
            "dry_sequence_breakers are text: give the sampler tokens_to_text, or set dry_sequence_breakers to ()"
        )
    return penalties.BreakerCount(params.dry_sequence_breakers, tokens_to_text)


class _History:
    """Token ids in a growing array, so that a window of it is a view."""

    def __init__(self) -> None:
        self._ids, self._n = np.empty(256, np.int64), 0

    def extend(self, ids: NDArray[np.int64]) -> None:
        n = self._n + len(ids)
        if n > len(self._ids):
            grown = np.empty(max(n, 2 * len(self._ids)), np.int64)
            grown[: self._n] = self._ids[: self._n]
            self._ids = grown
        self._ids[self._n : n] = ids
        self._n = n

    def last(self, n: int) -> NDArray[np.int64]:
        """The last n tokens, oldest first; all of them for n = -1."""
        return self._ids[0 if n < 0 else max(0, self._n - n) : self._n]
