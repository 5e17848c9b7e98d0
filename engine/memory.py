"""Whether a model and its cache fit into this machine, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixkv.engine.cache import PIECE, CachePolicy
from mixkv.engine.cache_config import CachePlan
from mixkv.engine.kv import RowBytes
from mixkv.kernels import Backend
from mixkv.kernels.errors import OutOfMemoryError
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile

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
                f"{needs} exceed the {available // MIB} MiB that this machine has free: use a smaller context (-c), "
                "--mixed-kv-cache, or a smaller model"
            )


def cache_bytes(model: ModelConfig, plan: CachePlan, n_ctx: int, chunk: int) -> int:
    """Bytes of a full cache of n_ctx tokens, at the fullest moment."""
    rows = RowBytes.of(model, plan)
    policy = CachePolicy(
        n_ctx=n_ctx, sink_tokens=plan.sink_tokens, hot_window=plan.hot_window,
        rollback_reserve=plan.rollback_reserve, chunk=chunk,
    )  # fmt: skip
    cold = 0 if plan.hot_window is None else max(0, policy.cold_end(n_ctx) - plan.sink_tokens)
    return rows.total(min(n_ctx, plan.sink_tokens), min(n_ctx, policy.hot_tiles * 16), cold)


def plan_memory(
    gguf: GGUFFile, model: ModelConfig, plan: CachePlan, backend: Backend, *, n_ctx: int, n_batch: int,
    n_parallel: int = 1, kv_memory: int | None = None, dense: bool = False,
) -> MemoryPlan:  # fmt: skip
    """The bytes that loading `gguf` with this cache will need.

    n_parallel: sequences at once, each of n_ctx tokens. kv_memory: what their caches may take together at most. dense:
    as for `load`.
    """
    if dense and backend.keeps_dense:
        weights = sum(4 * _elements(info.shape) for info in gguf.tensors.values())
    else:
        weights = sum(info.n_bytes for info in gguf.tensors.values())
    rows = min(n_batch, n_ctx)
    piece = rows if plan.hot_window is None else min(rows, PIECE)
    own = backend.work_numbers(n_rows=rows, n_ff=model.n_ff, n_queries=piece, n_heads=model.n_heads, n_keys=n_ctx)
    scratch = 4 * (rows * _row_width(model) + model.n_vocab + own) + FIXED_SCRATCH
    caches = n_parallel * cache_bytes(model, plan, n_ctx, n_batch)
    return MemoryPlan(weights, caches if kv_memory is None else min(caches, kv_memory), scratch)


def _row_width(model: ModelConfig) -> int:
    """Numbers that a forward pass holds for each row of a chunk at its fullest moment (models/, csrc/linear.cpp)."""
    dim, out = model.n_embd, model.n_heads * model.head_dim_v
    qkv = model.n_heads * model.head_dim_k + model.n_kv_heads * (model.head_dim_k + model.head_dim_v)
    # kept from call to call: rows normed for QKV and for the MLP, with their codes; the MLP's inner rows; the codes of
    # attention's output; cos and sin of the last four chunks
    kept = 3 * dim + model.n_ff + out // 2 + 4 * model.rope.n_rot
    # q, k, v and the attention's output of a layer live until the next layer's take their place
    return kept + max(3 * dim + qkv + out, dim + 2 * qkv + out, dim + qkv + 2 * out)


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
