"""A layer of routed experts of any numbers, for the tests of the native ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from numpy.typing import NDArray
from weight_tools import random_raw

from mixkv.kernels import open_backend
from mixkv.kernels.parts import SILU, Activation, Norm, Routing
from mixkv.kernels.reference_routed import route

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")
numpy: Any = open_backend(1, kind="reference")

F32 = NDArray[np.float32]
ACTIVATIONS = [
    SILU, Activation("gelu"), Activation("relu2"), Activation("swiglu_oai", (1.702, 7.0)),
    Activation("xielu", (0.8, 0.6, 0.5, -1e-6)),
]  # fmt: skip
QWEN = Routing(n_experts=11, n_used=3)


@dataclass
class Layer:
    """Random experts and all that may come with them; `parts` are arguments that both backends take as they are."""

    routing: Routing = QWEN
    dim: int = 256
    n_ff: int = 96
    kinds: tuple[T, T, T] = (T.F32, T.F32, T.F32)
    router_kind: T = T.F32
    gated: bool = True
    biased: bool = False
    normed: bool = True
    activation: Activation = SILU
    seed: int | None = None
    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        n, shapes = self.routing.n_experts, ((self.n_ff, self.dim), (self.n_ff, self.dim), (self.dim, self.n_ff))
        self.raw = [
            (random_raw(kind, n * rows, cols, self.rng).reshape(n, rows, -1), kind, cols)
            for kind, (rows, cols) in zip(self.kinds, shapes, strict=True)
        ]
        self.router_raw = random_raw(self.router_kind, n, self.dim, self.rng)
        if self.normed:
            self.parts["norm"] = Norm(self.numbers(self.dim) / 8, 1e-5)
        if self.biased:
            self.parts |= {
                "router_bias": self.numbers(n), "gate_bias": self.numbers(n, self.n_ff),
                "up_bias": self.numbers(n, self.n_ff), "down_bias": self.numbers(n, self.dim),
                "down_scale": self.numbers(n),
            }  # fmt: skip
        self.parts.setdefault("norm", None)

    def numbers(self, *shape: int) -> F32:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def on(self, backend: Any, exact: bool = False) -> Any:
        """This layer of a backend."""
        gate, up, down = (backend.pack_experts(raw, int(kind), cols, exact) for raw, kind, cols in self.raw)
        self.router = backend.pack(self.router_raw, int(self.router_kind), self.dim, exact)
        parts = self.parts if self.gated else {k: v for k, v in self.parts.items() if k != "gate_bias"}
        return backend.RoutedFFN(
            router=self.router, routing=self.routing, gate=gate if self.gated else None, up=up, down=down,
            activation=self.activation, **parts,
        )  # fmt: skip

    def tokens(self, n: int) -> F32:
        """Random tokens that go where they go however products round."""
        found = self.numbers(0, self.dim)
        router = numpy.pack(self.router_raw, int(self.router_kind), self.dim)
        while len(found) < n:
            x = self.numbers(n + 4, self.dim)
            norm = self.parts.get("router_norm") or self.parts["norm"]
            p = numpy.linear(x if norm is None else numpy.norm(x, norm), router, self.parts.get("router_bias"))
            noise = [1e-4 * np.abs(p).max() * self.rng.standard_normal(p.shape, dtype=np.float32) for _ in range(8)]
            choices = [route(p + e, self.routing, self.parts.get("selection_bias"))[0] for e in (0 * p, *noise)]
            found = np.concatenate([found, x[(np.array(choices) == choices[0]).all(axis=(0, 2))]])
        return found[:n]

    def one_by_one(self, backend: Any, x: F32, residual: F32 | None) -> F32:
        """The layer's result on a native backend, put together from what else the backend can do."""
        p, r = self.parts, self.routing
        matrices = [
            [backend.pack(raw[e].copy(), int(kind), cols) for e in range(r.n_experts)] for raw, kind, cols in self.raw
        ]
        h = x if p["norm"] is None else backend.norm(x, p["norm"])
        routed = backend.norm(x, p["router_norm"]) if p.get("router_norm") else h
        router = backend.pack(self.router_raw, int(self.router_kind), self.dim)
        products = backend.linear(routed, router, p.get("router_bias"))
        chosen, weights = backend.debug_route(products, r, p.get("selection_bias"))
        out = np.zeros_like(x)
        for t in range(len(x)):
            for slot, (e, weight) in enumerate(zip(chosen[t].tolist(), weights[t], strict=True)):
                biases = {
                    k: np.ascontiguousarray(p[k][e])
                    for k in ("gate_bias", "up_bias", "down_bias")
                    if p.get(k) is not None
                }
                expert = backend.NormFFN(
                    norm=None, gate=matrices[0][e] if self.gated else None, up=matrices[1][e], down=matrices[2][e],
                    activation=self.activation, **biases,
                )  # fmt: skip
                y = expert(h[t : t + 1] * (weight if r.on_input else np.float32(1)), None)[0]
                y = y * (p["down_scale"][e] if p.get("down_scale") is not None else np.float32(1))
                y = y if r.on_input else y * weight
                out[t] = y if slot == 0 else out[t] + y
        if p.get("out_norm"):
            out = backend.norm(out, p["out_norm"])
        out = out * np.float32(p.get("scale", 1))
        return out if residual is None else out + residual


def poison(backend: Any, fast: Any, shape: tuple[int, int]) -> None:
    """Leaves NaN in the backend's scratch memory and in that of the next results of this shape, so that holes show."""
    nans = [fast(np.full(shape, np.nan, np.float32), None) for _ in range(2)]
    assert all(np.isnan(y).all() for y in nans)
