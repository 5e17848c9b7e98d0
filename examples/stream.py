"""Print text as it comes, and ask a second question of the same long text without reading it again.

The second prompt begins like the first, so the cache already holds most of it: `reused_tokens` says how much.

python examples/stream.py [model.gguf]
"""

import sys

import mixkv

TEXT = "The captain looked at the sea and at the sky, and said that the wind would turn before night. " * 4


def main() -> None:
    llm = mixkv.load(sys.argv[1] if len(sys.argv) > 1 else None, mixed_kv_cache=True, hot_window=64)
    for question in ("The mate answered that", "The wind"):
        stream = llm.stream(TEXT + question, max_tokens=24, temperature=0.0)
        print(question, end="")
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        stats = stream.stats
        print(f"\n  [{stats.prompt_tokens} prompt tokens, {stats.reused_tokens} of them reused]\n")


if __name__ == "__main__":
    main()
