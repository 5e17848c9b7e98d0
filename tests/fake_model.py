"""A model of any layers whose logits are what its layers read of the past, side by side; and what they should be.

Tokens and positions choose queries, keys and values from random tables, so every row can be worked out in float64.
"""

from __future__ import annotations

import numpy as np
from attention_oracle import F64, exact_attention
from numpy.typing import ArrayLike, NDArray

from mixkv.kernels import Backend, default_backend
from mixkv.models.batch import F32, Batch, States
from mixkv.models.config import ModelConfig
from mixkv.models.layers import Attention, Dense, Latent, LayerSpec, Recurrent

N_IDS = 40


def full(n_kv_heads: int = 2, head_dim: int = 16, **options: object) -> LayerSpec:
    attention = Attention(4, n_kv_heads, head_dim, head_dim, scale=head_dim**-0.5, rope=None, **options)  # type: ignore[arg-type]
    return LayerSpec(attention, Dense(32))


def sliding(window: int, **options: object) -> LayerSpec:
    return full(window=window, **options)  # type: ignore[arg-type]


def chunked(chunk: int, **options: object) -> LayerSpec:
    return full(chunk=chunk, **options)  # type: ignore[arg-type]


def latent(rank: int = 16, n_rot: int = 8) -> LayerSpec:
    """Values are the first `rank` numbers of keys."""
    size = rank + n_rot
    found = Latent(rank, 0, n_rot, size, rank)
    return LayerSpec(Attention(4, 1, size, rank, scale=size**-0.5, rope=None, latent=found), Dense(32))


def recurrent(width: int = 6) -> LayerSpec:
    return LayerSpec(Recurrent((3, width), (width,)), Dense(32))


class FakeModel:
    """Rows of logits: (n, n_vocab), the layers' outputs one after the other. See models/protocol.py."""

    fingerprint = "f" * 32

    def __init__(self, *layers: LayerSpec, backend: Backend | None = None) -> None:
        self.backend = backend or default_backend()
        rng = np.random.default_rng(5)
        self._tables: list[tuple[F32, ...]] = []
        width = 0
        for layer in layers:
            mixer = layer.mixer
            if isinstance(mixer, Recurrent):
                assert mixer.scan_state is not None
                shapes = [mixer.scan_state]
                width += mixer.scan_state[0]
            else:
                assert isinstance(mixer, Attention)
                key, value = (mixer.n_kv_heads, mixer.head_dim_k), (mixer.n_kv_heads, mixer.head_dim_v)
                shapes = [(mixer.n_heads, mixer.head_dim_k), key, value]
                width += mixer.n_heads * mixer.head_dim_v
            self._tables.append(tuple(rng.standard_normal((N_IDS, *shape), np.float32) for shape in shapes))
        self.config = ModelConfig("fake", "fake", 4096, 8, width, 1e-5, layers)

    def _rows(self, layer: int, ids: ArrayLike, positions: ArrayLike) -> list[F32]:
        """What a layer makes of its tokens, representable in FP16."""
        turn = 1 + (np.asarray(positions) % 7) / 8
        rows = [table[np.asarray(ids)] for table in self._tables[layer]]
        return [(x * turn.reshape(-1, *[1] * (x.ndim - 1))).astype(np.float16).astype(np.float32) for x in rows]

    def forward(self, batch: Batch, states: States) -> F32:
        outs = []
        for i, layer in enumerate(self.config.layers):
            mixer = layer.mixer
            if isinstance(mixer, Attention):
                q, k, v = self._rows(i, batch.ids, batch.positions)
                v = v[..., : mixer.kv_shape[2]]
                kept = mixer.kv_from is None
                outs.append(states.attend(i, q, k if kept else None, v if kept else None).reshape(len(q), -1))
                continue
            (x,) = self._rows(i, batch.ids, batch.positions)
            out = np.empty_like(x)
            for run, memory in states.recurrent(i):
                conv, scan = (a.copy() for a in memory.read())
                for t in range(run.start, run.stop):
                    conv, scan, out[t] = self._one(conv, scan, x[t])
                if run.pos % 2:  # both ways of writing
                    for mine, new in zip(memory.out(), (conv, scan), strict=True):
                        mine[...] = new
                    memory.write(*memory.out())
                else:
                    memory.write(conv, scan)
            outs.append(out)
        return np.concatenate(outs, axis=1)[batch.rows]

    @staticmethod
    def _one(conv: NDArray, scan: NDArray, x: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        conv = np.concatenate([conv[1:], x[None]])
        scan = 0.75 * scan + conv.sum(axis=0)
        return conv, scan, scan

    def oracle(self, ids: list[int]) -> F64:
        """What all rows of a sequence should be, in float64."""
        n, outs = len(ids), []
        p, j = np.arange(n)[:, None], np.arange(n)[None, :]
        for i, layer in enumerate(self.config.layers):
            mixer = layer.mixer
            if isinstance(mixer, Attention):
                q, k, v = self._rows(i, ids, np.arange(n))
                if mixer.v_in_k:
                    v = k[..., : mixer.head_dim_v]
                if mixer.kv_from is not None:
                    _, k, v = self._rows(mixer.kv_from, ids, np.arange(n))
                hidden = (j > p) | ((j <= p - mixer.window) if mixer.window else False)
                hidden = hidden | ((j < p // mixer.chunk * mixer.chunk) if mixer.chunk else False)
                mask = np.where(hidden, -np.inf, 0.0)
                outs.append(exact_attention(q, k, v, mask, scale=mixer.scale, softcap=mixer.softcap)[0].reshape(n, -1))
                continue
            (x,) = (rows.astype(np.float64) for rows in self._rows(i, ids, np.arange(n)))
            conv, scan, out = np.zeros((3, x.shape[1])), np.zeros(x.shape[1]), np.empty_like(x)
            for t in range(n):
                conv, scan, out[t] = self._one(conv, scan, x[t])
            outs.append(out)
        return np.concatenate(outs, axis=1)
