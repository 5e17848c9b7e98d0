"""Mixers that keep a state instead of keys, built from what their `Recurrent` says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixkv.kernels.contract_parts import RecurrentPart, Weight
from mixkv.kernels.parts import F32, Norm
from mixkv.models.batch import Batch, Rows, States
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import DeltaNet, LayerSpec, Mamba2, Recurrent, ShortConv


class RecurrentMixer:
    """Projections of the normed rows, then `part` for each sequence, then the way back to the residual stream."""

    def __init__(
        self, lw: LayerWeights, layer: int, part: RecurrentPart, weights: Sequence[Weight], norm: Norm | None,
        out: Weight, scale: float,
    ) -> None:  # fmt: skip
        self._layer, self._part = layer, part
        self._in = lw.backend.NormLinear(norm=norm, weights=weights)
        self._out = lw.backend.Project(w=out, scale=scale)

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """See decoder.Mixer."""
        return self.add(x, states, x if rows is None else x[rows], rows)

    def add(self, x: F32, states: States, residual: F32, rows: Rows | None) -> F32:
        """residual with what this mixer makes of x added: rows of both, as `rows` says."""
        y = self._inner(x, states)
        if rows is not None:
            y = y[rows]
        return self._out(y, residual) if len(residual) else residual

    def _inner(self, x: F32, states: States) -> F32:
        """What `part` makes of every sequence's rows (n, width)."""
        inputs = self._in(x)
        pieces = []
        for run, memory in states.recurrent(self._layer):
            mine = tuple(a[run.start : run.stop] for a in inputs)
            after = memory.out()
            pieces.append(self._part(mine, memory.read(), after))
            memory.write(*after)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def recurrent_mixer(
    lw: LayerWeights, layer: int, spec: LayerSpec, mixer: Recurrent, norm: Norm | None
) -> RecurrentMixer:
    """The mixer that `mixer` describes."""
    scale = spec.residual_scale
    if isinstance(mixer, Mamba2):
        out = lw.matrix("ssm_out", lw.config.n_embd, mixer.n_inner)
        return RecurrentMixer(lw, layer, _mamba2(lw, mixer), [_mamba2_in(lw, mixer)], norm, out, scale)
    if isinstance(mixer, DeltaNet):
        out = lw.matrix("ssm_out", lw.config.n_embd, mixer.n_heads * mixer.head_dim)
        return RecurrentMixer(lw, layer, _delta_net(lw, mixer), _delta_net_in(lw, mixer), norm, out, scale)
    assert isinstance(mixer, ShortConv) and mixer.conv_state is not None
    dim = lw.config.n_embd
    part = lw.backend.ShortConv(conv=lw.array("shortconv.conv", (dim, mixer.conv_state[0] + 1)))
    weights = [lw.matrix("shortconv.in_proj", 3 * dim, dim)]
    return RecurrentMixer(lw, layer, part, weights, norm, lw.matrix("shortconv.out_proj", dim, dim), scale)


def _mamba2(lw: LayerWeights, m: Mamba2) -> RecurrentPart:
    assert m.conv_state is not None
    kept, channels = m.conv_state
    gain = lw.array("ssm_norm", (m.n_groups, m.n_inner // m.n_groups)).ravel() if "ssm_norm" in lw else None
    return lw.backend.Mamba2(
        conv=lw.array("ssm_conv1d", (channels, kept + 1)), conv_bias=lw.bias("ssm_conv1d", channels),
        a=lw.array("ssm_a", (m.n_heads, 1), "").ravel(), d=lw.array("ssm_d", (m.n_heads, 1), "").ravel(),
        dt_bias=lw.vector("ssm_dt", m.n_heads, ".bias"), gain=gain, eps=lw.config.norm_eps, n_heads=m.n_heads,
        head_dim=m.head_dim, n_groups=m.n_groups, d_state=m.d_state,
    )  # fmt: skip


def _mamba2_in(lw: LayerWeights, m: Mamba2) -> Weight:
    return lw.matrix("ssm_in", 2 * m.n_inner + 2 * m.n_groups * m.d_state + m.n_heads, lw.config.n_embd)


def _delta_net(lw: LayerWeights, m: DeltaNet) -> RecurrentPart:
    assert m.conv_state is not None
    kept, channels = m.conv_state
    return lw.backend.DeltaNet(
        conv=lw.array("ssm_conv1d", (channels, kept + 1)), a=lw.vector("ssm_a", m.n_heads, ""),
        dt_bias=lw.vector("ssm_dt", m.n_heads, ".bias"), gain=lw.vector("ssm_norm", m.head_dim), eps=lw.config.norm_eps,
        n_heads=m.n_heads, n_k_heads=m.n_k_heads, head_dim=m.head_dim, tiled=m.tiled,
    )  # fmt: skip


def _delta_net_in(lw: LayerWeights, m: DeltaNet) -> list[Weight]:
    """q, k, v together; z; alpha; beta."""
    dim = lw.config.n_embd
    qkv = lw.matrix("attn_qkv", (2 * m.n_k_heads + m.n_heads) * m.head_dim, dim)
    z = lw.matrix("attn_gate", m.n_heads * m.head_dim, dim)
    if "ssm_ba" not in lw:
        return [qkv, z, lw.matrix("ssm_alpha", m.n_heads, dim), lw.matrix("ssm_beta", m.n_heads, dim)]
    # for each key head the betas of its values, then their alphas
    ratio = m.n_heads // m.n_k_heads
    starts = np.arange(m.n_k_heads)[:, None] * 2 * ratio
    beta, alpha = lw.parts(
        "ssm_ba", [(starts + np.arange(ratio)).ravel(), (starts + ratio + np.arange(ratio)).ravel()], dim
    )
    return [qkv, z, alpha, beta]
