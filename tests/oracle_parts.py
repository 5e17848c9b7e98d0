"""The oracle of families: what it reads of a file, and the functions of its formulas, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from float_forward import F64, number, read
from oracle_rules import RULES


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def softplus(x: F64) -> F64:
    return np.logaddexp(0, x)


def silu(x: F64) -> F64:
    return x * sigmoid(x)


def gelu(x: F64) -> F64:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class OracleFile:
    """One file, and products and norms by the names of their tensors."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        meta, self.tensors = read(path)
        self.meta, self.n_ctx, self.chunk = meta, n_ctx, 8192
        self.arch = str(meta["general.architecture"])
        self.keys = {k[len(self.arch) + 1 :]: v for k, v in meta.items() if k.startswith(self.arch + ".")}
        self.rule = RULES[self.arch]
        self.dim = int(self.key("embedding_length"))
        self.n_layers = int(self.key("block_count")) - int(self.key("nextn_predict_layers", 0))
        self.eps = self.key(
            "attention.layer_norm_epsilon" if self.rule.layernorm else "attention.layer_norm_rms_epsilon"
        )

    def key(self, name: str, default: float | None = None, layer: int | None = None) -> float:
        """A number of the metadata, of this layer where there is one for each."""
        value = self.keys.get(name)
        if isinstance(value, list) and layer is not None:
            return float(value[layer])
        return number(self.keys, name, dict(self.rule.fixed).get(name, default))

    def norm(self, x: F64, name: str, end: str = ".weight") -> F64:
        """The norm whose gain is `name`; x itself where the file has none."""
        gain = self.tensors.get(name + end, self.tensors.get(name))
        if gain is None:
            return x
        if self.rule.layernorm:
            x = x - x.mean(axis=-1, keepdims=True)
        return self.unit(x) * gain + self.tensors.get(name + ".bias", 0.0)

    def unit(self, x: F64) -> F64:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)

    def product(self, x: F64, name: str) -> F64:
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)
