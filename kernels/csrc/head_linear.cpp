// See head_linear.h. A head is to its matrix what an expert is to its own, with all tokens as its rows: work is cut over
// heads, groups of rows and tokens as experts' is, so that a token's bits depend on that token alone.
#include "head_linear.h"

#include <vector>

namespace mixkv {
namespace {

constexpr int most_tokens = 512;  // whose codes are held at a time

void run_piece(Backend& on, const Experts& w, const float* x, int n, float* y) {
    const int heads = w.n(), rows = w.rows(), cols = w.cols();
    const int64_t ldx = int64_t(heads) * cols, ldy = int64_t(heads) * rows;
    Sorting all;
    for (int h = 0; h < heads; ++h) all.shares.push_back({h, h * n, n});
    all.pair.resize(size_t(heads) * size_t(n));
    const bool dense = w.matrices().float_activations();
    std::vector<Activations> in;
    lay_out(all, cols, !dense, false, on.routed.rows, in);
    if (dense) {
        for (int h = 0; h < heads; ++h) in[size_t(h)].x = x + int64_t(h) * cols, in[size_t(h)].ldx = ldx;
    } else {
        constexpr int per_task = 16;  // tokens; tiles lie in no task but one
        const int pieces = ceil_div(n, per_task);
        on.parallel_for(heads * pieces, [&](int task, int) {
            const int h = task / pieces, t0 = task % pieces * per_task, t1 = std::min(n, t0 + per_task);
            const QuantX& codes = in[size_t(h)].codes;
            on.linear.quantize(x + int64_t(t0) * ldx + int64_t(h) * cols, ldx, &codes, t0, t1, 0, codes.blocks);
        });
    }
    ExpertTasks tasks;
    tasks.cut(all, w, 0, w.matrices().groups());
    const ThreadScratch scratch = thread_scratch(on, matmul_scratch);
    on.parallel_for(tasks.count(), [&](int task, int thread) {
        const auto [h, g0, g1, t0, t1] = tasks.piece(task);
        const Out out{y + int64_t(h) * rows, ldy, 0, nullptr, nullptr, 0, {}};
        product_task(on.linear, in[size_t(h)], w.matrices(), out, g0, g1, t0, t1, scratch.of(thread), h);
    });
}

}  // namespace

void head_linear(Backend& on, const Experts& w, const float* x, int n, float* y) {
    for (int t = 0; t < n; t += most_tokens) {
        const int64_t at = int64_t(t) * w.n();
        run_piece(on, w, x + at * w.cols(), std::min(n - t, most_tokens), y + at * w.rows());
    }
}

}  // namespace mixkv
