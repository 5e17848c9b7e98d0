// Products of quantized weights and int8 activations.
//
// For every row and token the order is the same on all paths, whatever the number of tokens: for each block of 32
// columns the exact integer dot product (of each half where the format has two scales), then
//     acc = fma(float(dot), d_weight * d_x, acc)      and, with minimums, acc = fma(m_weight, d_x * sum_x, acc)
// in the order of blocks. That is what makes one token's result bit-identical alone and in a prompt of 512.
//
// Few tokens: tiles of 1, 2, 4 or 8 stream the weights once; the weights' codes never leave the registers.
// Many: tiles of 8 per pass over a group (its 16 rows stay in L1/L2), or AMX tiles of 16 (linear_amx.h).
#include "linear_formats.h"
#include "linear_out.h"
#include "linear_tables.h"
#if defined(__AMX_INT8__)
#include "linear_amx.h"
#endif

namespace mixkv::MIXKV_ISA {

// Weights are read once, in order; this far ahead of use (bytes) they are fetched into the second cache. Into the first,
// or half as far ahead, generating takes 5 % longer (docs/log.md).
constexpr int prefetch_ahead = 4096;

// The sums of the activations' codes that dot_init wants, for half h (or the whole block where there is one scale).
template <class F>
MIXKV_INLINE int32_t code_sum(const int32_t* sum, int width, int h) {
    return F::subs == 2 ? sum[h * width] : sum[0] + sum[width];
}

// M tokens x G groups of one panel: the operands of one block.
template <class F, int M, int G, int j>
MIXKV_INLINE void add_quad(I16 (&dots)[M][G][F::subs], const uint8_t* q, const int8_t* x) {
    constexpr int h = F::subs == 2 ? j / 4 : 0;
    MIXKV_UNROLL
    for (int g = 0; g < G; ++g) {
        const B64 w = F::template quad<j>(q + F::block_bytes * g);
        MIXKV_UNROLL
        for (int t = 0; t < M; ++t) dots[t][g][h] = dot<F::zero, j>(dots[t][g][h], w, x + 32 * t + 4 * j);
    }
}

template <class F, int M, int G>
MIXKV_INLINE void block_dots(I16 (&dots)[M][G][F::subs], const uint8_t* q, const int8_t* x,
                             const int32_t* sum, int width) {
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t)
        MIXKV_UNROLL
        for (int h = 0; h < F::subs; ++h) {
            const I16 start = dot_init<F::zero>(code_sum<F>(sum + t, width, h));
            MIXKV_UNROLL
            for (int g = 0; g < G; ++g) dots[t][g][h] = start;
        }
    add_quad<F, M, G, 0>(dots, q, x);
    add_quad<F, M, G, 1>(dots, q, x);
    add_quad<F, M, G, 2>(dots, q, x);
    add_quad<F, M, G, 3>(dots, q, x);
    add_quad<F, M, G, 4>(dots, q, x);
    add_quad<F, M, G, 5>(dots, q, x);
    add_quad<F, M, G, 6>(dots, q, x);
    add_quad<F, M, G, 7>(dots, q, x);
}

// The lines of scales that are fetched of a panel to come; from there on they are read in order, which the CPU sees.
constexpr int scales_ahead = 512;

// M tokens, from row t0 of the activations (inside one of their tiles), times G groups of one panel from `group` on; g1:
// where the call's groups end.
template <class F, int M, int G>
static void tile(const Packed* w, const QuantX* x, int group, int g1, int t0, int t1, const Out* out) {
    const int nb = x->blocks, width = x->width;
    const size_t start = size_t(t0 / width) * size_t(nb) * size_t(width), row = size_t(t0 % width);
    const int8_t* xq = x->q + 32 * (start + row);
    const float* xd = x->d + start + row;
    const int32_t* xs = x->sum + 2 * start + row;
    const uint8_t* q = w->q_of(group, F::block_bytes);
    const uint8_t* s = w->s_of(group, F::unit_bytes);
    F16 acc[M][G];
    MIXKV_UNROLL
    for (int t = 0; t < M; ++t)
        MIXKV_UNROLL
        for (int g = 0; g < G; ++g) acc[t][g] = set16(0.0f);
    const uint8_t* fetch = q + prefetch_ahead * (panel_groups / G);
    constexpr int blocks_ahead = (prefetch_ahead * (panel_groups / G) + F::block_step - 1) / F::block_step;
    const int turn = out->next.q && group + G >= g1 ? (nb > blocks_ahead ? nb - blocks_ahead : 0) : -1;
    for (int b = 0; b < nb; ++b) {
        if (b == turn) {
            fetch = out->next.q;
            for (int i = 0; i < scales_ahead; i += 64) __builtin_prefetch(out->next.s + i, 0, 2);
        }
        MIXKV_UNROLL
        for (int i = 0; i < G * F::block_bytes; i += 64) __builtin_prefetch(fetch + i, 0, 2);
        fetch += F::block_step;
        I16 dots[M][G][F::subs];
        block_dots<F, M, G>(dots, q, xq, xs, width);
        MIXKV_UNROLL
        for (int g = 0; g < G; ++g) {
            F16 d[F::subs], m[F::subs];
            F::scales(s + F::unit_bytes * g, b, d, m);
            MIXKV_UNROLL
            for (int t = 0; t < M; ++t)
                MIXKV_UNROLL
                for (int h = 0; h < F::subs; ++h) {
                    acc[t][g] = fma16(to_float(dots[t][g][h]), mul(d[h], set16(xd[t])), acc[t][g]);
                    if constexpr (F::has_min)
                        acc[t][g] = fma16(m[h], set16(xd[t] * float(code_sum<F>(xs + t, width, h))), acc[t][g]);
                }
        }
        q += F::block_step;
        xq += 32 * width;
        xd += width;
        xs += 2 * width;
    }
    for (int t = 0; t < M && t0 + t < t1; ++t)
        for (int g = 0; g < G; ++g) put(out, w->rows, group + g, t0 + t, acc[t][g]);
}

// The widest tile: what the registers hold, and what each tier's share of compile time is worth.
#if defined(__AVX512VNNI__)
constexpr int widest = 8;
#else
constexpr int widest = 4;
#endif

template <class F>
static void tiles(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out) {
    if (t1 - t0 == 1 && g0 % panel_groups == 0)  // one token: the groups of a panel share its operands
        for (; g0 + panel_groups <= g1 || (g0 < g1 && g1 * group_rows >= w->rows); g0 += panel_groups)
            tile<F, 1, panel_groups>(w, x, g0, g1, t0, t1, out);
#if defined(__AVX512VNNI__)
    // A few tokens: as many groups of a panel together as registers hold, so that memory is read in longer stretches.
    if (t1 - t0 <= 4 && t1 - t0 > 1)
        for (; g0 + 1 < g1 && g0 % 2 == 0; g0 += 2) {
            if (t1 - t0 == 2)
                tile<F, 2, 2>(w, x, g0, g1, t0, t1, out);
            else
                tile<F, 4, 2>(w, x, g0, g1, t0, t1, out);
        }
#endif
    for (int g = g0; g < g1; ++g)
        for (int t = t0; t < t1;) {
            const int left = t1 - t;
            if (left == 1) {
                tile<F, 1, 1>(w, x, g, g1, t, t1, out), t += 1;
            } else if (widest == 8 && left == 2) {
                if constexpr (widest == 8) tile<F, 2, 1>(w, x, g, g1, t, t1, out), t += 2;
            } else if (left <= 4 || widest == 4) {
                tile<F, 4, 1>(w, x, g, g1, t, t1, out), t += 4;
            } else {
                if constexpr (widest == 8) tile<F, 8, 1>(w, x, g, g1, t, t1, out), t += 8;
            }
        }
}

template <class F>
static void matmul_q(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,
                     [[maybe_unused]] void* scratch) {
#if defined(__AMX_INT8__)
    if (t1 - t0 >= amx_min_tokens) {  // what is left over is cheaper the other way: a tile's time is that of 16 rows
        const int left = (t1 - t0) % 16, end = left > 0 && left <= amx_least_left ? t1 - left : t1;
        amx_tiles<F>(w, x, g0, g1, t0, end, out, static_cast<uint8_t*>(scratch));
        t0 = end;
    }
#endif
    tiles<F>(w, x, g0, g1, t0, t1, out);
}

template <class F>
static void idots(const Packed* w, const QuantX* x, int g, int32_t* out) {
    for (int t = 0; t < x->n; ++t)
        for (int b = 0; b < x->blocks; ++b) {
            const size_t tile_start = size_t(t / x->width) * x->blocks * x->width, row = t % x->width;
            const size_t at = tile_start + size_t(b) * x->width;
            I16 dots[1][1][F::subs];
            block_dots<F, 1, 1>(dots, w->q_of(g, F::block_bytes) + size_t(b) * F::block_step,
                                x->q + 32 * (at + row), x->sum + 2 * at + row, x->width);
            for (int h = 0; h < 2; ++h, out += 16) {
                if (h < F::subs)
                    store_i32(out, dots[0][0][h]);
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
