"""The oracle of families: feed-forwards, dense and routed, each token by itself, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from float_forward import F64
from oracle_parts import OracleFile, gelu, sigmoid, silu, softmax, softplus


class OracleFeedForwards(OracleFile):
    """What a layer's feed-forward gives."""

    def act(self, g: F64, u: F64 | float, i: int) -> F64:
        kind = self.rule.act
        if kind == "oai":
            g = np.minimum(g, 7)
            return g * sigmoid(1.702 * g) * (np.clip(u, -7, 7) + 1)
        if kind == "xielu":
            a_p, a_n, beta, eps = (float(self.of_layer(f"xielu.{k}", i)) for k in ("alpha_p", "alpha_n", "beta", "eps"))
            a_p, a_n = float(softplus(np.float64(a_p))), beta + float(softplus(np.float64(a_n)))
            return np.where(g > 0, a_p * g * g, a_n * (np.expm1(np.minimum(g, eps)) - g)) + beta * g
        return {"silu": silu, "gelu": gelu, "relu2": lambda x: np.maximum(x, 0) ** 2}[kind](g) * u

    def of_layer(self, key: str, i: int) -> Any:
        value = self.meta[key]
        return value[i] if isinstance(value, list) else value

    def dense(self, x: F64, b: str, end: str, i: int) -> F64:
        up = self.product(x, f"{b}ffn_up{end}")
        if f"{b}ffn_gate{end}.weight" in self.tensors:
            h = self.act(self.product(x, f"{b}ffn_gate{end}"), up, i)
        elif up.shape[1] == 2 * self.tensors[f"{b}ffn_down{end}.weight"].shape[1]:
            h = self.act(*np.split(up, 2, axis=1), i)
        else:
            h = self.act(up, 1.0, i)
        return self.product(h, f"{b}ffn_down{end}")

    def ffn(self, x: F64, i: int, stream: F64) -> Any:
        """What the feed-forward gives for its normed input x; stream: what a router of Gemma 4 reads."""
        b = f"blk.{i}."
        if b + "ffn_gate_inp.weight" not in self.tensors:
            return self.dense(x, b, "", i) if b + "ffn_up.weight" in self.tensors else None
        if self.arch == "gemma4":
            router = self.unit(stream) / np.sqrt(self.dim) * self.tensors[b + "ffn_gate_inp.scale"]
            beside = self.norm(self.dense(x, b, "", i), b + "post_ffw_norm_1")
            routed = self.routed(self.norm(stream, b + "pre_ffw_norm_2"), router, b, i)
            return beside + self.norm(routed, b + "post_ffw_norm_2")
        y = self.routed(x, x, b, i)
        if b + "ffn_up_shexp.weight" in self.tensors:
            shared = self.dense(x, b, "_shexp", i)
            if b + "ffn_gate_inp_shexp.weight" in self.tensors:
                shared = shared * sigmoid(x @ self.tensors[b + "ffn_gate_inp_shexp.weight"])[:, None]
            y = y + shared
        return y

    def routed(self, x: F64, router: F64, b: str, i: int) -> F64:
        p, used = self.product(router, b + "ffn_gate_inp"), int(self.key("expert_used_count"))
        y = np.zeros_like(x)
        for t in range(len(x)):
            for e, weight in self.choose(p[t], used, self.tensors.get(b + "exp_probs_b.bias", 0.0)):
                before, behind = (weight, 1.0) if self.rule.chunked else (1.0, weight)
                y[t] += behind * self.expert(before * x[t], b, e, i)
        return y

    def choose(self, p: F64, used: int, bias: F64 | float) -> list[tuple[int, float]]:
        """(expert, weight) of one token."""
        kind = self.rule.gating
        if kind is None:
            default = {"glm4moe": 2, "deepseek2": 1}.get(self.arch)
            kind = {1: "softmax", 2: "sigmoid"}[int(self.key("expert_gating_func", default))]
        score = {"softmax": softmax, "sigmoid": sigmoid, "chosen": lambda s: s}[kind](p)
        choice = score + bias
        groups = int(self.key("expert_group_count", 1)) or 1
        if groups > 1:
            table = choice.reshape(groups, -1)
            kept = np.argsort(-np.sort(table, axis=1)[:, -2:].sum(axis=1))[: int(self.key("expert_group_used_count"))]
            open_to = np.full_like(table, -np.inf)
            open_to[kept] = table[kept]
            choice = open_to.ravel()
        chosen = np.argsort(-choice)[:used]
        weights = score[chosen]
        normed = self.rule.normed if self.rule.normed is not None else bool(self.keys.get("expert_weights_norm", False))
        if kind == "chosen":
            weights = softmax(weights)
        elif normed:
            weights = weights / weights.sum()
        weights = weights * (self.key("expert_weights_scale", 0.0) or 1.0)
        return list(zip(chosen.tolist(), weights.tolist(), strict=True))

    def expert(self, x: F64, b: str, e: int, i: int) -> F64:
        def product(rows: F64, name: str) -> F64:
            bias = self.tensors.get(f"{b}{name}.bias")
            return self.tensors[f"{b}{name}.weight"][e] @ rows + (0.0 if bias is None else bias[e])

        if b + "ffn_gate_up_exps.weight" in self.tensors:
            h = self.act(*np.split(product(x, "ffn_gate_up_exps"), 2), i)
        elif b + "ffn_gate_exps.weight" in self.tensors:
            h = self.act(product(x, "ffn_gate_exps"), product(x, "ffn_up_exps"), i)
        else:
            h = self.act(product(x, "ffn_up_exps"), 1.0, i)
        return product(h, "ffn_down_exps") * self.tensors.get(b + "ffn_down_exps.scale", np.ones(e + 1))[e]
