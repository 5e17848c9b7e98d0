"""What a layer is, before it is built: which mixer and which feed-forward it has, and where its norms stand.

A family declares one `LayerSpec` for each layer of a file (its `read_config`). Whoever wants to know what a layer keeps
of the past, how wide it is or how it rotates reads that here; nobody above models/ asks which family it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixkv.models.rope import RopeConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """Attention of n_heads queries in groups of n_heads / n_kv_heads. Sizes are numbers of elements.

    scale: factor on q.k. rope: None where nothing turns. window: a query at p reads keys j > p - window, 0: all.
    softcap: c tanh(x / c) on scores, 0: none. sinks: a learned logit per head stands beside the keys. qk_norm: an RMS
    norm of each head of Q and K, or of the whole row. biases: projections of which every file has one. gate: Q brings a
    sigmoid gate for the output. kv_from: the earlier layer whose keys and values are read; this one keeps none.
    """

    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    scale: float
    rope: RopeConfig | None
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    qk_norm: Literal["", "head", "row"] = ""
    biases: tuple[str, ...] = ()
    gate: bool = False
    kv_from: int | None = None

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """(n_kv_heads, head_dim_k, head_dim_v): what is kept of a token."""
        return self.n_kv_heads, self.head_dim_k, self.head_dim_v

    @property
    def kv_numbers(self) -> int:
        """Numbers that are kept of a token."""
        return self.n_kv_heads * (self.head_dim_k + self.head_dim_v)


@dataclass(frozen=True)
class Recurrent:
    """A mixer that keeps a state instead of keys, float32: the last inputs of its convolution, the sum of its scan.

    Shapes are those of one sequence; None where the layer has no such part.
    """

    conv_state: Shape | None
    scan_state: Shape | None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the arrays that are kept, the convolution's first."""
        return tuple(shape for shape in (self.conv_state, self.scan_state) if shape is not None)

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return 4 * sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Dense:
    """One feed-forward for every token: down(activation(gate x) * up x)."""

    n_ff: int
    activation: Literal["silu", "gelu"] = "silu"


@dataclass(frozen=True)
class LayerSpec:
    """norms: where they stand around mixer and feed-forward; parallel: one before both, which read the same."""

    mixer: Attention | Recurrent | None
    ffn: Dense | None
    norms: Literal["before", "after", "both", "parallel"] = "before"
