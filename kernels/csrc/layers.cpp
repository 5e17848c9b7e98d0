// See layers.h.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace mixkv {

const Cosines& CosineTables::of(const std::vector<float>& inv_freq, double scale, const int64_t* positions, int n) {
    for (const Cosines& c : recent_)
        if (int(c.positions.size()) == n && std::equal(positions, positions + n, c.positions.begin()) && c.scale == scale &&
            c.inv_freq == inv_freq)
            return c;
    Cosines c{inv_freq, scale, {positions, positions + n}, {}, {}};
    const size_t half = inv_freq.size();
    c.cos.resize(size_t(n) * half);
    c.sin.resize(size_t(n) * half);
    for (int t = 0; t < n; ++t)
        for (size_t i = 0; i < half; ++i) {
            const double angle = double(positions[t]) * double(inv_freq[i]);
            c.cos[size_t(t) * half + i] = float(std::cos(angle) * scale);
            c.sin[size_t(t) * half + i] = float(std::sin(angle) * scale);
        }
    next_ = (next_ + 1) % kept;
    return recent_[next_] = std::move(c);
}

void end_rows(Backend& on, const Ending& end, float* y, int n, int dim, const float* residual) {
    if (!end.out_norm && end.scale == 1.0f && !residual) return;
    constexpr int per_task = 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
        for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t) {
            const int64_t at = int64_t(t) * dim;
            if (end.out_norm) apply_norm(on, *end.out_norm, y + at, 1, dim, y + at);
            if (end.scale != 1.0f || residual) on.linear.scale(y + at, end.scale, residual ? residual + at : nullptr, dim);
        }
    });
}

void multiply_and_end(Backend& on, const Activations& a, const Weight& w, const float* bias, const float* by_token,
                      const Ending& end, const float* residual, float* out) {
    const int rows = w.rows();
    if (end.out_norm) {
        multiply(on, a, {{&w, {out, rows, 0, bias, nullptr, 0}, {by_token}}});
        end_rows(on, end, out, a.n, rows, residual);
    } else if (by_token || end.scale != 1.0f) {
        multiply(on, a, {{&w, {out, rows, 0, bias, nullptr, 0}, {by_token, end.scale, 0.0f, residual}}});
    } else {
        multiply(on, a, {{&w, {out, rows, 0, bias, residual, rows}}});
    }
}

void HeadNorm::apply(const Ops& ops, float* row) const {
    if (gain_step == 0 && bias_step == 0) return ops.norm(row, &norm, heads, dim, row);
    Norm one = norm;
    for (int h = 0; h < heads; ++h) {
        if (norm.gain) one.gain = norm.gain + h * gain_step;
        if (norm.bias) one.bias = norm.bias + h * bias_step;
        ops.norm(row + h * dim, &one, 1, dim, row + h * dim);
    }
}

float Temperature::at(int64_t position) const {
    const int64_t p = int64_t(uint64_t(position) + uint64_t(offset));
    const int64_t steps = p / length - (p % length < 0 ? 1 : 0);
    return float(1.0 + slope * std::log1p(double(steps)));
}

void QKV::run(Backend& on, const float* x, int n, const int64_t* positions, float* q_out, float* k_out, float* v_out,
              float* gate_out) const {
    std::vector<Product> products;
    bool codes = false;
    auto add = [&](const Weight* w, float* out, const float* bias) {
        if (!w) return;
        codes = codes || !w->float_activations();
        products.push_back({w, {out, w->rows(), 0, bias, nullptr, 0}});
    };
    add(q, q_out, bq);
    add(k, k_out, bk);
    add(v, v_out, bv);
    add(gate, gate_out, nullptr);
    multiply(on, prepare(on, x, n, q->cols(), pointer(norm), nullptr, codes, on.activations), products);

    const int half = int(rotation.inv_freq.size());
    const Cosines* angles = half ? &on.cosines.of(rotation.inv_freq, rotation.scale, positions, n) : nullptr;
    const bool copy_k = k && !v;
    if (!half && !q_norm && !(k && (k_norm || v_norm)) && !copy_k && !temperature) return;
    auto finish = [&](float* heads, int count, const std::optional<HeadNorm>& head_norm, int t) {
        if (head_norm && !norms_last) head_norm->apply(on.linear, heads);
        const size_t at = size_t(t) * size_t(half);
        for (int h = 0; half && h < count; ++h)
            on.linear.rope(heads + h * head_dim, &angles->cos[at], &angles->sin[at], half, rotation.interleaved);
        if (head_norm && norms_last) head_norm->apply(on.linear, heads);
    };
    constexpr int per_task = 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
        for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t) {
            float* q_row = q_out + int64_t(t) * q->rows();
            finish(q_row, n_heads, q_norm, t);
            if (temperature) on.linear.scale(q_row, temperature->at(positions[t]), nullptr, q->rows());
            if (!k) continue;
            float *k_row = k_out + int64_t(t) * k->rows(), *v_row = v_out + int64_t(t) * value_cols();
            if (copy_k) std::memcpy(v_row, k_row, size_t(k->rows()) * sizeof(float));
            finish(k_row, n_kv_heads, k_norm, t);
            if (v_norm) v_norm->apply(on.linear, v_row);
        }
    });
}

// Gate and up of the same 32 columns are made by one task, which also applies the gate and rounds the result: what
// `down` reads is written once, as codes.
void FFN::run(Backend& on, const float* x, int n, const float* residual, float* out) const {
    const Weight& first = gate ? *gate : *up;
    const bool codes = !first.float_activations() || !up->float_activations();
    const Activations a = prepare(on, x, n, first.cols(), pointer(norm), nullptr, codes, on.activations);

    const int width = first.rows(), groups = group_chunk(first, n);
    const int cols = groups * group_rows, tokens = std::min(token_chunk(first, n), token_chunk(*up, n));
    Activations h;
    h.n = n;
    h.cols = width;
    h.quantized = !down->float_activations();
    h.ldx = width;
    float* dense = nullptr;
    if (h.quantized)
        h.codes = on.hidden.quantx(n, width);
    else
        h.x = dense = on.hidden.norm.get<float>(size_t(n) * size_t(width));

    float* by_token = token_gate ? on.by_token.get<float>(size_t(n)) : nullptr;

    const size_t half = size_t(tokens) * size_t(cols);
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch + 2 * half * sizeof(float));
    const int group_tasks = ceil_div(first.groups(), groups);
    on.parallel_for(group_tasks * ceil_div(n, tokens), [&](int task, int thread) {
        const int t0 = task / group_tasks * tokens, t1 = std::min(n, t0 + tokens);
        const int g0 = task % group_tasks * groups, g1 = std::min(first.groups(), g0 + groups);
        const int c0 = g0 * group_rows, c1 = std::min(width, g1 * group_rows);
        uint8_t* mine = scratch.of(thread);
        float *g = reinterpret_cast<float*>(mine + matmul_scratch), *u = g + half;
        auto product = [&](const Weight& w, float* y, const float* bias) {
            product_task(on.linear, a, w, {y - int64_t(t0) * cols, cols, c0, bias, nullptr, 0}, g0, g1, t0, t1, mine);
        };
        product(first, g, gate ? gate_bias : up_bias);
        if (gate) product(*up, u, up_bias);
        for (int t = 0; t < t1 - t0; ++t) {
            const int64_t at = int64_t(t) * cols;
            on.linear.activate(&activation, g + at, gate ? u + at : nullptr, c1 - c0);
        }
        for (int t = t0; by_token && g0 == 0 && t < t1; ++t)
            by_token[t] = on.linear.token_gate(a.x + t * a.ldx, token_gate, a.cols);
        if (h.quantized) {
            on.linear.quantize(g, cols, &h.codes, t0, t1, c0 / block_cols, c1 / block_cols);
        } else {
            for (int t = t0; t < t1; ++t)
                std::memcpy(dense + int64_t(t) * width + c0, g + int64_t(t - t0) * cols, size_t(c1 - c0) * 4);
        }
    });
    multiply_and_end(on, h, *down, down_bias, by_token, end, residual, out);
}

}  // namespace mixkv
