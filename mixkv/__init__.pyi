from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.chat.reply import ChatCompletion, ChatDelta, ChatMessage, ToolCall, ToolCallDelta, Usage
from mixkv.engine.chat.stream import ChatStream
from mixkv.engine.generation import Generation
from mixkv.engine.llm import LLM
from mixkv.engine.load import generate, load
from mixkv.engine.results import Chunk, Completion, GenerationStats, TokenLogprob
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.state.cache import KVCache
from mixkv.engine.state.stats import CacheStats
from mixkv.kernels import (
    AttentionState,
    QuantizedRows,
    attend,
    empty_state,
    finalize,
    flash_attn_with_state,
    merge,
    sink_state,
)
from mixkv.kernels.errors import (
    ConfigError,
    ContextFullError,
    GGUFError,
    HubError,
    InputError,
    MixkvError,
    MixkvWarning,
    OutOfMemoryError,
    PromptTooLongError,
    SessionError,
    TemplateError,
    TokenizerError,
)

__version__: str
__all__ = [
    "LLM",
    "AttentionState",
    "CacheStats",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "ChatStream",
    "Chunk",
    "Completion",
    "ConfigError",
    "ContextFullError",
    "GGUFError",
    "Generation",
    "GenerationStats",
    "HubError",
    "InputError",
    "KVCache",
    "KVCacheConfig",
    "MixkvError",
    "MixkvWarning",
    "OutOfMemoryError",
    "PromptTooLongError",
    "QuantizedRows",
    "SamplingParams",
    "SessionError",
    "TemplateError",
    "TokenLogprob",
    "TokenizerError",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "__version__",
    "attend",
    "empty_state",
    "finalize",
    "flash_attn_with_state",
    "generate",
    "load",
    "merge",
    "sink_state",
]
