"""Every family's forward pass in float64, from the formulas and the file alone: an oracle without mixkv in it.

What a file says by having a tensor counts for every family; what files leave unsaid is a line in oracle_rules.py.
Attention is in full and nothing cached, recurrent layers go token by token, experts are computed for each token by
itself (oracle_mixers.py, oracle_ffn.py).
"""

from __future__ import annotations

import numpy as np
from float_forward import F64
from oracle_ffn import OracleFeedForwards
from oracle_mixers import OracleMixers
from oracle_parts import gelu

ROOT2 = np.sqrt(2.0)


class Oracle(OracleMixers, OracleFeedForwards):
    """One file. `logits(ids)` is what it is for."""

    def logits(self, ids: list[int]) -> F64:
        """(n, n_vocab) after each of the tokens."""
        if self.arch == "gemma3n":
            from gemma3n_oracle import logits_of_gemma3n

            return logits_of_gemma3n(self, ids)
        x = self.embed(ids)
        told = self.told(ids, x)
        self.kept: dict[int, tuple[F64, F64]] = {}
        for i in range(self.n_layers):
            x = self.layer(x, i, None if told is None else told[:, i])
        return self.head(x)

    def embed(self, ids: list[int]) -> F64:
        scale = np.sqrt(self.dim) if self.rule.by_sqrt_dim else self.key("embedding_scale", 1.0)
        return self.tensors["token_embd.weight"][ids] * scale

    def head(self, x: F64) -> F64:
        x = self.norm(x, "token_embd_norm" if self.arch.startswith("lfm2") else "output_norm")
        out = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        y = x @ out.T + self.tensors.get("output.bias", 0.0)
        scale = self.key("logit_scale", 1.0)
        y = y / scale if self.rule.divide else y * scale
        cap = self.key("final_logit_softcapping", {"gemma2": 30.0, "gemma3n": 30.0}.get(self.arch, 0.0))
        return cap * np.tanh(y / cap) if cap else y

    def told(self, ids: list[int], x: F64) -> F64 | None:
        """(n, n_layers, width): what layers are told of each token beside the residual stream."""
        if "per_layer_token_embd.weight" not in self.tensors:
            return None
        width = len(self.tensors["per_layer_proj_norm.weight"])
        made = (self.product(x, "per_layer_model_proj") / np.sqrt(self.dim)).reshape(len(ids), -1, width)
        looked_up = self.tensors["per_layer_token_embd.weight"][ids].reshape(made.shape) * np.sqrt(width)
        return (self.norm(made, "per_layer_proj_norm") + looked_up) / ROOT2

    def takes(self, x: F64, told: F64, b: str) -> F64:
        return self.norm(self.product(gelu(self.product(x, b + "inp_gate")) * told, b + "proj"), b + "post_norm")

    def layer(self, x: F64, i: int, told: F64 | None) -> F64:
        b, rule = f"blk.{i}.", self.rule
        scale = self.key("residual_scale", 1.0) / (np.sqrt(self.n_layers) if self.arch == "minicpm" else 1)
        if self.arch == "minicpm" and "residual_scale" in self.keys:
            scale = self.key("residual_scale")
        read_by_mixer = self.norm(x, b + "attn_norm")
        y = self.mixers(read_by_mixer, i)
        if y is None:
            return x + self.ffn(read_by_mixer, i, x)
        if rule.behind:
            y = self.norm(y, b + "post_attention_norm")
        h = x + scale * y
        parallel = rule.parallel and b + "ffn_norm.weight" not in self.tensors
        own = (
            "post_attention_norm"
            if not rule.behind and b + "post_attention_norm.weight" in self.tensors
            else "ffn_norm"
        )
        z = self.ffn(read_by_mixer if parallel else self.norm(h, b + own), i, h)
        if z is None:
            return h
        if rule.behind:
            z = self.norm(z, b + "post_ffw_norm")
        h = h + scale * z
        if told is not None:
            h = h + self.takes(h, told, b)
        return h * self.tensors.get(b + "layer_output_scale.weight", 1.0)
