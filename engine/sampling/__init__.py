"""Sampling: from one row of logits to one token id.

    logits -> logit bias -> penalties -> DRY -> top-n-sigma -> top-k -> typical -> top-p -> min-p -> XTC
           -> temperature -> draw

That is llama.cpp's default order (`samplers` gives another, or fewer links), and the defaults are those of llama-cli.
`params.py` holds the settings and their checks, `penalties.py` what depends on the history (logits in, logits out),
`filters.py` what only looks at the distribution (candidates in, candidates out), `mirostat.py` the feedback loop that
replaces the filters, and `sampler.py` builds the chain and keeps the history. To add a filter: a field and its check
in `params.py`, a pure function in `filters.py`, one line in `Sampler`, and a plain twin in
`tests/test_sampling_filters.py`.
"""

from mixkv.engine.sampling.params import SamplingParams
from mixkv.engine.sampling.sampler import Sampler, TokenLogprobs, token_logprobs

__all__ = ["Sampler", "SamplingParams", "TokenLogprobs", "token_logprobs"]
