"""Mirostat (Basu et al. 2021): hold the surprise of the text at a target by moving a cut after every token.

Version 1 estimates the exponent of a Zipf law from the 100 most probable tokens and derives a top-k from it; version
2 cuts all tokens whose surprise is above mu. Surprise is in bits. Both take the surprise of the drawn token among
the tokens that were left, as llama.cpp does, and then move mu by the learning rate times the error.
"""

from __future__ import annotations

import numpy as np

from mixkv.engine.sampling.filters import Candidates, draw, top_k

_ZIPF_TOKENS = 100


def zipf_cut(candidates: Candidates, mu: float, n_vocab: int) -> Candidates:
    """Version 1: the top k, k = (eps 2^mu / (1 - n_vocab^-eps))^(1/s), eps = s - 1, s the estimated Zipf exponent."""
    n = len(candidates.ids)
    if n < 2:
        return candidates
    top = np.sort(top_k(candidates, _ZIPF_TOKENS).logits.astype(np.float64))[::-1]
    rank = np.arange(1, len(top))
    t = np.log((rank + 1) / rank)
    b = top[:-1] - top[1:]  # log of the ratio of neighbouring probabilities
    s = max(float(t @ b) / float(t @ t), 1e-6)
    eps = s - 1
    # log k, so that nothing overflows; at eps = 0 the fraction tends to 1 / ln(n_vocab).
    log_n = np.log(n_vocab)
    log_fraction = -np.log(log_n) if abs(eps) < 1e-9 else np.log(eps / -np.expm1(-eps * log_n))
    log_k = (log_fraction + mu * np.log(2.0)) / s
    return top_k(candidates, max(1, int(np.exp(log_k)) if log_k < np.log(n) else n))


def surprise_cut(candidates: Candidates, mu: float) -> Candidates:
    """Version 2: the tokens whose surprise -log2(p) is at most mu; the most probable one always stays."""
    probs = candidates.probs
    chosen = probs >= 2.0 ** min(-mu, 0.0)
    chosen[int(np.argmax(probs))] = True
    return candidates.keep(chosen)


class Mirostat:
    """The loop: cut, draw, correct. `mu` starts at twice the target.

    version: 1 or 2. target: bits of surprise. rate: learning rate.
    """

    def __init__(self, version: int, target: float, rate: float, n_vocab: int) -> None:
        self.mu = 2 * target
        self._version, self._target, self._rate, self._n_vocab = version, target, rate, n_vocab

    def cut(self, candidates: Candidates) -> Candidates:
        """The candidates that are left at the present mu."""
        if self._version == 1:
            return zipf_cut(candidates, self.mu, self._n_vocab)
        return surprise_cut(candidates, self.mu)

    def draw(self, candidates: Candidates, rng: np.random.Generator) -> int:
        """One token id out of those left by `cut`; corrects mu by its surprise."""
        index = draw(candidates, rng)
        surprise = -float(np.log2(candidates.probs[index]))
        self.mu -= self._rate * (surprise - self._target)
        return int(candidates.ids[index])
