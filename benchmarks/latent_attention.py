"""What it costs that values are part of keys: attention over such rows, and over keys and values apart, in turn.

    python benchmarks/latent_attention.py [--keys 4096] [--rounds 5] [--threads 1]

Rows of DeepSeek-V2: 576 numbers, of which 512 are the value, one KV head. Medians, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from mixkv.kernels import LayerFormat, open_backend

FORMATS = {"f16": LayerFormat("f16", "f16"), "q4_0 rotated": LayerFormat("q4_0", "q4_0", "f16", "f16", True, True)}
ROW, VALUE, PIECE = 576, 512, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    backend, rng, n = open_backend(given.threads, kind="native"), np.random.default_rng(0), given.keys // 16 * 16
    print(f"{backend.isa}, {given.threads} threads, {n} keys")
    for name, fmt in FORMATS.items():
        stores = [
            backend.KVStore(
                [fmt], n_kv_heads=1, head_dim_k=ROW, head_dim_v=VALUE, n_ctx=n + 64, sink_tokens=0,
                hot_tiles=n // 16 + 4, v_in_k=shared,
            )
            for shared in (True, False)
        ]  # fmt: skip
        for pos in range(0, n + 64, PIECE):
            k = rng.standard_normal((min(PIECE, n + 64 - pos), 1, ROW), np.float32)
            for store, width in zip(stores, (0, VALUE), strict=True):
                store.write(0, k, np.ascontiguousarray(k[..., :width]), pos)
        cold = fmt.type_k != fmt.hot_k
        for store in stores:
            store.quantize(0, 0, n if cold else 0)
        for heads in (16, 128):
            for queries in (1, 64):
                q = rng.standard_normal((queries, heads, ROW), np.float32)
                hot_from, times = np.full(queries, n if cold else 0, np.int64), ([], [])
                for _ in range(given.rounds):
                    for store, spent in zip(stores, times, strict=True):
                        start = time.perf_counter()
                        store.attend(0, q, n, hot_from, scale=0.04)
                        spent.append(1e3 * (time.perf_counter() - start))
                one, two = map(statistics.median, times)
                print(f"{name}, {heads} heads, {queries} queries: {one:.2f} ms, apart {two:.2f} ms, {one / two:.2f}")


if __name__ == "__main__":
    main()
