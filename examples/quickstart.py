"""Load a model, continue a text, and see what it cost.

python examples/quickstart.py [model.gguf]
"""

import sys

import mixkv


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else None  # None: the demo model that ships with mixkv
    llm = mixkv.load(path, mixed_kv_cache=True)
    prompt = "Once upon a time"
    out = llm.generate(prompt, max_tokens=48, temperature=0.7, seed=1)
    print(prompt + out.text)
    print(
        f"\n{len(out.tokens)} tokens, {out.stats.decode_tokens_per_second:.1f} tokens/s, ended by {out.finish_reason}"
    )


if __name__ == "__main__":
    main()
