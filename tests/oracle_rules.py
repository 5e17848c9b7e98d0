"""What files of each family leave unsaid, for the oracle of families (family_oracle.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What a family's files leave unsaid.

    interleaved: RoPE's pairs are neighbours. layernorm: LayerNorm instead of RMS norm. behind: `post_attention_norm`
    and `post_ffw_norm` stand behind mixer and feed-forward (else the first is the feed-forward's own norm). parallel:
    the feed-forward reads what the mixer reads. act: silu, gelu, relu2, oai, xielu. gating, normed: None: as the file
    says. period: every n-th layer sees everything where there is a window. free: layers without a window do not
    rotate. skip: every n-th layer does not rotate. unit_v: V's heads are RMS-normed. divide: logits are divided by
    logit_scale, not multiplied. chunked: layers that rotate see their chunk, and norm queries and keys behind the
    rotation; experts read their input times their weight. fixed: numbers of keys that the file need not have.
    """

    interleaved: bool = False
    layernorm: bool = False
    behind: bool = False
    parallel: bool = False
    act: str = "silu"
    gating: str | None = "softmax"
    normed: bool | None = True
    period: int = 1
    free: bool = False
    skip: int = 0
    last_norm: bool = False
    unit_v: bool = False
    scale: float | None = None
    by_sqrt_dim: bool = False
    own_base: bool = False
    unstretched: bool = False
    tiled: bool = False
    divide: bool = True
    chunked: bool = False
    fixed: tuple[tuple[str, float], ...] = ()


def _rules() -> dict[str, Rule]:
    inter, neox = Rule(interleaved=True), Rule()
    gemma = {"behind": True, "act": "gelu", "by_sqrt_dim": True}
    delta = Rule()
    return {
        "llama": inter, "mistral3": inter, "internlm2": inter, "granite": inter, "granitemoe": inter,
        "smollm3": Rule(True, skip=4), "arcee": Rule(True, act="relu2"), "apertus": Rule(act="xielu"),
        "minicpm": Rule(True, fixed=(("embedding_scale", 12.0), ("residual_scale", 1.4), ("logit_scale", 8.0))),
        "seed_oss": neox, "qwen2": neox, "qwen3": neox, "qwen2moe": Rule(normed=False), "qwen3moe": neox,
        "gemma2": Rule(period=2, **gemma), "gemma3": Rule(period=6, own_base=True, **gemma),
        "gemma4": Rule(own_base=True, unit_v=True, scale=1.0, **gemma),
        "gemma3n": Rule(period=5, own_base=True, unit_v=True, scale=1.0, **gemma),
        "gpt-oss": Rule(act="oai", gating="chosen", period=2), "phi3": neox,
        "phi2": Rule(layernorm=True, parallel=True, act="gelu"),
        "olmo2": Rule(behind=True, period=4, unstretched=True), "olmoe": Rule(normed=False),
        "exaone4": Rule(behind=True, period=4, free=True), "glm4": Rule(True, behind=True),
        "glm4moe": Rule(gating=None, normed=None), "ernie4_5": inter, "ernie4_5-moe": inter,
        "hunyuan-dense": Rule(last_norm=True), "hunyuan-moe": Rule(last_norm=True),
        "dots1": Rule(gating=None, normed=None), "bailingmoe2": Rule(gating=None, normed=None),
        "minimax-m2": Rule(gating=None), "qwen35": Rule(tiled=True), "qwen35moe": Rule(tiled=True), "qwen3next": delta,
        "lfm2": neox, "lfm2moe": Rule(gating=None), "granitehybrid": inter, "falcon-h1": neox, "mamba2": neox,
        "nemotron_h": Rule(act="relu2", skip=1),
        "nemotron_h_moe": Rule(act="relu2", gating="sigmoid", normed=None, skip=1),
        "command-r": Rule(True, layernorm=True, parallel=True, divide=False),
        "cohere2": Rule(True, layernorm=True, parallel=True, period=4, free=True, divide=False),
        "llama4": Rule(True, gating="sigmoid", normed=False, skip=4, chunked=True),
        "deepseek2": Rule(True, gating=None, normed=None),
        "stablelm": Rule(layernorm=True, parallel=True), "starcoder2": Rule(layernorm=True, act="gelu"),
    }  # fmt: skip


RULES = _rules()
