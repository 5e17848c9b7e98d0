"""mixkv: LLM inference for long contexts on ordinary CPUs."""
