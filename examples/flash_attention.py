"""The operator alone: attention over an FP16 segment and a 4-bit one, with a state that can be continued and merged.

python examples/flash_attention.py
"""

import numpy as np

from mixkv import QuantizedRows, attend, finalize, flash_attn_with_state, merge


def main() -> None:
    random = np.random.default_rng(0)
    n_queries, n_heads, n_kv_heads, head_dim, n_keys = 2, 8, 2, 64, 1024
    q = random.standard_normal((n_queries, n_heads, head_dim), np.float32)
    k = random.standard_normal((n_keys, n_kv_heads, head_dim), np.float32).astype(np.float16)
    v = random.standard_normal((n_keys, n_kv_heads, head_dim), np.float32).astype(np.float16)
    whole = finalize(attend(q, (k, v)))

    # Any split gives the same output: attend to the parts one by one, or apart and merge.
    parts = merge(attend(q, (k[:300], v[:300])), attend(q, (k[300:], v[300:])))
    print(f"in two parts:          largest difference {np.abs(finalize(parts) - whole).max():.1e}")

    # Old keys and values in 4 bits, recent ones in FP16, in one call.
    old, recent = slice(0, 768), slice(768, None)
    k_quant, v_quant = QuantizedRows.quantize(k[old], "q4_0"), QuantizedRows.quantize(v[old], "q4_0")
    mixed = finalize(flash_attn_with_state(q, k[recent], v[recent], k_quant=k_quant, v_quant=v_quant))
    # Random numbers are the hardest case: attention over them averages to almost nothing.
    error = np.linalg.norm(mixed - whole) / np.linalg.norm(whole)
    print(f"old keys in 4 bits:    relative error {error:.3f}")


if __name__ == "__main__":
    main()
