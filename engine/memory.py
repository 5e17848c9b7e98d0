"""Whether a model and its cache fit into this machine, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state.mixed_policy import PIECE
from mixkv.engine.state.stats import cache_bytes
from mixkv.kernels import Backend
from mixkv.kernels.errors import OutOfMemoryError
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.gguf_types import WEIGHT_TYPES, TensorInfo
from mixkv.models.layers import Attention, LayerSpec, Recurrent, Routed

MIB = 1 << 20
FIXED_SCRATCH = 64 * MIB
"""Work space whatever the batch: threads' own memory, and pieces of matrices that NumPy's backend dequantizes."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a model will need: packed weights, the cache when it is full, and work space."""

    weights: int
    cache: int
    scratch: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch

    def check(self, available: int | None) -> None:
        """OutOfMemoryError if `available` bytes (None: unknown) are too few."""
        if available is not None and self.total > available:
            needs = " + ".join(f"{name} {getattr(self, name) // MIB} MiB" for name in ("weights", "cache", "scratch"))
            raise OutOfMemoryError(
                f"{needs} exceed the {available // MIB} MiB that this machine has free: use a smaller n_ctx, "
                "mixed_kv_cache, or a smaller model"
            )


def plan_memory(
    gguf: GGUFFile, model: ModelConfig, plan: CachePlan, backend: Backend, *, n_ctx: int, n_batch: int,
    n_parallel: int = 1, kv_memory: int | None = None, dense: bool = False,
) -> MemoryPlan:  # fmt: skip
    """The bytes that loading `gguf` with this cache will need.

    n_parallel: sequences at once, each of n_ctx tokens. kv_memory: what their caches may take together at most. dense:
    as for `load`.
    """
    weights = sum(_weight_bytes(info, backend, dense) for info in gguf.tensors.values())
    weights += sum(a.latent.unpacked_bytes(a.n_heads) for a in model.attentions if a.latent is not None)
    rows = min(n_batch, n_ctx)
    pieces = {
        rows if a.sees or a.kv_from is not None or plan.hot_window is None else min(rows, PIECE)
        for a in model.attentions
    }
    own = backend.work_numbers(
        n_rows=rows, n_ff=max((layer.ffn.n_inner for layer in model.layers if layer.ffn is not None), default=0),
        n_queries=max(pieces, default=0), n_heads=max((a.n_heads for a in model.attentions), default=0), n_keys=n_ctx,
    )  # fmt: skip
    width = max(_row_width(model.n_embd, layer) for layer in model.layers)
    scratch = 4 * (rows * width + model.n_vocab + own) + FIXED_SCRATCH
    caches = n_parallel * sum(cache_bytes(model, plan, n_ctx, min(n_batch, n_ctx)).values())
    return MemoryPlan(weights, caches if kv_memory is None else min(caches, kv_memory), scratch)


def _weight_bytes(info: TensorInfo, backend: Backend, dense: bool) -> int:
    """Bytes that a tensor takes once it is loaded: a matrix (or a stack of them) packed, a vector as float32."""
    if info.ggml_type not in WEIGHT_TYPES or info.n_bytes == 0:
        return info.n_bytes  # an error of its own when something uses it
    if len(info.shape) < 2:
        return 4 * _elements(info.shape)
    *stacked, rows, cols = info.shape
    return math.prod(stacked) * backend.packed_bytes(int(info.ggml_type), rows, cols, dense)


def _row_width(dim: int, layer: LayerSpec) -> int:
    """Numbers that a forward pass holds for each row of a chunk at a layer's fullest moment (models/, csrc/linear.cpp).

    dim: n_embd.
    """
    mixer, n_ff, n_rot = layer.mixer, 0 if layer.ffn is None else layer.ffn.n_inner, 0
    out = qkv = 0
    if isinstance(mixer, Attention):
        out, qkv = mixer.n_heads * mixer.head_dim_v, mixer.n_heads * mixer.head_dim_k + mixer.kv_numbers
        qkv += out * mixer.gate + (0 if mixer.latent is None else mixer.latent.row_numbers(mixer.n_heads))
        n_rot = 0 if mixer.rope is None else mixer.rope.n_rot
    for recurrent in (mixer, layer.beside):
        if isinstance(recurrent, Recurrent):
            out = max(out, recurrent.row_numbers)
    if isinstance(layer.ffn, Routed):  # what a token's experts give, row by row, before it is added up
        r = layer.ffn.routing
        n_ff += r.n_used * (dim + 4) + 2 * dim + r.n_experts
    # kept from call to call: rows normed for QKV and for the MLP, with their codes; the MLP's inner rows; the codes of
    # attention's output; cos and sin of the last four chunks
    kept = 3 * dim + n_ff + out // 2 + 4 * n_rot
    # the residual stream, q, k, v, what attention gives, and what comes of it; or the streams around a feed-forward
    return kept + max(2 * dim + qkv + out, 3 * dim)


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def available_memory() -> int | None:
    """Bytes that can still be used here: free and reclaimable memory, within the cgroup's limit; None if unknown."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for limit, usage, stat in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
         "/sys/fs/cgroup/memory/memory.stat"),
    ):  # fmt: skip
        try:
            used = int(Path(usage).read_text()) - _reclaimable(Path(stat))
            found.append(max(0, int(Path(limit).read_text()) - used))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return min(found) if found else None


def _reclaimable(stat: Path) -> int:
    """Bytes of file pages that the kernel drops when memory is asked for; a cgroup counts them as used."""
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("inactive_file", 0))
