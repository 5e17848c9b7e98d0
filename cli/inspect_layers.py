"""What `mixkv inspect` says of a model's layers: in numbers for JSON, in words for people."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixkv.models.config import ModelConfig
    from mixkv.models.layers import Attention, Dense, LayerSpec, Recurrent, Routed


def config_table(config: ModelConfig) -> dict[str, Any]:
    """Hyper-parameters; of layers that are alike, one after the other, one specification with their numbers, and in
    `words` what it means."""
    specs = config.layers
    borders = [0, *(i for i in range(1, len(specs)) if specs[i] != specs[i - 1]), len(specs)]
    found = [
        {"layers": str(a) if b == a + 1 else f"{a}-{b - 1}", **asdict(specs[a]), "words": layer_words(specs[a])}
        for a, b in pairwise(borders)
    ]
    return {"n_layers": config.n_layers, **asdict(config), "layers": found}


def layer_words(spec: LayerSpec) -> dict[str, str]:
    """mixer, ffn, and what the layer keeps of the past."""
    from mixkv.models.layers import Attention, Recurrent

    mixers, kept = [], []
    for mixer in (spec.mixer, spec.beside):
        if isinstance(mixer, Attention):
            mixers.append(_attention(mixer))
            kept.append(_kept(mixer))
        elif isinstance(mixer, Recurrent):
            mixers.append(_recurrent(mixer))
            kept.append(f"a state of {mixer.state_bytes:,} bytes")
    return {
        "mixer": "; beside it ".join(mixers) or "none", "ffn": _ffn(spec.ffn),
        "keeps": " and ".join(word for word in kept if word) or "nothing",
    }  # fmt: skip


def _attention(a: Attention) -> str:
    size = f"{a.head_dim_k}" if a.head_dim_k == a.head_dim_v else f"{a.head_dim_k} (V {a.head_dim_v})"
    words = [f"attention, {a.n_heads} heads of {size} on {a.n_kv_heads}"]
    if a.latent is not None:
        m = a.latent
        size = f"{m.head_dim}" if m.head_dim == m.head_dim_v else f"{m.head_dim} (V {m.head_dim_v})"
        words = [f"latent attention, {a.n_heads} heads of {size} on rows of {m.rank} + {m.n_rot}"]
    if a.rope is None:
        words.append("no rotation")
    elif a.rope.n_rot != a.head_dim_k:
        words.append(f"{a.rope.n_rot} dimensions rotate")
    norms = {
        "head": "QK norm", "each": "QK norm of each head's own", "row": "QK norm over the row",
        "unit": "QK norm without a gain",
    }  # fmt: skip
    told = {
        f"window {a.window}": a.window, f"chunks of {a.chunk}": a.chunk, norms.get(a.qk_norm, "QK norm"): a.qk_norm,
        "V normed": a.v_norm, "V from K": a.v_from_k, f"scores capped at {a.softcap:g}": a.softcap, "sinks": a.sinks,
        "gate": a.gate, "temperature": a.temperature,
    }  # fmt: skip
    return ", ".join([*words, *(word for word, is_so in told.items() if is_so)])


def _kept(a: Attention) -> str:
    if a.kv_from is not None:
        return f"nothing: reads layer {a.kv_from}'s keys"
    if a.window:
        return f"the last {a.window} tokens, {2 * a.kv_numbers:,} bytes each"
    if a.chunk:
        return f"the newest chunk of {a.chunk} tokens, {2 * a.kv_numbers:,} bytes each"
    return f"every token, {2 * a.kv_numbers:,} bytes each in FP16"


def _recurrent(mixer: Recurrent) -> str:
    from mixkv.models.layers import DeltaNet, Mamba2

    if isinstance(mixer, Mamba2):
        return f"Mamba-2, {mixer.n_heads} heads of {mixer.head_dim}, {mixer.n_groups} groups, state {mixer.d_state}"
    if isinstance(mixer, DeltaNet):
        return f"gated delta net, {mixer.n_heads} heads of {mixer.head_dim} on {mixer.n_k_heads}"
    kernel = 0 if mixer.conv_state is None else mixer.conv_state[0] + 1
    return f"convolution over {kernel} tokens"


def _ffn(ffn: Dense | Routed | None) -> str:
    from mixkv.models.layers import Routed

    if ffn is None:
        return "none"
    kind = ffn.activation.kind + ("" if ffn.gated else ", no gate")
    if not isinstance(ffn, Routed):
        return f"{ffn.n_ff} wide, {kind}"
    r = ffn.routing
    words = [f"{r.n_experts} experts of {ffn.n_ff}, {r.n_used} a token", f"{r.gating}", kind]
    if r.n_groups > 1:
        words.append(f"{r.n_groups_used} of {r.n_groups} groups")
    if ffn.n_shared:
        words.append(f"and {ffn.n_shared} shared")
    return ", ".join(words)
