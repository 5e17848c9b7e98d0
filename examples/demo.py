"""The demo: the model that ships with mixkv continues a story through the mixed cache, then shows what that saved.

Run with `make demo`, or `python examples/demo.py` where mixkv is installed.
"""

import mixkv

PROMPT = "It was a dark and stormy night, and the old house by the sea stood empty. "


def main() -> None:
    llm = mixkv.load(mixed_kv_cache=True, hot_window=64, sink_tokens=16)
    print(f"{llm.config.name}: {llm.config.n_layers} layers, context of {llm.n_ctx} tokens, {llm.n_threads} threads\n")
    print(PROMPT, end="", flush=True)
    stream = llm.stream(PROMPT, max_tokens=600, temperature=0.7, seed=7, repeat_penalty=1.1, ignore_eos=True)
    for chunk in stream:
        print(chunk.text, end="", flush=True)

    stats = stream.stats
    cache = stats.cache
    print(f"\n\n{stats.generated_tokens} tokens, {stats.decode_tokens_per_second:.0f} tokens/s")
    print(f"{'KV cache':<12}{'tokens':>8}{'KiB':>8}")
    for name in ("sink", "hot", "cold"):
        print(f"  {name:<10}{getattr(cache, name + '_tokens'):>8}{getattr(cache, name + '_bytes') / 1024:>8.0f}")
    print(f"  {'mixed':<10}{cache.n_tokens:>8}{cache.nbytes / 1024:>8.0f}   {cache.bits_per_element:.1f} bits a number")
    print(
        f"  {'all FP16':<10}{cache.n_tokens:>8}{cache.fp16_bytes / 1024:>8.0f}   {cache.fp16_bytes / cache.nbytes:.1f}x"
    )


if __name__ == "__main__":
    main()
