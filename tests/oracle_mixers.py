"""The oracle of families: attention in full, recurrent layers token by token, in float64."""

from __future__ import annotations

import numpy as np
from float_forward import F64, Rotation, number, rotation_of
from oracle_latent import latent_attention
from oracle_parts import OracleFile, sigmoid, silu, softmax, softplus


class OracleMixers(OracleFile):
    """What a layer's mixer gives, whichever kinds it has."""

    kept: dict[int, tuple[F64, F64]]

    def mixers(self, x: F64, i: int) -> F64 | None:
        b = f"blk.{i}."
        found = []
        if b + "attn_kv_a_mqa.weight" in self.tensors:
            found.append(latent_attention(self, x, b))
        elif b + "attn_q.weight" in self.tensors or (
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
            if rule.chunked and rotation is not None and self.key("expert_count") != 128:
                rows = self.unit(rows)
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
        if rule.chunked and rotation is not None:
            hidden = hidden | (np.arange(n) < (np.arange(n) // self.chunk * self.chunk)[:, None])
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
