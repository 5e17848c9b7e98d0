// See routed.h. One call: the router's products and each token's experts; rows sorted by expert; gate, up and
// activation of all experts in one parallel region, whose tasks also round what `down` reads; then, for as many of
// down's rows at a time as `parts` has room for, the products of all experts and the sum of each token's.
#include "routed.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace mixkv {
namespace {

// What one call works with; the memory is the backend's.
struct Work {
    int32_t* chosen;              // (n, n_used)
    float* weights;               // (n, n_used)
    Sorting sorting;
    std::vector<Activations> in;      // each share's rows: what gate and up read
    std::vector<Activations> hidden;  // and what down reads
};

void choose(Backend& on, const RoutedFFN& f, const Activations& h, Work& w) {
    const Routing& r = f.routing;
    const int n = h.n;
    const size_t pairs = size_t(n) * size_t(r.n_used);
    float* p = on.routed.products.get<float>(size_t(n) * size_t(r.n_experts));
    w.chosen = on.routed.chosen.get<int32_t>(pairs);
    w.weights = on.routed.weights.get<float>(pairs);
    multiply(on, h, {{f.router, {p, r.n_experts, 0, f.router_bias, nullptr, 0}, {}}});
    const ThreadScratch scratch = thread_scratch(on, r.n_work() * sizeof(float));
    constexpr int per_task = 16;
    on.parallel_for(ceil_div(n, per_task), [&](int task, int thread) {
        for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t)
            route(r, p + int64_t(t) * r.n_experts, f.selection_bias, w.chosen + int64_t(t) * r.n_used,
                  w.weights + int64_t(t) * r.n_used, reinterpret_cast<float*>(scratch.of(thread)));
    });
}

// The rows that experts read as they want them (`dense`: some as floats), one for each token, or one for each pair where
// weights come first; codes in tiles of width 1.
Activations rows_to_read(Backend& on, const RoutedFFN& f, const Activations& h, bool dense, const float* weights) {
    const bool scaled = f.routing.on_input;
    const bool quantized = !f.up->matrices().float_activations() || (f.gate && !f.gate->matrices().float_activations());
    const int per_row = scaled ? f.routing.n_used : 1, dim = h.cols;
    Activations a = h;
    a.n = h.n * per_row;
    a.quantized = quantized;
    ActivationMemory& mem = on.routed.rows;
    if (quantized) {
        const size_t cells = size_t(a.n) * size_t(dim / block_cols);
        a.codes = {mem.q.get<int8_t>(cells * block_cols), mem.d.get<float>(cells), mem.sum.get<int32_t>(2 * cells), a.n, 1,
                   dim / block_cols};
    }
    float* copies = nullptr;  // all rows, or one for each thread
    if (scaled) copies = mem.norm.get<float>(size_t(dense ? a.n : on.pool.n_threads()) * size_t(dim));
    if (scaled && dense) a.x = copies;
    if (!scaled && !quantized) return a;
    const int per_task = 16;
    on.parallel_for(ceil_div(a.n, per_task), [&](int task, int thread) {
        for (int i = task * per_task; i < std::min(a.n, (task + 1) * per_task); ++i) {
            const float* row = h.x + int64_t(i / per_row) * h.ldx;
            if (scaled) {
                float* copy = copies + int64_t(dense ? i : thread) * dim;
                for (int k = 0; k < dim; ++k) copy[k] = row[k] * weights[i];
                row = copy;
            }
            if (quantized) on.linear.quantize(row, dim, &a.codes, i, i + 1, 0, a.codes.blocks);
        }
    });
    return a;
}

// What the thread of this task will read next: tasks are taken in turn, and take about the same time.
Next next_panel(const Backend& on, const ExpertTasks& tasks, const Work& w, int task, const Experts& experts) {
    task += on.pool.n_threads();
    if (task >= tasks.count()) return {};
    const ExpertTasks::Piece piece = tasks.piece(task);
    return experts.at(w.sorting.shares[size_t(piece.share)].expert, piece.g0);
}

// Gate, up and activation of the same rows of the same expert by one task, which writes what `down` reads.
void inner(Backend& on, const RoutedFFN& f, Work& w) {
    const Experts& up = *f.up;
    const int width = up.rows();
    const bool dense = f.down->matrices().float_activations();
    lay_out(w.sorting, width, !dense, dense, on.hidden, w.hidden);
    ExpertTasks tasks;
    tasks.cut(w.sorting, up, 0, up.matrices().groups());
    const size_t half = size_t(tasks.most_cells());
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch + 2 * half * sizeof(float));
    on.parallel_for(tasks.count(), [&](int task, int thread) {
        const auto [share, g0, g1, t0, t1] = tasks.piece(task);
        const int expert = w.sorting.shares[size_t(share)].expert, cols = (g1 - g0) * group_rows;
        const int c0 = g0 * group_rows, c1 = std::min(width, g1 * group_rows);
        uint8_t* mine = scratch.of(thread);
        float *u = reinterpret_cast<float*>(mine + matmul_scratch), *g = f.gate ? u + half : u;
        const auto product = [&](const Experts& experts, const float* bias, float* y, Next next) {
            const float* its_bias = bias ? bias + int64_t(expert) * width : nullptr;
            product_task(on.linear, w.in[size_t(share)], experts.matrices(),
                         {y - int64_t(t0) * cols, cols, c0, its_bias, nullptr, 0, next}, g0, g1, t0, t1, mine, expert);
        };
        if (f.gate) product(*f.gate, f.gate_bias, g, up.at(expert, g0));
        product(up, f.up_bias, u, next_panel(on, tasks, w, task, f.gate ? *f.gate : up));
        for (int64_t t = 0; t < t1 - t0; ++t)
            on.linear.activate(&f.activation, g + t * cols, f.gate ? u + t * cols : nullptr, c1 - c0);
        const Activations& h = w.hidden[size_t(share)];
        if (h.quantized)
            on.linear.quantize(g, cols, &h.codes, t0, t1, c0 / block_cols, c1 / block_cols);
        else
            for (int t = t0; t < t1; ++t)
                std::memcpy(const_cast<float*>(h.x) + int64_t(t) * width + c0, g + int64_t(t - t0) * cols,
                            size_t(c1 - c0) * sizeof(float));
    });
}

// out[t] (columns c0..c1, of rows `dim` apart) = the sum of token t's parts, in the order of its slots.
void add_parts(const RoutedFFN& f, const Work& w, const float* parts, int64_t ld, int t, int n, float* out) {
    const int n_used = f.routing.n_used;
    for (int slot = 0; slot < n_used; ++slot) {
        const size_t i = size_t(t) * size_t(n_used) + size_t(slot);
        const float* part = parts + w.sorting.place[i] * ld;
        const float scale = f.down_scale ? f.down_scale[w.chosen[i]] : 1.0f;
        const float weight = f.routing.on_input ? 1.0f : w.weights[i];
        if (slot == 0)
            for (int k = 0; k < n; ++k) out[k] = part[k] * scale * weight;
        else
            for (int k = 0; k < n; ++k) out[k] += part[k] * scale * weight;
    }
}

void outer(Backend& on, const RoutedFFN& f, const Work& w, int n, float* out) {
    const Experts& down = *f.down;
    const int dim = down.rows(), groups = down.matrices().groups();
    const int64_t pairs = int64_t(n) * f.routing.n_used;
    constexpr int panel_rows = panel_groups * group_rows;
    const int panels = std::clamp(int(RoutedFFN::parts_numbers / (pairs * panel_rows)), 1, down.matrices().panels());
    const int slab = panels * panel_groups, ld = panels * panel_rows;
    float* parts = on.routed.parts.get<float>(size_t(pairs) * size_t(ld));
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch);
    ExpertTasks tasks;
    for (int first = 0; first < groups; first += slab) {
        const int c0 = first * group_rows, cols = std::min(dim - c0, ld);
        tasks.cut(w.sorting, down, first, std::min(groups, first + slab));
        on.parallel_for(tasks.count(), [&](int task, int thread) {
            const auto [i, g0, g1, t0, t1] = tasks.piece(task);
            const Share& share = w.sorting.shares[size_t(i)];
            const float* bias = f.down_bias ? f.down_bias + int64_t(share.expert) * dim : nullptr;
            const Next next = next_panel(on, tasks, w, task, down);
            product_task(on.linear, w.hidden[size_t(i)], down.matrices(),
                         {parts + int64_t(share.first) * ld, ld, c0, bias, nullptr, 0, next}, g0, g1, t0, t1,
                         scratch.of(thread), share.expert);
        });
        const int per_task = std::max(1, (16 << 10) / (cols * f.routing.n_used));
        on.parallel_for(ceil_div(n, per_task), [&](int task, int) {
            for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t)
                add_parts(f, w, parts, ld, t, cols, out + int64_t(t) * dim + c0);
        });
    }
}

void run_piece(Backend& on, const RoutedFFN& f, const float* x, int n, const float* residual, float* out) {
    const int dim = f.up->cols();
    const bool router_codes = !f.router->float_activations();
    const Norm* norm = pointer(f.norm);
    Work w;
    Activations h;
    if (f.router_norm) {
        choose(on, f, prepare(on, x, n, dim, &*f.router_norm, nullptr, router_codes, on.activations), w);
        h = prepare(on, x, n, dim, norm, nullptr, false, on.activations);
    } else {
        h = prepare(on, x, n, dim, norm, nullptr, router_codes, on.activations);
        choose(on, f, h, w);
    }
    w.sorting.sort(w.chosen, n * f.routing.n_used, f.routing.n_experts);
    const bool dense = f.up->matrices().float_activations() || (f.gate && f.gate->matrices().float_activations());
    const int pairs_per_row = f.routing.on_input ? 1 : f.routing.n_used;
    gather(on, w.sorting, rows_to_read(on, f, h, dense, w.weights), dense, pairs_per_row, on.routed.sorted, w.in);
    inner(on, f, w);
    outer(on, f, w, n, out);
    end_rows(on, f.end, out, n, dim, residual);
}

}  // namespace

void RoutedFFN::run(Backend& on, const float* x, int n, const float* residual, float* out) const {
    const int dim = up->cols();
    for (int t = 0; t < n; t += most_tokens) {
        const int64_t at = int64_t(t) * dim;
        run_piece(on, *this, x + at, std::min(n - t, most_tokens), residual ? residual + at : nullptr, out + at);
    }
}

}  // namespace mixkv
