"""Every family's forward pass in float64, from the formulas and the file alone: an oracle without mixkv in it.

What a file says by having a tensor counts for every family; what files leave unsaid is a line in RULES. Attention is in
full and nothing cached, recurrent layers go token by token, experts are computed for each token by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from float_forward import F64, Rotation, number, read, rotation_of

ROOT2 = np.sqrt(2.0)


@dataclass(frozen=True)
class Rule:
    """What a family's files leave unsaid.

    interleaved: RoPE's pairs are neighbours. layernorm: LayerNorm instead of RMS norm. behind: `post_attention_norm`
    and `post_ffw_norm` stand behind mixer and feed-forward (else the first is the feed-forward's own norm). parallel:
    the feed-forward reads what the mixer reads. act: silu, gelu, relu2, oai, xielu. gating, normed: None: as the file
    says. period: every n-th layer sees everything where there is a window. free: layers without a window do not
    rotate. skip: every n-th layer does not rotate. unit_v: V's heads are RMS-normed. divide: logits are divided by
    logit_scale, not multiplied. fixed: numbers of keys that the file need not have.
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
        "stablelm": Rule(layernorm=True, parallel=True), "starcoder2": Rule(layernorm=True, act="gelu"),
    }  # fmt: skip


RULES = _rules()


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


class Oracle:
    """One file. `logits(ids)` is what it is for."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        meta, self.tensors = read(path)
        self.meta, self.n_ctx = meta, n_ctx
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

    # The whole

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

    # Mixers

    def mixers(self, x: F64, i: int) -> F64 | None:
        b = f"blk.{i}."
        found = []
        if b + "attn_q.weight" in self.tensors or (
            b + "attn_qkv.weight" in self.tensors and b + "ssm_a" not in self.tensors
        ):
            found.append(self.attention(x, i))
        if b + "ssm_in.weight" in self.tensors:
            found.append(self.mamba2(x, b))
        elif b + "ssm_a" in self.tensors:
            found.append(self.delta_net(x, b))
        if b + "shortconv.conv.weight" in self.tensors:
            gate, c, z = np.split(self.product(x, b + "shortconv.in_proj"), 3, axis=1)
            found.append(self.product(c * self.convolve(gate * z, b + "shortconv.conv"), b + "shortconv.out_proj"))
        return sum(found) if found else None  # type: ignore[return-value]

    def window(self, i: int) -> int:
        window, pattern = (
            int(self.key("attention.sliding_window", 0)),
            self.keys.get("attention.sliding_window_pattern"),
        )
        if self.arch in ("phi3", "starcoder2") or (self.arch == "exaone4" and self.n_layers != 64):
            return 0
        if isinstance(pattern, list):
            return window if pattern[i] else 0
        period = self.rule.period if pattern is None else int(pattern)  # type: ignore[call-overload]
        return 0 if (i + 1) % period == 0 else window

    def rotation(self, i: int, head_dim: int) -> Rotation | None:
        rule, keys, window = self.rule, dict(self.keys), self.window(i)
        if rule.skip and (i + 1) % rule.skip == 0:
            return None
        if rule.free and not window and any(self.window(j) for j in range(self.n_layers)):
            return None
        if self.arch.startswith("granite") and keys.get("rope.scaling.finetuned") is False:
            return None
        factors = self.tensors.get("rope_freqs.weight", 1.0)
        if "rope_factors_long.weight" in self.tensors:
            long = self.n_ctx > self.key("rope.scaling.original_context_length")
            factors = self.tensors[f"rope_factors_{'long' if long else 'short'}.weight"]
        if window and (rule.own_base or rule.unstretched):
            for key in ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor"):
                keys.pop(key, None)
        if window and rule.own_base:
            keys["rope.freq_base"] = self.key("rope.freq_base_swa", 10000.0)
            if self.arch == "gemma4":
                factors = 1.0
        if "attention.key_length_swa" in keys and window:
            keys["rope.dimension_count"] = keys.get("rope.dimension_count_swa", head_dim)
        turn = rotation_of(keys, head_dim, factors, rule.interleaved)
        if "rope.scaling.yarn_log_multiplier" in keys:
            log = 0.1 * np.log(number(keys, "rope.scaling.factor"))
            m = number(keys, "rope.scaling.yarn_log_multiplier")
            turn = Rotation(turn.freq, turn.magnitude / (1 + m * log), turn.interleaved)
        return turn

    def attention(self, x: F64, i: int) -> F64:
        b, n, rule = f"blk.{i}.", len(x), self.rule
        n_heads = int(self.key("attention.head_count", None, i))
        n_kv = int(self.key("attention.head_count_kv", n_heads, i))
        window = self.window(i)
        local = "_swa" if window and "attention.key_length_swa" in self.keys else ""
        size = int(self.key("attention.key_length" + local, self.dim // n_heads))
        gate = None
        if b + "attn_qkv.weight" in self.tensors:
            widths = n_heads * size, (n_heads + n_kv) * size
            q, k, v = np.split(self.product(x, b + "attn_qkv"), widths, axis=1)
        else:
            q = self.product(x, b + "attn_q")
            if q.shape[1] == 2 * n_heads * size:
                both = q.reshape(n, n_heads, 2, size)
                q, gate = both[:, :, 0].reshape(n, -1), both[:, :, 1].reshape(n, -1)
            k, v = None, None
        rotation = self.rotation(i, size)

        def turned(rows: F64, heads: int, name: str) -> F64:
            rows = rows.reshape(n, heads, -1)
            gain = self.tensors.get(f"{b}{name}.weight")
            whole = gain is not None and gain.ndim == 1 and gain.size == heads * rows.shape[2] and heads > 1

            def normed(rows: F64) -> F64:
                flat = rows.reshape(n, -1) if whole else rows
                return self.norm(flat, b + name).reshape(rows.shape)

            if not rule.last_norm:
                rows = normed(rows)
            if rotation is not None:
                rows = rotation(rows)
            return normed(rows) if rule.last_norm else rows

        first = self.n_layers - int(self.key("attention.shared_kv_layers", 0))
        q = turned(q, n_heads, "attn_q_norm")
        if i >= first:
            k, v = self.kept[first - 2 if window else first - 1]
        else:
            raw = self.product(x, b + "attn_k") if k is None else k
            if v is None:
                v = self.product(x, b + "attn_v") if b + "attn_v.weight" in self.tensors else raw
            k, v = turned(raw, n_kv, "attn_k_norm"), v.reshape(n, n_kv, -1)
            v = self.unit(v) if rule.unit_v else v
        self.kept[i] = k, v
        scale = rule.scale or self.key("attention.scale", 0.0) or size**-0.5
        if (self.arch, self.n_layers) in (("gemma2", 46), ("gemma3", 62)):
            scale = np.sqrt(n_heads / self.dim)
        if "attention.temperature_scale" in self.keys:
            steps = np.arange(n) // self.key("rope.scaling.original_context_length")
            q = q * (1 + self.key("attention.temperature_scale") * np.log(1 + steps))[:, None, None]
        cap = self.key("attn_logit_softcapping", 50.0 if self.arch == "gemma2" else 0.0)
        back = np.arange(n)[:, None] - np.arange(n)
        hidden = (back < 0) | ((back >= window) if window else False)
        out = []
        for h in range(n_heads):
            score = q[:, h] @ k[:, h * n_kv // n_heads].T * scale
            score = cap * np.tanh(score / cap) if cap else score
            score[hidden] = -np.inf
            if b + "attn_sinks.weight" in self.tensors:
                score = np.concatenate([score, np.full((n, 1), self.tensors[b + "attn_sinks.weight"][h])], axis=1)
            out.append(softmax(score)[:, :n] @ v[:, h * n_kv // n_heads])
        y = np.concatenate(out, axis=1)
        return self.product(y if gate is None else y * sigmoid(gate), b + "attn_output")

    def convolve(self, x: F64, name: str) -> F64:
        weight = self.tensors[name + ".weight"]
        kernel = weight.shape[1]
        rows = np.concatenate([np.zeros((kernel - 1, x.shape[1])), x])
        y = sum(rows[j : j + len(x)] * weight[:, j] for j in range(kernel))
        return y + self.tensors.get(name + ".bias", 0.0)

    def mamba2(self, x: F64, b: str) -> F64:
        n, heads = len(x), int(self.key("ssm.time_step_rank"))
        inner, groups, size = (int(self.key(f"ssm.{k}")) for k in ("inner_size", "group_count", "state_size"))
        z, xbc, dt = np.split(self.product(x, b + "ssm_in"), [inner, 2 * inner + 2 * groups * size], axis=1)
        xbc = silu(self.convolve(xbc, b + "ssm_conv1d"))
        xs = xbc[:, :inner].reshape(n, heads, -1)
        bs, cs = (part.reshape(n, groups, size) for part in np.split(xbc[:, inner:], 2, axis=1))
        step = softplus(dt + self.tensors[b + "ssm_dt.bias"])
        a, d = self.tensors[b + "ssm_a"].ravel(), self.tensors[b + "ssm_d"].ravel()
        y = np.empty_like(xs)
        for h in range(heads):
            state, g = np.zeros((xs.shape[2], size)), h * groups // heads
            for t in range(n):
                state = state * np.exp(a[h] * step[t, h]) + step[t, h] * np.outer(xs[t, h], bs[t, g])
                y[t, h] = state @ cs[t, g] + d[h] * xs[t, h]
        y = y.reshape(n, inner) * silu(z)
        gain = self.tensors.get(b + "ssm_norm.weight")
        if gain is not None:
            y = self.unit(y.reshape(n, groups, -1)).reshape(n, inner) * gain.ravel()
        return self.product(y, b + "ssm_out")

    def delta_net(self, x: F64, b: str) -> F64:
        n, heads, k_heads = len(x), int(self.key("ssm.time_step_rank")), int(self.key("ssm.group_count"))
        size = int(self.key("ssm.state_size"))
        qkv = silu(self.convolve(self.product(x, b + "attn_qkv"), b + "ssm_conv1d"))
        q, k, v = np.split(qkv, [k_heads * size, 2 * k_heads * size], axis=1)
        q, k = (r.reshape(n, k_heads, size) for r in (q, k))
        q, k = (r / np.maximum(np.linalg.norm(r, axis=2, keepdims=True), self.eps) for r in (q, k))
        v, z = v.reshape(n, heads, size), self.product(x, b + "attn_gate").reshape(n, heads, size)
        if b + "ssm_ba.weight" in self.tensors:
            ba = self.product(x, b + "ssm_ba").reshape(n, k_heads, 2, -1)
            beta, alpha = ba[:, :, 0].reshape(n, heads), ba[:, :, 1].reshape(n, heads)
        else:
            alpha, beta = self.product(x, b + "ssm_alpha"), self.product(x, b + "ssm_beta")
        decay = np.exp(self.tensors[b + "ssm_a"] * softplus(alpha + self.tensors[b + "ssm_dt.bias"]))
        beta, y = sigmoid(beta), np.empty_like(v)
        for h in range(heads):
            of = h % k_heads if self.rule.tiled else h * k_heads // heads
            state = np.zeros((size, size))
            for t in range(n):
                state = state * decay[t, h]
                state = state + np.outer(k[t, of], beta[t, h] * (v[t, h] - k[t, of] @ state))
                y[t, h] = q[t, of] @ state / np.sqrt(size)
        y = self.norm(y, b + "ssm_norm") * silu(z)
        return self.product(y.reshape(n, -1), b + "ssm_out")

    # Feed-forwards

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
                y[t] += weight * self.expert(x[t], b, e, i)
        return y

    def choose(self, p: F64, used: int, bias: F64 | float) -> list[tuple[int, float]]:
        """(expert, weight) of one token."""
        kind = self.rule.gating
        if kind is None:
            default = 2 if self.arch == "glm4moe" else None
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
