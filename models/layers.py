"""What a layer is, before it is built: which mixer and which feed-forward it has, and where its norms stand.

A family declares one `LayerSpec` for each layer of a file (its `read_config`). Whoever wants to know what a layer keeps
of the past, how wide it is or how it rotates reads that here; nobody above models/ asks which family it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixkv.kernels.parts import SILU, Activation, Routing, Temperature
from mixkv.models.rope import RopeConfig

Shape = tuple[int, ...]
NormPlaces = Literal["before", "after", "both", "parallel"]


@dataclass(frozen=True)
class Latent:
    """What keys and values of all heads are made of: one latent row a token (multi-head latent attention, DeepSeek-V2).

    rank: its numbers. q_rank: those of the latent row of queries, 0 where queries come of the residual stream. n_rot:
    numbers of a query, and of the one key that all heads share, that turn. head_dim: numbers of a head's query, the
    turning ones among them. head_dim_v: of what a head gives. merged: the file has one matrix for keys and values.
    """

    rank: int
    q_rank: int
    n_rot: int
    head_dim: int
    head_dim_v: int
    merged: bool = False

    def row_numbers(self, n_heads: int) -> int:
        """Numbers of a token that are at hand at once, beside what attention reads and gives."""
        return self.q_rank + 2 * self.rank + n_heads * (2 * self.head_dim + self.rank + self.head_dim_v)

    def unpacked_bytes(self, n_heads: int) -> int:
        """Bytes of the matrices that must be turned over, and are float32 then."""
        return 4 * n_heads * (self.head_dim - self.n_rot) * self.rank if self.merged else 0


@dataclass(frozen=True)
class Attention:
    """Attention of n_heads queries in groups of n_heads / n_kv_heads. Sizes are numbers of elements.

    scale: factor on q.k. rope: None where nothing turns. window: a query at p reads keys j > p - window, 0: all. chunk:
    it reads keys from p // chunk * chunk on, 0: all. softcap: c tanh(x / c) on scores, 0: none. sinks: a learned logit
    per head stands beside the keys. qk_norm: a norm of each head of Q and K with one gain for all ("head") or a gain of
    each head's own ("each"), or of the whole row ("row"), or without a gain ("unit"); norms_last: after the rotation.
    v_norm: V's heads are normed too, without a gain. v_from_k: V is K before norm and rotation. biases: projections of
    which every file has one. gate: Q brings a sigmoid gate for the output. kv_from: the earlier layer whose keys and
    values are read; this one keeps none. latent: queries read latent rows (keys are those and what turns, values those
    alone); K and V are as attention sees them.
    """

    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    scale: float
    rope: RopeConfig | None
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False
    qk_norm: Literal["", "head", "each", "row", "unit"] = ""
    norms_last: bool = False
    v_norm: bool = False
    v_from_k: bool = False
    temperature: Temperature | None = None
    biases: tuple[str, ...] = ()
    gate: bool = False
    kv_from: int | None = None
    latent: Latent | None = None

    @property
    def sees(self) -> str:
        """What of the past a query reads where that is not all of it, for people; empty where it is."""
        if self.chunk:
            return f"a chunk of {self.chunk} tokens"
        return f"a window of {self.window} tokens" if self.window else ""

    @property
    def v_in_k(self) -> bool:
        """Whether values are the first head_dim_v numbers of keys, and not kept by themselves."""
        return self.latent is not None

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """(n_kv_heads, numbers of a key, numbers of a value): what is kept of a token."""
        return self.n_kv_heads, self.head_dim_k, 0 if self.v_in_k else self.head_dim_v

    @property
    def kv_numbers(self) -> int:
        """Numbers that are kept of a token."""
        n_kv_heads, k, v = self.kv_shape
        return n_kv_heads * (k + v)


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

    @property
    def row_numbers(self) -> int:
        """Numbers of a token that are at hand at once: what comes of the projections, what the convolution makes of it
        (as wide as its state), and what goes out."""
        return 3 * (0 if self.conv_state is None else self.conv_state[-1])


@dataclass(frozen=True)
class Mamba2(Recurrent):
    """Mamba-2 (Dao and Gu 2024): n_heads of head_dim channels, which share B and C of d_state numbers by groups."""

    n_heads: int
    head_dim: int
    n_groups: int
    d_state: int

    @classmethod
    def of(cls, n_heads: int, head_dim: int, n_groups: int, d_state: int, kernel: int) -> Mamba2:
        """kernel: inputs that the convolution sees."""
        conv = kernel - 1, n_heads * head_dim + 2 * n_groups * d_state
        return cls(conv, (n_heads, d_state, head_dim), n_heads, head_dim, n_groups, d_state)

    @property
    def n_inner(self) -> int:
        """Channels."""
        return self.n_heads * self.head_dim

    @property
    def row_numbers(self) -> int:
        return super().row_numbers + 2 * self.n_inner + 3 * self.n_heads


@dataclass(frozen=True)
class DeltaNet(Recurrent):
    """Gated delta net (Yang et al. 2024): n_heads values of head_dim, with keys of as many dimensions for n_k_heads.

    Value head h has key head h % n_k_heads where keys are `tiled`, else h // (n_heads / n_k_heads).
    """

    n_heads: int
    n_k_heads: int
    head_dim: int
    tiled: bool

    @classmethod
    def of(cls, n_heads: int, n_k_heads: int, head_dim: int, kernel: int, tiled: bool) -> DeltaNet:
        """kernel: inputs that the convolution sees."""
        conv = kernel - 1, (n_heads + 2 * n_k_heads) * head_dim
        return cls(conv, (n_heads, head_dim, head_dim), n_heads, n_k_heads, head_dim, tiled)

    @property
    def row_numbers(self) -> int:
        return super().row_numbers + self.n_heads * (2 * self.head_dim + 4)


@dataclass(frozen=True)
class ShortConv(Recurrent):
    """A gated convolution over a few tokens (LFM2)."""

    @classmethod
    def of(cls, dim: int, kernel: int) -> ShortConv:
        """kernel: inputs that the convolution sees."""
        return cls((kernel - 1, dim), None)

    @property
    def row_numbers(self) -> int:
        return super().row_numbers + 2 * self.dim

    @property
    def dim(self) -> int:
        """Channels."""
        assert self.conv_state is not None
        return self.conv_state[1]


@dataclass(frozen=True)
class Dense:
    """One feed-forward for every token: down(activation(gate x, up x)), or without a gate down(activation(up x))."""

    n_ff: int
    activation: Activation = SILU
    gated: bool = True

    @property
    def n_inner(self) -> int:
        """Inner numbers of a token."""
        return self.n_ff


@dataclass(frozen=True)
class Routed:
    """Feed-forwards of n_ff each, of which every token goes through some; and beside them a shared one of n_shared (0:
    none) for every token, where `shared_gate` says so times a sigmoid of its own."""

    n_ff: int
    routing: Routing
    n_shared: int = 0
    shared_gate: bool = False
    activation: Activation = SILU
    gated: bool = True

    @property
    def n_inner(self) -> int:
        """Inner numbers of a token."""
        return self.n_ff * self.routing.n_used + self.n_shared


@dataclass(frozen=True)
class LayerSpec:
    """norms: where they stand around mixer and feed-forward; parallel: one before both, which read the same.
    residual_scale: factor on what mixer and feed-forward add to the residual stream. beside: a second mixer, which
    reads what attention reads."""

    mixer: Attention | Recurrent | None
    ffn: Dense | Routed | None
    norms: NormPlaces = "before"
    residual_scale: float = 1.0
    beside: Recurrent | None = None
