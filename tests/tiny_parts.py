"""What tiny random models of every family are made of (tiny_families.py), written byte by byte without the code under
test. A tensor's numbers depend on its name and shape alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from gguf_tools import Packed, spm_vocabulary, write_gguf

Shapes = dict[str, tuple[int, ...]]
VOCABULARY = spm_vocabulary()
DIM, VOCAB, WINDOW = 32, len(VOCABULARY["tokenizer.ggml.tokens"]), 24  # type: ignore[arg-type]
QKV = ("attn_q", "attn_k", "attn_v")
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 16}
YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TinyFile:
    """keys: below the architecture, with what all have left out; extra: keys as they are."""

    arch: str
    shapes: Shapes
    keys: Mapping[str, object]
    extra: Mapping[str, object] = field(default_factory=dict)

    def metadata(self) -> dict[str, object]:
        eps = 1e-5
        all_have: dict[str, object] = {
            "context_length": 4096, "embedding_length": DIM, "attention.head_count": 4, "attention.head_count_kv": 2,
            "attention.key_length": 16, "attention.value_length": 16, "attention.layer_norm_epsilon": eps,
            "attention.layer_norm_rms_epsilon": eps, "feed_forward_length": 48,
        }  # fmt: skip
        keys = {f"{self.arch}.{k}": v for k, v in (all_have | dict(self.keys)).items()}
        found = {"general.architecture": self.arch, **keys, **self.extra}
        arrays = {key: _array(value) if isinstance(value, list) else value for key, value in found.items()}
        return arrays | VOCABULARY

    def tensors(self, kind: str = "F32") -> dict[str, np.ndarray | Packed]:
        """kind: what matrices are stored as, where their rows are long enough."""
        return {name: _random(name, shape, kind) for name, shape in self.shapes.items()}

    def write(self, path: Path, kind: str = "F32") -> Path:
        """The file; returns path."""
        return write_gguf(path, self.metadata(), self.tensors(kind))


def _array(values: list[object]) -> np.ndarray:
    """As files have them: flags, whole numbers of 32 bits, float32."""
    found = np.asarray(values)
    return found.astype({"b": np.bool_, "i": np.int32, "f": np.float32}[found.dtype.kind])


def _random(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray | Packed:
    x = np.random.default_rng(crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(x / 2)
    if "rope_f" in name:
        return np.exp(np.abs(x)).astype(np.float32)
    if name.endswith((".bias", "sinks.weight", "ssm_d")):
        return x / 2
    if "norm" in name or name.endswith((".scale", "output_scale.weight", "correct_scale.weight")):
        return 1 + x / 4
    if len(shape) == 1:
        return x / 4
    gain = 2 if "attn_q" in name or "attn_k" in name or "ffn_gate_inp" in name else 1
    matrix = gain * x / np.sqrt(np.float32(shape[-1]))
    ggml_type = GGMLQuantizationType[kind]
    if ggml_type == GGMLQuantizationType.F32 or shape[-1] % 32 or "conv" in name:
        return matrix
    return Packed(shape[::-1], ggml_type, quantize(matrix, ggml_type).tobytes())


# What layers are made of: each gives the tensors of one layer, without "blk.N." in front.


def attention(
    *, heads: int = 4, kv: int = 2, size: int = 16, qk_norm: str = "", biases: tuple[str, ...] = (),
    fused: bool = False, gate: bool = False, sinks: bool = False, no_v: bool = False, shared: bool = False,
) -> Shapes:  # fmt: skip
    q, k = heads * size, kv * size
    found: Shapes = {"attn_output.weight": (DIM, q)}
    if fused:
        found["attn_qkv.weight"] = (q + 2 * k, DIM)
    else:
        found["attn_q.weight"] = (q * (2 if gate else 1), DIM)
        if not shared:
            found |= {"attn_k.weight": (k, DIM)} | ({} if no_v else {"attn_v.weight": (k, DIM)})
    shapes = {"head": ((size,), (size,)), "each": ((heads, size), (kv, size)), "row": ((q,), (k,))}
    if qk_norm:
        found["attn_q_norm.weight"] = shapes[qk_norm][0]
        if not shared:
            found["attn_k_norm.weight"] = shapes[qk_norm][1]
    if sinks:
        found["attn_sinks.weight"] = (heads,)
    return found | {f"{name}.bias": found[f"{name}.weight"][:1] for name in biases}


def ffn(width: int = 48, *, gated: bool = True, fused: bool = False, biases: bool = False, end: str = "") -> Shapes:
    found: Shapes = {f"ffn_up{end}.weight": (width * (2 if fused else 1), DIM), f"ffn_down{end}.weight": (DIM, width)}
    if gated and not fused:
        found[f"ffn_gate{end}.weight"] = (width, DIM)
    return found | ({name[:-6] + "bias": shape[:1] for name, shape in found.items()} if biases else {})


def experts(
    width: int = 16, *, n: int = 6, gated: bool = True, biased: bool = False, shared: int = 0,
    shared_gate: bool = False, biases: bool = False, fused: bool = False,
) -> Shapes:  # fmt: skip
    found: Shapes = {"ffn_gate_inp.weight": (n, DIM), "ffn_down_exps.weight": (n, DIM, width)}
    if fused:
        found["ffn_gate_up_exps.weight"] = (n, 2 * width, DIM)
    else:
        found["ffn_up_exps.weight"] = (n, width, DIM)
        found |= {"ffn_gate_exps.weight": (n, width, DIM)} if gated else {}
    if biases:
        found |= {name[:-6] + "bias": shape[:-1] for name, shape in found.items()}
    if biased:
        found["exp_probs_b.bias"] = (n,)
    if shared:
        found |= ffn(shared, gated=gated, end="_shexp")
    return found | ({"ffn_gate_inp_shexp.weight": (DIM,)} if shared_gate else {})


def norms(*names: str, bias: bool = False) -> Shapes:
    found: Shapes = {f"{name}.weight": (DIM,) for name in names}
    return found | ({f"{name}.bias": (DIM,) for name in names} if bias else {})


def mamba2(heads: int = 6, inner: int = 48, groups: int = 2, size: int = 16) -> Shapes:
    channels = inner + 2 * groups * size
    return {
        "ssm_in.weight": (inner + channels + heads, DIM), "ssm_conv1d.weight": (channels, 4),
        "ssm_conv1d.bias": (channels,), "ssm_dt.bias": (heads,), "ssm_a": (heads, 1), "ssm_d": (heads, 1),
        "ssm_norm.weight": (groups, inner // groups), "ssm_out.weight": (DIM, inner),
    }  # fmt: skip


SSM = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 48, "ssm.state_size": 16, "ssm.time_step_rank": 6, "ssm.group_count": 2
}  # fmt: skip


def delta_net(*, merged: bool = False, heads: int = 4, keys: int = 2, size: int = 16) -> Shapes:
    channels = (heads + 2 * keys) * size
    rest: Shapes = {"ssm_ba.weight": (2 * heads, DIM)} if merged else {
        "ssm_alpha.weight": (heads, DIM), "ssm_beta.weight": (heads, DIM)
    }  # fmt: skip
    return rest | {
        "attn_qkv.weight": (channels, DIM), "attn_gate.weight": (heads * size, DIM), "ssm_conv1d.weight": (channels, 4),
        "ssm_dt.bias": (heads,), "ssm_a": (heads,), "ssm_norm.weight": (size,), "ssm_out.weight": (DIM, heads * size),
    }  # fmt: skip


NET = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 2,
    "full_attention_interval": 2, "rope.dimension_count": 8,
}  # fmt: skip
SHORT_CONV: Shapes = {
    "shortconv.conv.weight": (DIM, 3), "shortconv.in_proj.weight": (3 * DIM, DIM),
    "shortconv.out_proj.weight": (DIM, DIM),
}  # fmt: skip
BEFORE = norms("attn_norm", "ffn_norm")
OTHER_NAME = norms("attn_norm", "post_attention_norm")
BEHIND = norms("post_attention_norm", "post_ffw_norm")


def whole(
    arch: str, layers: list[Shapes], *, tied: bool = True, extra: Mapping[str, object] | None = None,
    more: Shapes | None = None, bias: bool = False, output_norm: str = "output_norm", **keys: object,
) -> TinyFile:  # fmt: skip
    """keys: two underscores stand for a dot."""
    shapes: Shapes = {"token_embd.weight": (VOCAB, DIM)} | norms(output_norm, bias=bias)
    if not tied:
        shapes["output.weight"] = (VOCAB, DIM)
    for i, layer in enumerate(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    named = {key.replace("__", "."): value for key, value in keys.items()}
    return TinyFile(arch, shapes | (more or {}), {"block_count": len(layers)} | named, extra or {})
