"""From GGUF tensors to packed weights: each is checked against the shape the model needs, packed, and let go.

`Weights` remembers what was taken, so that a file with tensors nobody asked for is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.contract import Backend
from mixkv.kernels.contract_parts import Experts, Weight
from mixkv.kernels.errors import GGUFError
from mixkv.models.config import ModelConfig
from mixkv.models.fingerprint import tensor_digest
from mixkv.models.gguf import GGUFFile
from mixkv.models.layers import Routed

Rows = slice | NDArray[np.intp]


@dataclass
class Weights:
    """Access to a file's tensors, packed for `backend`. exact, dense: how (see the kernel contract).

    progress is called with the bytes that each tensor adds to what is loaded.
    """

    gguf: GGUFFile
    backend: Backend
    exact: bool = False
    dense: bool = False
    progress: Callable[[int], None] | None = None
    digests: dict[str, bytes] = field(default_factory=dict)
    """`tensor_digest` of every tensor that was given out: taken while its pages are in memory."""
    _taken: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.gguf.tensors

    def matrix(self, name: str, rows: int, cols: int) -> Weight:
        """The packed (rows, cols) matrix `name`; the file's pages of it are given back."""
        self._check(name, (rows, cols))
        info = self.gguf.tensors[name]
        raw = self.gguf.raw(name)
        packed = self.backend.pack(raw, int(info.ggml_type), cols, exact=self.exact, dense=self.dense)
        self.digests[name] = tensor_digest(info, raw)
        self.gguf.release(name)
        return packed

    def parts(self, name: str, rows: Sequence[Rows], cols: int, shape: tuple[int, ...] | None = None) -> list[Weight]:
        """Matrices made of some rows each of the matrix `name`, which all together are all of its rows. shape: the
        tensor's, where that has more axes."""
        n_rows = sum(r.stop - r.start if isinstance(r, slice) else len(r) for r in rows)
        self._check(name, shape or (n_rows, cols))
        info, raw = self.gguf.tensors[name], self.gguf.raw(name)
        kind = int(info.ggml_type)
        packed = [self.backend.pack(raw[r], kind, cols, exact=self.exact, dense=self.dense) for r in rows]
        self.digests[name] = tensor_digest(info, raw)
        self.gguf.release(name)
        return packed

    def experts(self, name: str, n: int, rows: int, cols: int) -> Experts:
        """The matrices (rows, cols) of n experts, tensor `name` (n, rows, cols)."""
        return self._experts(name, (n, rows, cols), [slice(0, rows)])[0]

    def expert_halves(self, name: str, n: int, rows: int, cols: int) -> list[Experts]:
        """Two matrices (rows, cols) of each expert, which lie one below the other in tensor `name`."""
        return self._experts(name, (n, 2 * rows, cols), [slice(0, rows), slice(rows, 2 * rows)])

    def _experts(self, name: str, shape: tuple[int, int, int], parts: Sequence[slice]) -> list[Experts]:
        self._check(name, shape)
        info, raw = self.gguf.tensors[name], self.gguf.raw(name)
        of_experts, kind = raw.reshape(shape[0], shape[1], -1), int(info.ggml_type)
        packed = [
            self.backend.pack_experts(
                np.ascontiguousarray(of_experts[:, part]), kind, shape[2], exact=self.exact, dense=self.dense
            )
            for part in parts
        ]
        self.digests[name] = tensor_digest(info, raw)
        self.gguf.release(name)
        return packed

    def merged_heads(self, name: str, n: int, first: int, second: int, cols: int) -> tuple[Experts, Experts]:
        """Of a matrix (n (first + second), cols), whose heads have `first` rows of one kind and then `second` of
        another: the first ones turned over, (cols, first) of each head as float32, and the second ones as they are."""
        self._check(name, (n * (first + second), cols))
        info, raw = self.gguf.tensors[name], self.gguf.raw(name)
        turned = self.gguf.array_of(name).reshape(n, first + second, cols)[:, :first].transpose(0, 2, 1)
        rest = raw.reshape(n, first + second, -1)[:, first:]
        pack = self.backend.pack_experts
        packed = (
            pack(np.ascontiguousarray(turned).view(np.uint8), 0, first, exact=self.exact, dense=self.dense),
            pack(np.ascontiguousarray(rest), int(info.ggml_type), cols, exact=self.exact, dense=self.dense),
        )
        self.digests[name] = tensor_digest(info, raw)
        self.gguf.release(name)
        return packed

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The tensor `name` as float32, whatever its number of axes."""
        self._check(name, shape)
        self.digests[name] = tensor_digest(self.gguf.tensors[name], self.gguf.raw(name))
        return self.gguf.array_of(name).reshape(shape)

    def vector(self, name: str, n: int) -> NDArray[np.float32]:
        """The vector `name` (n,) as float32."""
        return self.array(name, (n,))

    def vector_if_there(self, name: str, n: int) -> NDArray[np.float32] | None:
        """Like `vector`, None where the file has no such tensor."""
        return self.vector(name, n) if name in self else None

    def ignore(self, *names: str) -> None:
        """Tensors that may be in the file and are not needed."""
        self._taken.update(names)

    def check_all_taken(self) -> None:
        """GGUFError if the file holds tensors that the model has no place for: its results would be wrong."""
        left = [name for name in self.gguf.tensors if name not in self._taken]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise GGUFError(
                f"{self.gguf.path}: tensor {left[0]!r}{more} is not part of a model of this architecture; "
                "the file is damaged or needs a newer version"
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        info = self.gguf.tensors.get(name)
        if info is None:
            raise GGUFError(f"{self.gguf.path}: tensor {name!r} is missing; the file is incomplete")
        if tuple(info.shape) != shape:
            raise GGUFError(
                f"{self.gguf.path}: tensor {name!r} has shape {tuple(info.shape)}, but the metadata asks for {shape}"
            )
        self._taken.add(name)
        if self.progress is not None:
            self.progress(info.n_bytes)


def bytes_per_token(gguf: GGUFFile, config: ModelConfig) -> int:
    """Bytes of weights that generating a token reads: all tensors but those that only look rows up, and of experts as
    many as a token goes through."""
    looked_up = {"per_layer_token_embd.weight"} | ({"token_embd.weight"} if "output.weight" in gguf.tensors else set())
    share = next(
        (f.ffn.routing.n_used / f.ffn.routing.n_experts for f in config.layers if isinstance(f.ffn, Routed)), 1.0
    )
    return int(
        sum(t.n_bytes * (share if "_exps." in name else 1) for name, t in gguf.tensors.items() if name not in looked_up)
    )
