"""Which architectures there are, and how a file becomes a model."""

from __future__ import annotations

from collections.abc import Callable

from mixkv.kernels.contract import Backend
from mixkv.kernels.errors import GGUFError
from mixkv.models.config import ModelConfig
from mixkv.models.fingerprint import fingerprint
from mixkv.models.gguf import GGUFFile
from mixkv.models.llama import Llama
from mixkv.models.qwen2 import Qwen2
from mixkv.models.qwen3 import Qwen3
from mixkv.models.weights import Weights

FAMILIES: dict[str, type[Llama]] = {family.architecture: family for family in (Llama, Qwen2, Qwen3)}


def family_of(gguf: GGUFFile) -> type[Llama]:
    """The class for the file's architecture; GGUFError lists the supported ones."""
    arch = gguf.str("general.architecture")
    if arch not in FAMILIES:
        raise GGUFError(f"{gguf.path}: architecture {arch!r} is not supported: {', '.join(FAMILIES)} are")
    return FAMILIES[arch]


def read_config(gguf: GGUFFile) -> ModelConfig:
    """Hyper-parameters of `gguf`, as its family reads them; GGUFError names the key that is missing or wrong."""
    return family_of(gguf).read_config(gguf)


def load_model(
    gguf: GGUFFile, backend: Backend, *, exact: bool = False, dense: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Llama:  # fmt: skip
    """Build the model that the file holds, to run on `backend`. exact, dense: see Weights. Raises GGUFError."""
    family, config, weights = family_of(gguf), read_config(gguf), Weights(gguf, backend, exact, dense, progress)
    model = family(config, weights)
    model.fingerprint = fingerprint(config, gguf.metadata, weights.digests)
    return model


def supported_families() -> str:
    """The table of supported architectures, as Markdown; the README's copy is tested against it."""
    rows = [f"| `{f.architecture}` | {f.models} | {f.features} |" for f in FAMILIES.values()]
    return "\n".join(["| architecture | models | what it brings |", "| --- | --- | --- |", *rows])
