"""One layer of routed experts beside dense feed-forwards of the same active size, and how fast it reads.

    python benchmarks/routed.py [--type Q4_0] [--experts 128] [--used 8] [--dim 2048] [--n-ff 768] [--threads 2]

Random weights of Qwen3-30B-A3B's shape unless told otherwise; calls are taken in turn, so all see the same machine. For
one token the bytes of its experts a second, beside those of a dense layer and the machine's read bandwidth; for prompts
tokens a second. A whole model beside llama.cpp: `tools/make_synthetic_gguf.py qwen3moe FILE.gguf`, then
`benchmarks/versus_llama_cpp.py --model FILE.gguf`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mixkv.kernels import open_backend
from mixkv.kernels.parts import Norm, Routing

LAYERS = 2
"""Of routed experts, taken in turn: no token finds its experts in a cache."""


def random_raw(kind: GGMLQuantizationType, n: int, rows: int, cols: int, rng: np.random.Generator) -> Any:
    """Random blocks (n, rows, row_bytes) with a sensible FP16 scale in front, and a minimum where there is one."""
    block, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (n, rows, cols // block, size), dtype=np.uint8)
    scales = (rng.standard_normal(raw.shape[:3]) * 0.01).astype(np.float16)[..., None].view(np.uint8)
    raw[..., :2] = scales
    if kind in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K):
        raw[..., 2:4] = scales
    return raw.reshape(n, rows, -1)


def in_turn(calls: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(i)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K"], default="Q4_0", dest="kind")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--used", type=int, default=8)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--n-ff", type=int, default=768)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompts", type=lambda text: [int(n) for n in text.split(",")], default=[2, 16, 128, 512])
    args = parser.parse_args()
    rng, backend = np.random.default_rng(0), open_backend(args.threads, kind="native")
    kind, dim, n_ff, used = GGMLQuantizationType[args.kind], args.dim, args.n_ff, args.used
    norm = Norm(np.ones(dim, np.float32), 1e-6)
    inner, outer = random_raw(kind, args.experts, n_ff, dim, rng), random_raw(kind, args.experts, dim, n_ff, rng)
    routed, dense = [], []
    for _ in range(LAYERS):
        gate, up = (backend.pack_experts(inner, int(kind), dim) for _ in range(2))
        down = backend.pack_experts(outer, int(kind), n_ff)
        router = backend.pack(rng.standard_normal((args.experts, dim), np.float32).view(np.uint8), 0, dim)
        parts = {"router": router, "routing": Routing(args.experts, used)}
        routed.append(backend.RoutedFFN(norm=norm, gate=gate, up=up, down=down, **parts))
    token_bytes = (gate.nbytes + up.nbytes + down.nbytes) // args.experts * used
    for _ in range(max(1, LAYERS * args.experts // used)):
        wide = [backend.pack(random_raw(kind, 1, used * n_ff, dim, rng)[0], int(kind), dim) for _ in range(2)]
        narrow = backend.pack(random_raw(kind, 1, dim, used * n_ff, rng)[0], int(kind), used * n_ff)
        dense.append(backend.NormFFN(norm=norm, gate=wide[0], up=wide[1], down=narrow))
    for n in (1, *args.prompts):
        x = rng.standard_normal((64 if n == 1 else n, dim), np.float32)

        def rows(i: int, x: Any = x, n: int = n) -> Any:
            return x[i % 64 : i % 64 + 1] if n == 1 else x

        calls = {
            "routed": lambda i, rows=rows: routed[i % LAYERS](rows(i), None),
            "dense": lambda i, rows=rows: dense[i % len(dense)](rows(i), None),
        }
        seconds = in_turn(calls, 200 if n == 1 else 12)
        if n == 1:
            roof = max(backend.read_bandwidth(1 << 30) for _ in range(3))
            speeds = {name: token_bytes / s for name, s in seconds.items()}
            shares = "".join(f"   {name} {v / 1e9:.1f} GB/s, {v / roof:.0%}" for name, v in speeds.items())
            print(f"one token: reads {token_bytes / 1e6:.1f} MB, roof {roof / 1e9:.1f} GB/s{shares}")
        else:
            speeds = {name: n / s for name, s in seconds.items()}
            print(f"{n:>4} tokens: " + "   ".join(f"{name} {v:.0f} tokens/s" for name, v in speeds.items()))


if __name__ == "__main__":
    main()
