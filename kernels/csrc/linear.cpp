// See linear.h. How work is cut:
//
// - few tokens (n <= 16): tasks of a panel, or of about 64 KiB of weights, so that two cores finish together and one
//   stream of reads is long enough to be worth prefetching;
// - many: chunks of tokens whose codes fit into half of a 2 MiB L2 with room for a group's weights; a task is two
//   groups of rows times one chunk, so weights come from memory once a chunk and activations stay in L2.
#include "linear.h"

#include <algorithm>

namespace mixkv {
namespace {

constexpr size_t weight_task_bytes = 64 << 10, activation_chunk_bytes = 1 << 20;

// What comes after a task's product.
void finish_product(const Ops& ops, const Product& p, int g0, int g1, int t0, int t1) {
    const After& after = p.after;
    const bool scaled = after.by_token || after.scale != 1.0f || after.residual, capped = after.cap > 0.0f;
    const int r0 = g0 * group_rows, rows = std::min(p.w->rows(), g1 * group_rows) - r0;
    if ((!scaled && !capped) || rows <= 0) return;  // no rows: groups that pad a panel
    for (int t = t0; t < t1; ++t) {
        float* y = p.out.y + t * p.out.ldy + (r0 - p.out.row0);
        const float* residual = after.residual ? after.residual + int64_t(t) * p.w->rows() + r0 : nullptr;
        if (scaled) ops.scale(y, after.by_token ? after.by_token[t] * after.scale : after.scale, residual, rows);
        if (capped) ops.cap(y, after.cap, rows);
    }
}

}  // namespace

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
                  void* scratch, int matrix) {
    const Packed p = w.packed(matrix);
    if (w.float_activations())
        ops.matmul_f[p.format](&p, a.x + t0 * a.ldx, a.ldx, g0, g1, t0, t1, &out);
    else
        ops.matmul_q[p.format](&p, &a.codes, g0, g1, t0, t1, &out, scratch);
}

ThreadScratch thread_scratch(Backend& on, size_t bytes) {
    const size_t each = (bytes + 4095) / 4096 * 4096;
    return {on.of_threads.get<uint8_t>(each * size_t(on.pool.n_threads())), each};
}

QuantX ActivationMemory::quantx(int n, int cols) {
    QuantX x;
    x.n = n;
    x.blocks = cols / block_cols;
    x.width = tile_width(n);
    const size_t cells = size_t(ceil_div(n, x.width)) * size_t(x.width) * size_t(x.blocks);
    x.q = q.get<int8_t>(cells * block_cols);
    x.d = d.get<float>(cells);
    x.sum = sum.get<int32_t>(2 * cells);
    return x;
}

Activations prepare(Backend& on, const float* x, int n, int cols, const Norm* norm, const float* gate, bool quantized,
                    ActivationMemory& mem) {
    Activations a;
    a.n = n;
    a.cols = cols;
    a.quantized = quantized;
    a.x = x;
    a.ldx = cols;
    float* changed = nullptr;
    if (norm || gate) a.x = changed = mem.norm.get<float>(size_t(n) * size_t(cols));
    if (quantized) a.codes = mem.quantx(n, cols);
    if (!changed && !quantized) return a;
    const int per_task = quantized ? a.codes.width : 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
        const int t0 = task * per_task, t1 = std::min(n, t0 + per_task);
        const int64_t at = int64_t(t0) * cols;
        if (norm) on.linear.norm(x + at, norm, t1 - t0, cols, changed + at);
        for (int t = t0; gate && t < t1; ++t) {
            const int64_t row = int64_t(t) * cols;
            on.linear.gate((norm ? changed : x) + row, gate + row, cols, changed + row);
        }
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
        finish_product(on.linear, products[i], g0, g1, t0, t1);
    });
}

}  // namespace mixkv
