// Convolutions and scans of the recurrent mixers, and their function table.
#include "recurrent_ops.h"

#include <math.h>

#include "simd.h"

namespace mixkv::MIXKV_ISA {
namespace {

MIXKV_INLINE F16 load_cols(const float* p, int cols) { return cols == 16 ? load16(p) : load16_n(p, cols); }
MIXKV_INLINE void store_cols(float* p, F16 v, int cols) { cols == 16 ? store16(p, v) : store16_n(p, v, cols); }

void convolve(const Convolution* conv, const float* x, int64_t ldx, const float* before, int t0, int t1, int silu, float* y,
              int64_t ldy) {
    const int channels = conv->channels, kept = conv->kernel - 1;
    const F16 zero = set16(0.0f), one = set16(1.0f);
    for (int t = t0; t < t1; ++t)  // rows lie a multiple of pages apart: down a column each one would push another out
        for (int c = 0; c < channels; c += 16) {
            const int cols = channels - c < 16 ? channels - c : 16;
            F16 sum = zero;
            for (int j = 0; j <= kept; ++j) {
                const int row = t - kept + j;
                const float* from = row < 0 ? before + int64_t(row + kept) * channels + c : x + row * ldx + c;
                sum = fma16(load_cols(from, cols), load_cols(conv->weight + int64_t(j) * channels + c, cols), sum);
            }
            if (conv->bias) sum = add(sum, load_cols(conv->bias + c, cols));
            if (silu) sum = div16(sum, add(one, exp16(sub(zero, sum))));
            store_cols(y + t * ldy + c, sum, cols);
        }
}

void multiply(const float* a, const float* b, int n, float* y) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store16(y + i, mul(load16(a + i), load16(b + i)));
    if (i < n) store16_n(y + i, mul(load16_n(a + i, n - i), load16_n(b + i, n - i)), n - i);
}

void unit(float* x, int n, float eps, float scale) {
    F16 sum = set16(0.0f);
    int i = 0;
    for (; i + 16 <= n; i += 16) sum = fma16(load16(x + i), load16(x + i), sum);
    if (i < n) sum = fma16(load16_n(x + i, n - i), load16_n(x + i, n - i), sum);
    const float length = sqrtf(reduce_add(sum));
    const F16 factor = set16((length < eps ? 1.0f / eps : 1.0f / length) * scale);
    for (i = 0; i + 16 <= n; i += 16) store16(x + i, mul(load16(x + i), factor));
    if (i < n) store16_n(x + i, mul(load16_n(x + i, n - i), factor), n - i);
}

struct Sums {  // of rows 0, 4, 8 ...; 1, 5, 9 ...; and so on
    F16 of[4] = {set16(0.0f), set16(0.0f), set16(0.0f), set16(0.0f)};
    F16 total() const { return add(add(of[0], of[1]), add(of[2], of[3])); }
};

// f(i, which of the four sums), which is a constant wherever it stands: sums that are looked up do not stay in registers.
template <class F>
MIXKV_INLINE void each_row(int n, F&& f) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        f(i, 0);
        f(i + 1, 1);
        f(i + 2, 2);
        f(i + 3, 3);
    }
    if (i < n) f(i, 0);
    if (i + 1 < n) f(i + 1, 1);
    if (i + 2 < n) f(i + 2, 2);
}

// A strip is W vectors wide: what a row's numbers are multiplied by is read once for all of them.
template <int W>
struct Strip {
    const Scan s;  // a copy that no store can change
    int cols(int w) const { return s.cols - 16 * w < 16 ? s.cols - 16 * w : 16; }
    float* at(int i, int w) const { return s.strip + 16 * (W * i + w); }
    void take() const {
        for (int i = 0; i < s.n_in; ++i)
            for (int w = 0; w < W; ++w) store16(at(i, w), load_cols(s.before + int64_t(i) * s.width + 16 * w, cols(w)));
    }
    void give() const {
        for (int i = 0; i < s.n_in; ++i)
            for (int w = 0; w < W; ++w) store_cols(s.after + int64_t(i) * s.width + 16 * w, load16(at(i, w)), cols(w));
    }
    F16 value(int t, int w) const { return load_cols(s.v + t * s.ldv + 16 * w, cols(w)); }
    void result(int t, int w, F16 y) const { store_cols(s.y + t * s.ldy + 16 * w, y, cols(w)); }
};

template <int W>
MIXKV_INLINE void mamba(const Scan* scan) {
    const Strip<W> strip{*scan};
    const Scan& s = strip.s;
    strip.take();
    for (int t = 0; t < s.n; ++t) {
        const float *k = s.k + t * s.ldk, *q = s.q + t * s.ldk;
        const F16 decay = set16(s.decay[t * s.ld_head]), step = set16(s.step[t * s.ld_head]);
        F16 v[W], input[W];
        MIXKV_UNROLL
        for (int w = 0; w < W; ++w) v[w] = strip.value(t, w), input[w] = mul(step, v[w]);
        Sums y[W];
        each_row(s.n_in, [&](int i, int j) __attribute__((always_inline)) {
            const F16 key = set16(k[i]), query = set16(q[i]);
            MIXKV_UNROLL
            for (int w = 0; w < W; ++w) {
                const F16 row = fma16(key, input[w], mul(load16(strip.at(i, w)), decay));
                store16(strip.at(i, w), row);
                y[w].of[j] = fma16(row, query, y[w].of[j]);
            }
        });
        MIXKV_UNROLL
        for (int w = 0; w < W; ++w) strip.result(t, w, fma16(set16(s.skip), v[w], y[w].total()));
    }
    strip.give();
}

// A token changes a row and at once adds what the next token's key finds in it: each row is read and written once a token.
// What a key finds is summed before the decay, which multiplies the sum.
template <int W>
MIXKV_INLINE void delta(const Scan* scan) {
    const Strip<W> strip{*scan};
    const Scan& s = strip.s;
    strip.take();
    Sums held[W];
    each_row(s.n > 0 ? s.n_in : 0, [&](int i, int j) __attribute__((always_inline)) {
        MIXKV_UNROLL
        for (int w = 0; w < W; ++w) held[w].of[j] = fma16(load16(strip.at(i, w)), set16(s.k[i]), held[w].of[j]);
    });
    for (int t = 0; t < s.n; ++t) {
        const float *k = s.k + t * s.ldk, *q = s.q + t * s.ldk, *next = t + 1 < s.n ? k + s.ldk : k;
        const F16 decay = set16(s.decay[t * s.ld_head]), step = set16(s.step[t * s.ld_head]);
        F16 change[W];
        MIXKV_UNROLL
        for (int w = 0; w < W; ++w) change[w] = mul(step, sub(strip.value(t, w), mul(decay, held[w].total())));
        if (t + 2 < s.n)
            for (int i = 0; i < s.n_in; i += 16) __builtin_prefetch(next + s.ldk + i), __builtin_prefetch(q + s.ldk + i);
        Sums y[W], found[W];
        each_row(s.n_in, [&](int i, int j) __attribute__((always_inline)) {
            const F16 key = set16(k[i]), query = set16(q[i]), next_key = set16(next[i]);
            MIXKV_UNROLL
            for (int w = 0; w < W; ++w) {
                const F16 row = fma16(key, change[w], mul(load16(strip.at(i, w)), decay));
                store16(strip.at(i, w), row);
                y[w].of[j] = fma16(row, query, y[w].of[j]);
                found[w].of[j] = fma16(row, next_key, found[w].of[j]);
            }
        });
        MIXKV_UNROLL
        for (int w = 0; w < W; ++w) {
            held[w] = found[w];
            strip.result(t, w, y[w].total());
        }
    }
    strip.give();
}

void scan_mamba(const Scan* s) { s->cols > 16 ? mamba<2>(s) : mamba<1>(s); }
void scan_delta(const Scan* s) { s->cols > 16 ? delta<2>(s) : delta<1>(s); }

}  // namespace

extern const RecurrentOps recurrent_table = {convolve, multiply, unit, scan_mamba, scan_delta};

}  // namespace mixkv::MIXKV_ISA
