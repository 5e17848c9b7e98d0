"""Stateful flash attention as a public operator: attend over segments one by one, in any order, and merge exactly.

    state = empty_state(n_queries, n_heads, head_dim)
    state = attend(q, (k, v), state)             # FP16 or float32 keys
    state = attend(q, (k_cold, v_cold), state)   # QuantizedRows
    out = finalize(state)

`flash_attn_with_state` does the two segments of a mixed cache in one call. Semantics: kv-cache.md section 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixkv.kernels.backend import default_backend
from mixkv.kernels.contract import Backend
from mixkv.kernels.errors import ConfigError, InputError
from mixkv.kernels.formats import QuantizedRows
from mixkv.kernels.reference_attention import Rows
from mixkv.kernels.state import AttentionState, alibi_slopes, empty_state


def attend(
    q: ArrayLike, segment: Sequence[Rows], state: AttentionState | None = None, mask: ArrayLike | None = None,
    *, scale: float | None = None, max_bias: float = 0.0, logit_softcap: float = 0.0, backend: Backend | None = None,
) -> AttentionState:  # fmt: skip
    """The state after one more segment (k, v), each (n_keys, n_kv_heads, .) FP16, float32 or QuantizedRows.

    q (n_queries, n_heads, head_dim); mask additive (n_queries, n_keys), -inf hides a key; scale defaults to
    1 / sqrt(head_dim). An empty segment leaves the state as it is. backend: from `open_backend`; left out, one that all
    such calls share, with as many threads as there are cores. Raises InputError where shapes do not fit.
    """
    query = np.ascontiguousarray(q, np.float32)
    k, v = (rows if isinstance(rows, QuantizedRows) else _float_rows(rows) for rows in segment)
    if query.ndim != 3:
        raise InputError(f"queries are (n_queries, n_heads, head_dim), not {query.shape}")
    n, n_heads, head_dim = query.shape
    if k.shape[:2] != v.shape[:2] or k.shape[2] != head_dim or k.shape[1] == 0 or n_heads % k.shape[1]:
        raise InputError(
            f"keys {k.shape} and values {v.shape} do not fit queries {query.shape}: "
            "n_keys and n_kv_heads must agree, n_heads must be a multiple of n_kv_heads, head_dim that of the queries"
        )
    if mask is not None:
        mask = np.ascontiguousarray(mask, np.float32)
        if mask.shape != (n, k.shape[0]):
            raise InputError(f"the mask is (n_queries, n_keys) = ({n}, {k.shape[0]}), not {mask.shape}")
    if logit_softcap < 0 or max_bias < 0:
        raise ConfigError(f"logit_softcap {logit_softcap} and max_bias {max_bias} must not be negative")
    if state is None:
        state = empty_state(n, n_heads, v.shape[2])
    if state.acc.shape != (n, n_heads, v.shape[2]):
        raise InputError(f"the state {state.acc.shape} does not fit queries {query.shape} and head_dim_v {v.shape[2]}")
    if len(k) == 0 or n == 0:
        return state
    m, s, acc = (backend or default_backend()).attend_segment(
        query, k, v, mask, state.m, state.s, state.acc, head_dim**-0.5 if scale is None else scale,
        alibi_slopes(n_heads, max_bias), logit_softcap,
    )  # fmt: skip
    return AttentionState(m, s, acc)


def _float_rows(rows: ArrayLike) -> NDArray[np.float16] | NDArray[np.float32]:
    a = np.asarray(rows)
    if a.dtype != np.float16:
        a = a.astype(np.float32, copy=False)
    if a.ndim != 3:
        raise InputError(f"keys and values are (n_keys, n_kv_heads, head_dim), not {a.shape}")
    return np.ascontiguousarray(a)


def flash_attn_with_state(
    q: ArrayLike, k: Rows | None, v: Rows | None, mask: ArrayLike | None = None,
    k_quant: QuantizedRows | None = None, v_quant: QuantizedRows | None = None, mask_quant: ArrayLike | None = None,
    state: AttentionState | None = None, *, scale: float | None = None, max_bias: float = 0.0,
    logit_softcap: float = 0.0, backend: Backend | None = None,
) -> AttentionState:  # fmt: skip
    """Attend over an FP16 segment (k, v) and a quantized one (k_quant, v_quant), continuing from `state`.

    Either segment may be None or empty, and each mask may be given or left out on its own. `finalize` turns the
    returned state into the output (n_queries, n_heads, head_dim); the state goes into the next call to continue.
    """
    for a, b, what in ((k, v, "k and v"), (k_quant, v_quant, "k_quant and v_quant")):
        if (a is None) != (b is None):
            raise InputError(f"{what} belong together: give both or neither")
    if mask_quant is not None and k_quant is None:
        raise InputError("mask_quant without k_quant: give the segment that it masks")
    if k is None and k_quant is None:
        raise InputError("no keys: give k and v, or k_quant and v_quant")
    for keys, values, bias in ((k_quant, v_quant, mask_quant), (k, v, mask)):
        if keys is not None and values is not None:
            state = attend(
                q, (keys, values), state, bias, scale=scale, max_bias=max_bias, logit_softcap=logit_softcap,
                backend=backend,
            )  # fmt: skip
    assert state is not None
    return state
