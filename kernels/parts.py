"""The parts of a layer as plain values, which both backends read: norms, rotation, activation, routing.

Arrays are float32 and C-contiguous; a part never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last axis, x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich 2019), or LayerNorm where
    `centred`: the mean is taken off first, and `bias` added last (Ba et al. 2016).

    gain, bias (dim,); no gain means 1. Of queries and keys a gain (head_dim,) is for every head alike, (n_heads,
    head_dim) for each its own, and (n_heads * head_dim,) means one norm over the whole row.
    """

    gain: F32 | None
    eps: float
    centred: bool = False
    bias: F32 | None = None


@dataclass(frozen=True, eq=False)
class Rotation:
    """RoPE (Su et al. 2021): pair i of a row at position p turns by p inv_freq[i]; pairs are (2i, 2i + 1) when
    `interleaved`, else (i, i + rot / 2), among the first rot = 2 len(inv_freq) dimensions. cos and sin times scale."""

    inv_freq: F32
    interleaved: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Temperature:
    """Queries at position p are multiplied by 1 + slope ln(1 + floor((p + offset) / length)) (Llama 4, Mistral 3)."""

    slope: float
    length: int
    offset: int = 0


ActivationKind = Literal["silu", "gelu", "relu2", "swiglu_oai", "xielu"]


@dataclass(frozen=True)
class Activation:
    """What a feed-forward does with its gate's product g (with its only product, where it has no gate) and up's, u.

    silu: g sigmoid(g) u. gelu: the tanh form (Hendrycks and Gimpel 2016), times u. relu2: max(g, 0)^2 u. swiglu_oai:
    numbers (alpha, limit); g sigmoid(alpha g) (u + 1), g at most limit, u within +-limit (gpt-oss). xielu: numbers
    (a_p, a_n, beta, eps); a_p g^2 + beta g above 0, else a_n (expm1(min(g, eps)) - g) + beta g (Huang and Schlag 2025).
    """

    kind: ActivationKind = "silu"
    numbers: tuple[float, ...] = ()


SILU = Activation()


@dataclass(frozen=True)
class Routing:
    """Which experts a token goes to and with what weight; p are the router's products.

    gating: "softmax" or "sigmoid" of p over all experts, or "softmax of chosen" ones after the choice. The experts with
    the n_used largest p are taken; with a selection bias, which counts for the choice alone, or groups, those with the
    largest scores, bias added. n_groups > 1: the groups with the n_groups_used largest sums of their two best are the
    only ones to choose from. Everywhere the lower number comes first where two are equal, and NaN after all numbers.
    normalize: weights are divided by their sum, at least 6.1e-5; then times scale. on_input: the weight multiplies what
    an expert reads instead of what it gives (Llama 4).
    """

    n_experts: int
    n_used: int
    gating: Literal["softmax", "sigmoid", "softmax of chosen"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    n_groups_used: int = 1
    on_input: bool = False
