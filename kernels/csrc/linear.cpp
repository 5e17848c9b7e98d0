// See linear.h. How work is cut:
//
// - few tokens (n <= 16): tasks of a panel, or of about 64 KiB of weights, so that two cores finish together and one
//   stream of reads is long enough to be worth prefetching;
// - many: chunks of tokens whose codes fit into half of a 2 MiB L2 with room for a group's weights; a task is two
//   groups of rows times one chunk, so weights come from memory once a chunk and activations stay in L2.
#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace mixkv {
namespace {

constexpr size_t weight_task_bytes = 64 << 10, activation_chunk_bytes = 1 << 20;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Tokens of one task: everything, or a multiple of the codes' tile width.
int token_chunk(const Weight& w, int n) {
    const size_t row = size_t(w.cols()) * (w.float_activations() ? 4 : 1);
    const int fit = int(std::max<size_t>(activation_chunk_bytes / row, 1) / 16 * 16);
    return n <= 16 ? std::max(n, 1) : std::clamp(fit, 32, max_tokens);
}
int group_chunk(const Weight& w, int n) {
    return n > 16 ? 2 : panel_groups * int(std::clamp<size_t>(weight_task_bytes / w.panel_bytes(), 1, 16));
}

void product_task(const Ops& ops, const Activations& a, const Weight& w, const Out& out, int g0, int g1, int t0, int t1,
                  void* scratch) {
    const Packed& p = w.packed();
    if (w.float_activations())
        ops.matmul_f[p.format](&p, a.x + t0 * a.ldx, a.ldx, g0, g1, t0, t1, &out);
    else
        ops.matmul_q[p.format](&p, &a.codes, g0, g1, t0, t1, &out, scratch);
}

// Scratch for each thread of the pool.
struct ThreadScratch {
    uint8_t* base;
    size_t each;
    uint8_t* of(int thread) const { return base + size_t(thread) * each; }
};
ThreadScratch thread_scratch(Backend& on, size_t bytes) {
    const size_t each = (bytes + 4095) / 4096 * 4096;
    return {on.of_threads.get<uint8_t>(each * size_t(on.pool.n_threads())), each};
}

}  // namespace

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

QuantX ActivationMemory::quantx(int n, int cols) {
    QuantX x;
    x.n = n;
    x.blocks = cols / block_cols;
    x.width = n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : n <= 8 ? 8 : 16;
    const size_t cells = size_t(ceil_div(n, x.width)) * size_t(x.width) * size_t(x.blocks);
    x.q = q.get<int8_t>(cells * block_cols);
    x.d = d.get<float>(cells);
    x.sum = sum.get<int32_t>(2 * cells);
    return x;
}

Activations prepare(Backend& on, const float* x, int n, int cols, const float* gain, float eps, bool quantized,
                    ActivationMemory& mem) {
    Activations a;
    a.n = n;
    a.cols = cols;
    a.quantized = quantized;
    a.x = x;
    a.ldx = cols;
    float* normed = nullptr;
    if (gain) a.x = normed = mem.norm.get<float>(size_t(n) * size_t(cols));
    if (quantized) a.codes = mem.quantx(n, cols);
    if (!gain && !quantized) return a;
    const int per_task = quantized ? a.codes.width : 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
        const int t0 = task * per_task, t1 = std::min(n, t0 + per_task);
        const int64_t at = int64_t(t0) * cols;
        if (gain) on.linear.rms_norm(x + at, gain, eps, t1 - t0, cols, normed + at);
        if (quantized) on.linear.quantize(a.x + at, cols, &a.codes, t0, t1, 0, a.codes.blocks);
    });
    return a;
}

void multiply(Backend& on, const Activations& a, const std::vector<Product>& products) {
    struct Cut {
        int tokens, groups, group_tasks, first, count;
    };
    std::vector<Cut> cuts;
    int total = 0;
    for (const Product& p : products) {
        Cut c;
        c.tokens = token_chunk(*p.w, a.n);
        c.groups = group_chunk(*p.w, a.n);
        c.group_tasks = ceil_div(p.w->groups(), c.groups);
        c.first = total;
        c.count = c.group_tasks * ceil_div(a.n, c.tokens);
        total += c.count;
        cuts.push_back(c);
    }
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch);
    on.parallel_for(total, [&](int task, int thread) {
        size_t i = 0;
        while (task >= cuts[i].first + cuts[i].count) ++i;
        const Cut& c = cuts[i];
        const Weight& w = *products[i].w;
        const int chunk = (task - c.first) / c.group_tasks, g0 = (task - c.first) % c.group_tasks * c.groups;
        const int t0 = chunk * c.tokens;
        const int g1 = std::min(w.groups(), g0 + c.groups), t1 = std::min(a.n, t0 + c.tokens);
        product_task(on.linear, a, w, products[i].out, g0, g1, t0, t1, scratch.of(thread));
    });
}

void QKV::run(Backend& on, const float* x, int n, const int64_t* positions, float* q_out, float* k_out,
              float* v_out) const {
    const bool codes = !q->float_activations() || !k->float_activations() || !v->float_activations();
    const Activations a = prepare(on, x, n, q->cols(), norm, eps, codes, on.activations);
    multiply(on, a, {{q, {q_out, q->rows(), 0, bq, nullptr, 0}},
                 {k, {k_out, k->rows(), 0, bk, nullptr, 0}},
                 {v, {v_out, v->rows(), 0, bv, nullptr, 0}}});
    const Cosines& angles = on.cosines.of(inv_freq, rope_scale, positions, n);
    const int half = int(inv_freq.size());
    auto finish = [&](float* heads, int count, const float* gain, int t) {
        if (gain)
            for (int h = 0; h < count; ++h)
                on.linear.rms_norm(heads + h * head_dim, gain, eps, 1, head_dim, heads + h * head_dim);
        const size_t at = size_t(t) * size_t(half);
        for (int h = 0; half > 0 && h < count; ++h)
            on.linear.rope(heads + h * head_dim, &angles.cos[at], &angles.sin[at], half, interleaved);
    };
    constexpr int per_task = 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
        for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t) {
            finish(q_out + int64_t(t) * q->rows(), n_heads, q_norm, t);
            finish(k_out + int64_t(t) * k->rows(), n_kv_heads, k_norm, t);
        }
    });
}

// Gate and up of the same 32 columns are made by one task, which also applies the gate and rounds the result: what
// `down` reads is written once, as codes.
void FFN::run(Backend& on, const float* x, int n, float* out) const {
    const bool codes = !gate->float_activations() || !up->float_activations();
    const Activations a = prepare(on, x, n, gate->cols(), norm, eps, codes, on.activations);

    const int width = gate->rows(), groups = group_chunk(*gate, n);
    const int cols = groups * group_rows, tokens = std::min(token_chunk(*gate, n), token_chunk(*up, n));
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

    const size_t half = size_t(tokens) * size_t(cols);
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch + 2 * half * sizeof(float));
    const int group_tasks = ceil_div(gate->groups(), groups);
    on.parallel_for(group_tasks * ceil_div(n, tokens), [&](int task, int thread) {
        const int t0 = task / group_tasks * tokens, t1 = std::min(n, t0 + tokens);
        const int g0 = task % group_tasks * groups, g1 = std::min(gate->groups(), g0 + groups);
        const int c0 = g0 * group_rows, c1 = std::min(width, g1 * group_rows);
        uint8_t* mine = scratch.of(thread);
        float *g = reinterpret_cast<float*>(mine + matmul_scratch), *u = g + half;
        product_task(on.linear, a, *gate, {g - int64_t(t0) * cols, cols, c0, gate_bias, nullptr, 0}, g0, g1, t0, t1, mine);
        product_task(on.linear, a, *up, {u - int64_t(t0) * cols, cols, c0, up_bias, nullptr, 0}, g0, g1, t0, t1, mine);
        for (int t = 0; t < t1 - t0; ++t) on.linear.silu_mul(g + int64_t(t) * cols, u + int64_t(t) * cols, c1 - c0);
        if (h.quantized) {
            on.linear.quantize(g, cols, &h.codes, t0, t1, c0 / block_cols, c1 / block_cols);
        } else {
            for (int t = t0; t < t1; ++t)
                std::memcpy(dense + int64_t(t) * width + c0, g + int64_t(t - t0) * cols, size_t(c1 - c0) * 4);
        }
    });
    multiply(on, h, {{down, {out, down->rows(), 0, down_bias, x, a.cols}}});
}

}  // namespace mixkv
