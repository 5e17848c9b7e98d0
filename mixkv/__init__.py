"""mixkv: LLM inference for long contexts on ordinary CPUs.

    llm = mixkv.load("model.gguf", n_ctx=32768, mixed_kv_cache=True)
    print(llm.generate("Once upon a time", max_tokens=64).text)

This is the public face: it only re-exports. A name's module is imported when the name is first used, so that
`mixkv --help` loads nothing it does not need; `__init__.pyi` tells type checkers the same.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "engine.cache_config": ("KVCacheConfig",),
    "engine.chat.stream": ("ChatStream",),
    "engine.chat.reply": (
        "ChatCompletion", "ChatDelta", "ChatMessage", "ToolCall", "ToolCallDelta", "Usage",
    ),
    "engine.generation": ("Generation",),
    "engine.llm": ("LLM",),
    "engine.load": ("generate", "load"),
    "engine.results": ("Chunk", "Completion", "GenerationStats", "TokenLogprob"),
    "engine.sampling": ("SamplingParams",),
    "engine.state.cache": ("KVCache",),
    "engine.state.stats": ("CacheStats",),
    "kernels.attention": ("attend", "flash_attn_with_state"),
    "kernels.formats": ("QuantizedRows",),
    "kernels.state": ("AttentionState", "empty_state", "finalize", "merge", "sink_state"),
    "kernels.errors": (
        "ConfigError", "ContextFullError", "GGUFError", "HubError", "InputError", "MixkvError", "MixkvWarning",
        "OutOfMemoryError", "PromptTooLongError", "SessionError", "TemplateError", "TokenizerError",
    ),
}  # fmt: skip
_HOME = {name: f"mixkv.{module}" for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("mixkv")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'mixkv' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
