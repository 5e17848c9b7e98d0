"""Which architectures there are, and how a file becomes a model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from mixkv.kernels.contract import Backend
from mixkv.kernels.errors import GGUFError
from mixkv.models.config import ModelConfig
from mixkv.models.decoder import Decoder
from mixkv.models.fingerprint import fingerprint
from mixkv.models.gguf import GGUFFile
from mixkv.models.weights import Weights

ROOMS: dict[str, tuple[str, ...]] = {
    "llama": (
        "llama", "mistral3", "smollm3", "granite", "granitemoe", "seed_oss", "arcee", "apertus", "minicpm", "internlm2"
    ),
    "qwen": ("qwen2", "qwen3", "qwen2moe", "qwen3moe"),
    "gemma": ("gemma2", "gemma3"),
    "gemma4": ("gemma4",),
    "gemma3n": ("gemma3n",),
    "gpt_oss": ("gpt-oss",),
    "phi": ("phi3", "phi2"),
    "postnorm": ("olmo2", "olmoe", "exaone4", "glm4"),
    "routed": (
        "glm4moe", "ernie4_5", "ernie4_5-moe", "hunyuan-dense", "hunyuan-moe", "dots1", "bailingmoe2", "minimax-m2"
    ),
    "latent": ("deepseek2",),
    "llama4": ("llama4",),
    "hybrid": (
        "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe", "granitehybrid", "falcon-h1", "nemotron_h",
        "nemotron_h_moe", "mamba2",
    ),
    "layernorm": ("command-r", "cohere2", "stablelm", "starcoder2"),
}  # fmt: skip
"""Modules of families/ and the architectures that each has, in the order of the table of families: a module is only
imported for a file of one of them."""


def architectures() -> list[str]:
    """All that are supported."""
    return [arch for room in ROOMS.values() for arch in room]


def families() -> dict[str, type[Decoder]]:
    """Every architecture's class; imports all of them."""
    return {family.architecture: family for room in ROOMS for family in _families(room)}


def family_of(gguf: GGUFFile) -> type[Decoder]:
    """The class for the file's architecture; GGUFError lists the supported ones."""
    arch = gguf.str("general.architecture")
    for room, there in ROOMS.items():
        if arch in there:
            return next(family for family in _families(room) if family.architecture == arch)
    raise GGUFError(f"{gguf.path}: architecture {arch!r} is not supported: {', '.join(architectures())} are")


def _families(room: str) -> tuple[type[Decoder], ...]:
    found: tuple[type[Decoder], ...] = import_module(f"mixkv.models.families.{room}").FAMILIES
    return found


def read_config(gguf: GGUFFile) -> ModelConfig:
    """Hyper-parameters of `gguf`, as its family reads them; GGUFError names the key that is missing or wrong."""
    return family_of(gguf).read_config(gguf)


def load_model(
    gguf: GGUFFile, backend: Backend, *, n_ctx: int | None = None, exact: bool = False, dense: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Decoder:  # fmt: skip
    """Build the model that the file holds, to run on `backend` with contexts of n_ctx tokens (left out: what it was
    trained for). exact, dense: see Weights. Raises GGUFError."""
    family, config, weights = family_of(gguf), read_config(gguf), Weights(gguf, backend, exact, dense, progress)
    config = config.for_context(n_ctx or config.n_ctx_train)
    model = family(config, weights)
    model.fingerprint = fingerprint(config, gguf.metadata, weights.digests)
    return model


def supported_families() -> str:
    """The table of supported architectures, as Markdown; the README's copy is tested against it."""
    rows = [f"| `{f.architecture}` | {f.models} | {f.features} |" for f in families().values()]
    return "\n".join(["| architecture | models | what it brings |", "| --- | --- | --- |", *rows])
