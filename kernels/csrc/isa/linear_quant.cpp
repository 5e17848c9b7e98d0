// Products of quantized weights and int8 activations.
//
// For every row and token the order is the same on all paths, whatever the number of tokens: for each block of 32
// columns the exact integer dot product (of each half where the format has two scales), then
//     acc = fma(float(dot), d_weight * d_x, acc)      and, with minimums, acc = fma(m_weight, d_x * sum_x, acc)
// in the order of blocks. That is what makes one token's result bit-identical alone and in a prompt of 512.
//
// Few tokens: tiles of 1, 2, 4 or 8 stream the weights once; the weights' codes never leave the registers.
// Many: tiles of 8 per pass over a group (its 16 rows stay in L1/L2), or AMX tiles of 16 (linear_amx.h).
#include "formats.h"
#include "linear_out.h"
#include "linear_tables.h"
#if defined(__AMX_INT8__)
#include "linear_amx.h"
#endif

namespace mixkv::MIXKV_ISA {

// Weights are read once, in order; this far ahead of use (bytes) they are fetched into L1.
constexpr int prefetch_ahead = 2048;

template <class F, int M>
struct Dots {
    I16 v[M][F::subs];
};

// The sums of the activations' codes that dot_init wants, for half h (or the whole block where there is one scale).
template <class F>
MIXKV_INLINE int32_t code_sum(const int32_t* sum, int width, int h) {
    return F::subs == 2 ? sum[h * width] : sum[0] + sum[width];
}

template <class F, int M, int j>
MIXKV_INLINE void add_quad(Dots<F, M>& dots, const uint8_t* q, const int8_t* x) {
    const B64 w = F::template quad<j>(q);
    constexpr int h = F::subs == 2 ? j / 4 : 0;
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t) dots.v[t][h] = dot<F::zero>(dots.v[t][h], w, x + 32 * t + 4 * j);
}

template <class F, int M>
MIXKV_INLINE Dots<F, M> block_dots(const uint8_t* q, const int8_t* x, const int32_t* sum, int width) {
    Dots<F, M> dots;
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t)
        MIXKV_UNROLL
        for (int h = 0; h < F::subs; ++h) dots.v[t][h] = dot_init<F::zero>(code_sum<F>(sum + t, width, h));
    add_quad<F, M, 0>(dots, q, x);
    add_quad<F, M, 1>(dots, q, x);
    add_quad<F, M, 2>(dots, q, x);
    add_quad<F, M, 3>(dots, q, x);
    add_quad<F, M, 4>(dots, q, x);
    add_quad<F, M, 5>(dots, q, x);
    add_quad<F, M, 6>(dots, q, x);
    add_quad<F, M, 7>(dots, q, x);
    return dots;
}

// M tokens, from row t0 of the activations (inside one of their tiles), times one group.
template <class F, int M>
static void tile(const Packed* w, const QuantX* x, int group, int t0, int t1, const Out* out) {
    const int nb = x->blocks, width = x->width;
    const size_t first = size_t(t0 / width) * nb * width + t0 % width;
    const int8_t* xq = x->q + 32 * first;
    const float* xd = x->d + first;
    const int32_t* xs = x->sum + 2 * (size_t(t0 / width) * nb * width) + t0 % width;
    const uint8_t* q = w->q + w->q_group * size_t(group);
    const uint8_t* s = w->s + w->s_group * size_t(group);
    F16 acc[M];
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t) acc[t] = set16(0.0f);
    for (int b = 0; b < nb; ++b) {
        MIXKV_UNROLL
        for (int i = 0; i < F::block_bytes; i += 64) __builtin_prefetch(q + prefetch_ahead + i);
        const Dots<F, M> dots = block_dots<F, M>(q, xq, xs, width);
        F16 d[F::subs], m[F::subs];
        F::scales(s, b, d, m);
        MIXKV_UNROLL
        for (int t = 0; t < M; ++t)
            MIXKV_UNROLL
            for (int h = 0; h < F::subs; ++h) {
                acc[t] = fma16(to_float(dots.v[t][h]), mul(d[h], set16(xd[t])), acc[t]);
                if (F::has_min) acc[t] = fma16(m[h], set16(xd[t] * float(code_sum<F>(xs + t, width, h))), acc[t]);
            }
        q += F::block_bytes;
        xq += 32 * width;
        xd += width;
        xs += 2 * width;
    }
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t)
        if (t0 + t < t1) put(out, w->rows, group, t0 + t, acc[t]);
}

// The widest tile: what the registers hold, and what each tier's share of compile time is worth.
#if defined(__AVX512VNNI__)
constexpr int widest = 8;
#else
constexpr int widest = 4;
#endif

template <class F>
static void tiles(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out) {
    for (int g = g0; g < g1; ++g)
        for (int t = t0; t < t1;) {
            const int left = t1 - t;
            if (left == 1) {
                tile<F, 1>(w, x, g, t, t1, out), t += 1;
            } else if (widest == 8 && left == 2) {
                if constexpr (widest == 8) tile<F, 2>(w, x, g, t, t1, out), t += 2;
            } else if (left <= 4 || widest == 4) {
                tile<F, 4>(w, x, g, t, t1, out), t += 4;
            } else {
                if constexpr (widest == 8) tile<F, 8>(w, x, g, t, t1, out), t += 8;
            }
        }
}

template <class F>
static void matmul_q(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,
                     [[maybe_unused]] void* scratch) {
#if defined(__AMX_INT8__)
    if (t1 - t0 >= amx_min_tokens) return amx_tiles<F>(w, x, g0, g1, t0, t1, out, static_cast<uint8_t*>(scratch));
#endif
    tiles<F>(w, x, g0, g1, t0, t1, out);
}

template <class F>
static void idots(const Packed* w, const QuantX* x, int g, int32_t* out) {
    for (int t = 0; t < x->n; ++t)
        for (int b = 0; b < x->blocks; ++b) {
            const size_t tile_start = size_t(t / x->width) * x->blocks * x->width, row = t % x->width;
            const size_t at = tile_start + size_t(b) * x->width;
            const Dots<F, 1> dots = block_dots<F, 1>(w->q + w->q_group * size_t(g) + size_t(b) * F::block_bytes,
                                                     x->q + 32 * (at + row), x->sum + 2 * at + row, x->width);
            for (int h = 0; h < 2; ++h, out += 16) {
                if (h < F::subs)
                    store_i32(out, dots.v[0][h]);
                else
                    memset(out, 0, 64);
            }
        }
}

#define MIXKV_DEFINE(name, ...)                                                                                       \
    void matmul_q_##name(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,           \
                         void* scratch) {                                                                            \
        matmul_q<Fmt_##name>(w, x, g0, g1, t0, t1, out, scratch);                                                    \
    }                                                                                                                 \
    void idots_##name(const Packed* w, const QuantX* x, int g, int32_t* out) { idots<Fmt_##name>(w, x, g, out); }
MIXKV_QUANT_FORMATS(MIXKV_DEFINE)

}  // namespace mixkv::MIXKV_ISA
