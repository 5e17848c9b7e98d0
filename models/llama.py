"""The llama family: RMS norm, grouped-query attention with RoPE, SwiGLU; and the trunk that its relatives share.

A relative is a subclass that names what differs (qwen2.py, qwen3.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mixkv.kernels.contract import NormFFN, NormQKV, Weight
from mixkv.models.batch import F32, Batch, States
from mixkv.models.config import Hyper, ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.layers import Attention, Dense, LayerSpec
from mixkv.models.rope import RopeConfig
from mixkv.models.weights import Weights


@dataclass(frozen=True)
class Block:
    """One layer: `qkv` from the residual stream to heads, `wo` (and its bias) back, `ffn`."""

    qkv: NormQKV
    wo: Weight
    bo: F32 | None
    ffn: NormFFN


class Llama:
    """Llama 1 to 3.x, Mistral, TinyLlama, SmolLM, Granite Code and whatever else is stored as architecture `llama`.

    `backend` is what it computes with, and what its cache must be made of.
    """

    architecture: ClassVar[str] = "llama"
    models: ClassVar[str] = "Llama 1-3.x, Mistral, TinyLlama, SmolLM, Granite Code"
    features: ClassVar[str] = "grouped queries, tied embeddings, `rope_freqs`, linear and YaRN scaling, biases"
    interleaved_rope: ClassVar[bool] = True
    has_qk_norm: ClassVar[bool] = False
    biases: ClassVar[tuple[str, ...]] = ()
    """Biases that every file must have; others are used where they are found."""
    has_experts: ClassVar[bool] = True
    """Whether some files of this architecture have experts, which are refused."""
    fingerprint: str
    """Of everything that changes logits or token ids (fingerprint.py); set by `load_model`."""

    @classmethod
    def read_config(cls, gguf: GGUFFile) -> ModelConfig:
        """The hyper-parameters of `gguf`, with one specification for all its layers. Raises GGUFError."""
        hyper = Hyper(gguf)
        if cls.has_experts and gguf.uint(hyper.key("expert_count"), 0):
            raise hyper.fail("expert_count", "is not 0: mixture-of-experts models are not supported")
        n_heads, n_kv_heads, head_dim_k, head_dim_v = hyper.heads()
        attention = Attention(
            n_heads, n_kv_heads, head_dim_k, head_dim_v, scale=head_dim_k**-0.5, biases=cls.biases,
            rope=RopeConfig.read(gguf, cls.architecture, head_dim_k, hyper.n_ctx_train, cls.interleaved_rope),
            qk_norm="head" if cls.has_qk_norm else "",
        )  # fmt: skip
        layer = LayerSpec(attention, Dense(hyper.of_every_layer("feed_forward_length")))
        return hyper.config((layer,) * hyper.n_layers)

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.backend = config, weights.backend
        dim = config.n_embd
        self.embedding = weights.matrix("token_embd.weight", config.n_vocab, dim)
        weights.ignore("rope_freqs.weight")
        rope = config.attentions[0].rope
        assert rope is not None
        self._inv_freq = rope.inv_freq(weights.vector_if_there("rope_freqs.weight", rope.n_rot // 2))
        self.blocks = [self._block(weights, f"blk.{i}.", layer) for i, layer in enumerate(config.layers)]
        tied = "output.weight" not in weights
        output = self.embedding if tied else weights.matrix("output.weight", config.n_vocab, dim)
        self.head = self.backend.Head(norm=weights.vector("output_norm.weight", dim), eps=config.rms_eps, w=output)
        weights.check_all_taken()

    def _block(self, weights: Weights, prefix: str, layer: LayerSpec) -> Block:
        c, a, ffn = self.config, layer.mixer, layer.ffn
        assert isinstance(a, Attention) and a.rope is not None and ffn is not None
        dim, q_dim = c.n_embd, a.n_heads * a.head_dim_k
        k_dim, v_dim = a.n_kv_heads * a.head_dim_k, a.n_kv_heads * a.head_dim_v

        def bias(name: str, n: int) -> F32 | None:
            full = f"{prefix}{name}.bias"
            return weights.vector(full, n) if name in a.biases else weights.vector_if_there(full, n)

        def qk_norm(name: str) -> F32 | None:
            return weights.vector(f"{prefix}{name}.weight", a.head_dim_k) if a.qk_norm else None

        qkv = self.backend.NormQKV(
            norm=weights.vector(prefix + "attn_norm.weight", dim),
            eps=c.rms_eps,
            wq=weights.matrix(prefix + "attn_q.weight", q_dim, dim),
            wk=weights.matrix(prefix + "attn_k.weight", k_dim, dim),
            wv=weights.matrix(prefix + "attn_v.weight", v_dim, dim),
            bq=bias("attn_q", q_dim),
            bk=bias("attn_k", k_dim),
            bv=bias("attn_v", v_dim),
            q_norm=qk_norm("attn_q_norm"),
            k_norm=qk_norm("attn_k_norm"),
            inv_freq=self._inv_freq,
            interleaved=a.rope.interleaved,
            rope_scale=a.rope.magnitude,
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            head_dim=a.head_dim_k,
        )
        weights.ignore(prefix + "attn_rot_embd", prefix + "attn_rot_embd.weight")
        return Block(
            qkv=qkv,
            wo=weights.matrix(prefix + "attn_output.weight", dim, a.n_heads * a.head_dim_v),
            bo=bias("attn_output", dim),
            ffn=self.backend.NormFFN(
                norm=weights.vector(prefix + "ffn_norm.weight", dim),
                eps=c.rms_eps,
                gate=weights.matrix(prefix + "ffn_gate.weight", ffn.n_ff, dim),
                up=weights.matrix(prefix + "ffn_up.weight", ffn.n_ff, dim),
                down=weights.matrix(prefix + "ffn_down.weight", dim, ffn.n_ff),
                gate_bias=bias("ffn_gate", ffn.n_ff),
                up_bias=bias("ffn_up", ffn.n_ff),
                down_bias=bias("ffn_down", dim),
            ),
        )

    def forward(self, batch: Batch, states: States) -> F32:
        """Logits (n_rows, n_vocab) of the batch's rows.

        Past the last layer's attention nothing but the asked rows is computed. NaN, infinity and overflow in a file's
        weights are data: they show in the logits, not as warnings.
        """
        with np.errstate(all="ignore"):
            x = self.backend.embed(self.embedding, batch.ids)
            for i, block in enumerate(self.blocks):
                q, k, v = block.qkv(x, batch.positions)
                h = states.attend(i, q, k, v).reshape(len(x), -1)
                if i == len(self.blocks) - 1:
                    h, x = h[batch.rows], x[batch.rows]
                if len(x):
                    x = block.ffn(self.backend.linear(h, block.wo, block.bo, x))
            return self.head(x) if len(x) else np.empty((0, self.config.n_vocab), np.float32)
