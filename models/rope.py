"""The frequencies of rotary position embedding, with the scalings that stretch a context.

Everything ends in one vector of frequencies and one factor on cos and sin, so kernels know nothing of scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile


@dataclass(frozen=True)
class RopeConfig:
    """Metadata of RoPE: `n_rot` dimensions turn, with base `freq_base`; `scaling` is none, linear or yarn.

    factor: how many times longer than `n_ctx_orig` the context is. beta_fast, beta_slow, ext_factor: YaRN's parameters
    (Peng et al. 2023); attn_factor multiplies cos and sin whatever the scaling. interleaved: pairs are neighbours (2i,
    2i + 1), not halves of the dimensions that turn; files do not say it, families do. log_multiplier: see `magnitude`.
    factors: the tensor that divides the frequencies ("": none); long_factors: the one that does so in runs whose
    context is longer than n_ctx_orig (LongRoPE, Ding et al. 2024).
    """

    n_rot: int
    freq_base: float = 10000.0
    scaling: str = "linear"
    factor: float = 1.0
    n_ctx_orig: int = 0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ext_factor: float = 1.0
    interleaved: bool = False
    log_multiplier: float = 0.0
    factors: str = ""
    long_factors: str = ""

    @classmethod
    def read(cls, gguf: GGUFFile, arch: str, head_dim: int, n_ctx_train: int, interleaved: bool = False) -> RopeConfig:
        """From `{arch}.rope.*`; GGUFError for values that no rotation can use."""
        key = f"{arch}.rope"

        def positive(name: str, default: float) -> float:
            value = gguf.float(f"{key}.{name}", default)
            if value <= 0:
                raise GGUFError(f"{gguf.path}: {key}.{name} is {value}, but must be a positive number")
            return value

        def at_least_0(name: str, default: float) -> float:
            value = gguf.float(f"{key}.{name}", default)
            if value < 0:
                raise GGUFError(f"{gguf.path}: {key}.{name} is {value}, but must not be negative")
            return value

        n_rot = gguf.uint(f"{key}.dimension_count", head_dim)
        if n_rot > head_dim or n_rot % 2:
            raise GGUFError(
                f"{gguf.path}: {key}.dimension_count is {n_rot}, but must be even and at most head_dim = {head_dim}"
            )
        scaling = gguf.str(f"{key}.scaling.type", "linear")  # a factor without a type is a linear one
        if scaling not in ("none", "linear", "yarn", "longrope"):
            raise GGUFError(
                f"{gguf.path}: {key}.scaling.type {scaling!r} is not supported: none, linear, yarn and longrope are"
            )
        plain, short, long = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
        by_context = plain not in gguf.tensors and short in gguf.tensors and long in gguf.tensors
        if scaling == "longrope" and not by_context:
            raise GGUFError(f"{gguf.path}: {key}.scaling.type is longrope, but tensor {short!r} or {long!r} is missing")
        # Files of 2023 spelled the factor `scale_linear`; 0 says that there is none.
        factor = "scaling.factor" if f"{key}.scaling.factor" in gguf.metadata else "scale_linear"
        scale = at_least_0(factor, 1.0) or 1.0
        if scaling == "longrope" or (scaling == "linear" and scale == 1):
            scaling = "none"
        freq_base = positive("freq_base", 10000.0)
        if scaling == "yarn" and freq_base <= 1:
            raise GGUFError(f"{gguf.path}: {key}.freq_base is {freq_base}, but YaRN's wavelengths need more than 1")
        ext_factor = gguf.float(f"{key}.scaling.yarn_ext_factor", 1.0)  # negative: unset, as llama.cpp writes it
        return cls(
            n_rot=n_rot,
            freq_base=freq_base,
            scaling=scaling,
            factor=scale if scaling != "none" else 1.0,
            n_ctx_orig=gguf.uint(f"{key}.scaling.original_context_length", 0) or n_ctx_train,
            attn_factor=positive("scaling.attn_factor", 1.0),
            beta_fast=positive("scaling.yarn_beta_fast", 32.0),
            beta_slow=positive("scaling.yarn_beta_slow", 1.0),
            ext_factor=ext_factor if ext_factor >= 0 else 1.0,
            interleaved=interleaved,
            factors=short if by_context else plain if plain in gguf.tensors else "",
            long_factors=long if by_context else "",
        )

    def for_context(self, n_ctx: int) -> RopeConfig:
        """The rotation of a run whose context is n_ctx."""
        if not self.long_factors or n_ctx <= self.n_ctx_orig:
            return self
        return replace(self, factors=self.long_factors, long_factors="")

    def inv_freq(self, freq_factors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(n_rot / 2,) angles per position. freq_factors (`rope_freqs.weight`, Llama 3.1) divide the frequencies."""
        i = np.arange(self.n_rot // 2, dtype=np.float64)
        freq = self.freq_base ** (-2.0 * i / self.n_rot) if self.n_rot else i
        if freq_factors is not None:
            with np.errstate(all="ignore"):  # factors of 0 or NaN are data: they show in the logits
                freq = freq / freq_factors.astype(np.float64)
        if self.scaling == "linear":
            freq = freq / self.factor
        elif self.scaling == "yarn":
            keep = self._extrapolated() * self.ext_factor
            freq = freq * keep + freq / self.factor * (1 - keep)
        with np.errstate(over="ignore", under="ignore"):
            return freq.astype(np.float32)

    @property
    def magnitude(self) -> float:
        """Factor on cos and sin: YaRN's attention temperature, attn_factor (1 + 0.1 ln factor) / (1 + 0.1 m ln factor).

        m is `yarn_log_multiplier` of the file, DeepSeek's mscale_all_dim, 0 where there is none. The temperature
        belongs to contexts that are longer (factor > 1) and to frequencies that are kept (ext_factor).
        """
        if self.scaling != "yarn" or self.ext_factor == 0 or self.factor <= 1:
            return self.attn_factor
        log = 0.1 * math.log(self.factor)
        return self.attn_factor * (1.0 + log) / (1.0 + self.log_multiplier * log)

    def _extrapolated(self) -> NDArray[np.float64]:
        """YaRN's ramp: 1 for pairs that turn often in the original context (left alone), 0 for slow ones."""

        def pair_that_turns(times: float) -> float:
            return self.n_rot * math.log(self.n_ctx_orig / (times * 2 * math.pi)) / (2 * math.log(self.freq_base))

        low = max(0.0, math.floor(pair_that_turns(self.beta_fast)))
        high = min(self.n_rot - 1.0, math.ceil(pair_that_turns(self.beta_slow)))
        ramp = (np.arange(self.n_rot // 2) - low) / max(0.001, high - low)
        return 1.0 - np.clip(ramp, 0.0, 1.0)
