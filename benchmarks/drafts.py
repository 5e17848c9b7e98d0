"""Prompt lookup on real texts: tokens a second with and without, in turn, and whether the tokens are the same.

    python benchmarks/drafts.py -m qwen2.5-coder-1.5b-instruct-q4_k_m.gguf [-r 3] [-n 200]

For a model that was trained for chat in ChatML. The tasks: an edit of a source file of this project and a summary that
quotes its text, which repeat their prompt, and a story, which does not. Medians; a JSON line follows the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import mixkv

ROOT = Path(__file__).resolve().parents[1]
CODE = (ROOT / "engine" / "stops.py").read_text()
TEXT = (ROOT / "docs" / "kv-cache.md").read_text()[:6000]
TASKS = {
    "edit": f"Rename the class StopMatcher to StopFinder in this file. Answer with the whole file only.\n\n{CODE}",
    "quotes": "Summarise this page in five points. Below each point quote the sentences that it comes from, word by "
    f"word.\n\n{TEXT}",
    "story": "Write a story about a lighthouse keeper who finds a letter in a bottle.",
}


def prompt(task: str) -> str:
    return f"<|im_start|>user\n{task}<|im_end|>\n<|im_start|>assistant\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-n", "--tokens", type=int, default=200)
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    rows = []
    load = {"n_ctx": 4096, "n_threads": options.threads, "mixed_kv_cache": True, "prefix_reuse": "exact"}
    with mixkv.load(options.model, **load) as llm:
        for name, task in TASKS.items():
            speeds: dict[str | None, list[float]] = {None: [], "lookup": []}
            tokens = set()
            for _ in range(options.rounds):
                for draft, found in speeds.items():
                    out = llm.generate(
                        prompt(task), parse_special=True, max_tokens=options.tokens, draft=draft, seed=1,
                        temperature=options.temperature,
                    )  # fmt: skip
                    found.append(out.stats.decode_tokens_per_second)
                    tokens.add(tuple(out.tokens))
            plain, drafted = (statistics.median(found) for found in speeds.values())
            ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
            rows.append({"task": name, "plain": plain, "lookup": drafted, "ratio": ratio, "same": len(tokens) == 1})
            print(f"{name:8} {plain:7.2f} -> {drafted:7.2f} tokens/s, {ratio:.2f}x, same tokens: {len(tokens) == 1}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
