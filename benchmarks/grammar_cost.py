"""What constrained output costs: tokens a second with and without a schema, in turn.

    python benchmarks/grammar_cost.py MODEL [--tokens 64] [--rounds 7] [--threads N]

`free` is text without constraint, `masked` JSON in which next to nothing is forced (a list of strings: each token is
drawn under a mask), `schema` records of fields whose names are forced and computed together. Medians; ratios are of
neighbouring runs. CPU time of this process says more than tokens a second where others use the machine as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import mixkv

ITEM = {"type": "object", "properties": {name: {"type": "integer", "minimum": 0, "maximum": 999} for name in (
    "identifier", "temperature", "humidity", "pressure")}, "required": [
    "identifier", "temperature", "humidity", "pressure"], "additionalProperties": False}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "masked": {"json_schema": {"type": "array", "items": {"type": "string"}, "minItems": 1000}, "ignore_eos": True},
    "schema": {"json_schema": {"type": "array", "items": ITEM, "minItems": 1000}, "ignore_eos": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    llm = mixkv.load(given.model, n_ctx=1024, n_threads=given.threads)
    prompt = list(range(10, 40))
    start = time.perf_counter()
    llm.generate(prompt, max_tokens=1, **KINDS["masked"])
    print(f"the first constrained token, vocabulary included: {time.perf_counter() - start:.2f} s")
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps = dict.fromkeys(KINDS, 0)
    for seed in range(given.rounds):
        for kind, options in KINDS.items():
            llm.reset()
            start = time.process_time()
            stream = llm.stream(prompt, max_tokens=given.tokens, seed=seed, temperature=1.0, **options)
            speeds[kind].append(stream.completion().stats.decode_tokens_per_second)
            cpu[kind].append(time.process_time() - start)
            steps[kind] += stream.job.steps
    for kind in KINDS:
        ratios = [a / b for a, b in zip(speeds[kind], speeds["free"], strict=True)]
        times = [a / b for a, b in zip(cpu[kind], cpu["free"], strict=True)]
        print(
            f"{kind:8} {statistics.median(speeds[kind]):7.2f} tokens/s, {statistics.median(ratios):.3f} of free "
            f"({min(ratios):.3f} to {max(ratios):.3f}), CPU time {statistics.median(times):.3f} of free "
            f"({min(times):.3f} to {max(times):.3f}), {given.rounds * given.tokens / steps[kind]:.2f} tokens a step"
        )


if __name__ == "__main__":
    main()
