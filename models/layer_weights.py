"""The tensors of one layer by the names that families have in common, and what every part of a layer is built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixkv.kernels.contract import Backend
from mixkv.kernels.contract_parts import Experts, Weight
from mixkv.kernels.parts import F32, Norm
from mixkv.models.config import ModelConfig
from mixkv.models.weights import Rows, Weights


class LayerWeights:
    """Tensors below `prefix` ("blk.3.", or "" for those of the whole model).

    Names are given without prefix and without ".weight". renames: what a family calls some of them instead.
    """

    def __init__(
        self, weights: Weights, config: ModelConfig, prefix: str = "", renames: Mapping[str, str] | None = None
    ) -> None:
        self.weights, self.config, self.prefix, self._renames = weights, config, prefix, renames or {}

    @property
    def backend(self) -> Backend:
        """What everything is packed for."""
        return self.weights.backend

    def name(self, name: str, end: str = ".weight") -> str:
        """As it stands in the file; some files leave ".weight" out (Falcon-H1's ffn_norm)."""
        bare = self.prefix + self._renames.get(name, name)
        return bare if end == ".weight" and bare in self.weights else bare + end

    def __contains__(self, name: str) -> bool:
        return self.name(name) in self.weights

    def rows(self, name: str) -> int:
        """How many rows a matrix of the file has; 0 where there is none."""
        info = self.weights.gguf.tensors.get(self.name(name))
        return info.shape[0] if info is not None else 0

    def matrix(self, name: str, rows: int, cols: int) -> Weight:
        """The packed matrix (rows, cols)."""
        return self.weights.matrix(self.name(name), rows, cols)

    def parts(self, name: str, rows: Sequence[Rows], cols: int) -> list[Weight]:
        """See Weights.parts."""
        return self.weights.parts(self.name(name), rows, cols)

    def experts(self, name: str, n: int, rows: int, cols: int) -> Experts:
        """See Weights.experts."""
        return self.weights.experts(self.name(name), n, rows, cols)

    def expert_halves(self, name: str, n: int, rows: int, cols: int) -> list[Experts]:
        """See Weights.expert_halves."""
        return self.weights.expert_halves(self.name(name), n, rows, cols)

    def merged_heads(self, name: str, n: int, first: int, second: int, cols: int) -> tuple[Experts, Experts]:
        """See Weights.merged_heads."""
        return self.weights.merged_heads(self.name(name), n, first, second, cols)

    def vector(self, name: str, n: int, end: str = ".weight") -> F32:
        """(n,) float32."""
        return self.weights.vector(self.name(name, end), n)

    def array(self, name: str, shape: tuple[int, ...], end: str = ".weight") -> F32:
        """As float32, of any number of axes."""
        return self.weights.array(self.name(name, end), shape)

    def bias(self, name: str, n: int, *, required: bool = False) -> F32 | None:
        """`{name}.bias` (n,), None where the file has none and need not."""
        full = self.name(name, ".bias")
        return self.weights.vector(full, n) if required else self.weights.vector_if_there(full, n)

    def norm(self, name: str, shape: int | tuple[int, ...]) -> Norm:
        """The model's kind of norm, with this gain, and with a bias where there is one (LayerNorm)."""
        c = self.config
        shape = (shape,) if isinstance(shape, int) else shape
        centred = c.norm == "layer"
        bias = self.bias(name, shape[0]) if centred and len(shape) == 1 else None
        return Norm(self.array(name, shape), c.norm_eps, centred, bias)

    def ignore(self, *names: str) -> None:
        """Tensors that may be in the file and are not needed, with and without ".weight"."""
        for name in names:
            self.weights.ignore(self.name(name, ""), self.name(name))
