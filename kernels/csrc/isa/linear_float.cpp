// Products with float32 activations: float weights, and quantized weights in exact mode (dequantized a block at a
// time). One order for every number of tokens: acc = fma(x[k], w[k], acc) with k rising, a single chain for each row
// and token. Independent chains for the pipelines come from several tokens, or several groups of rows where there is
// one token.
#include "linear_formats.h"
#include "linear_out.h"
#include "linear_tables.h"

namespace mixkv::MIXKV_ISA {

// Tokens at a time where there are many: as many as have room for their sums in registers.
#if defined(__aarch64__)
constexpr int widest = 4;
#else
constexpr int widest = 8;
#endif

struct Float_F32 {
    static constexpr int bytes = 4;
    MIXKV_INLINE F16 load(const uint8_t* p) { return load16((const float*)p); }
};
struct Float_F16 {
    static constexpr int bytes = 2;
    MIXKV_INLINE F16 load(const uint8_t* p) { return load_f16(p); }
};
struct Float_BF16 {
    static constexpr int bytes = 2;
    MIXKV_INLINE F16 load(const uint8_t* p) { return load_bf16(p); }
};

// M tokens x G groups of one panel from `group` on. Tokens from t1 on are computed from row t1 - 1 and not stored.
template <class L, int M, int G>
static void tile(const Packed* w, const float* x, int64_t ldx, int group, int t0, int t, int t1, const Out* out) {
    const float* row[M];
    F16 acc[M][G];
    MIXKV_UNROLL
    for (int i = 0; i < M; ++i) {
        row[i] = x + ldx * ((t + i < t1 ? t + i : t1 - 1) - t0);
        MIXKV_UNROLL
        for (int g = 0; g < G; ++g) acc[i][g] = set16(0.0f);
    }
    const uint8_t* q = w->q_of(group, group_rows * L::bytes);
    for (int k = 0; k < w->cols; ++k, q += panel_groups * group_rows * L::bytes) {
        MIXKV_UNROLL
        for (int g = 0; g < G; ++g) {
            const F16 wk = L::load(q + group_rows * L::bytes * g);
            MIXKV_UNROLL
            for (int i = 0; i < M; ++i) acc[i][g] = fma16(set16(row[i][k]), wk, acc[i][g]);
        }
    }
    for (int i = 0; i < M && t + i < t1; ++i)
        for (int g = 0; g < G; ++g) put(out, w->rows, group + g, t + i, acc[i][g]);
}

template <class L>
static void matmul_float(const Packed* w, const float* x, int64_t ldx, int g0, int g1, int t0, int t1,
                         const Out* out) {
    if (t1 - t0 == 1 && g0 % panel_groups == 0)
        for (; g0 + panel_groups <= g1 || (g0 < g1 && g1 * group_rows >= w->rows); g0 += panel_groups)
            tile<L, 1, panel_groups>(w, x, ldx, g0, t0, t0, t1, out);
    for (int g = g0; g < g1; ++g)
        for (int t = t0; t < t1;) {
            if (t1 - t <= 2) {
                tile<L, 2, 1>(w, x, ldx, g, t0, t, t1, out), t += 2;
            } else {
                tile<L, widest, 1>(w, x, ldx, g, t0, t, t1, out), t += widest;
            }
        }
}

// A block as float32 [32 columns][16 rows]: d * (code - zero) + m, rounded as GGML rounds it.
template <class F, int j>
MIXKV_INLINE void decode_quad(const uint8_t* q, const F16* d, const F16* m, float* out) {
    constexpr int h = F::subs == 2 ? j / 4 : 0;
    const B64 v = F::template quad<j>(q);
    const I16 codes[4] = {byte_of<0>(v), byte_of<1>(v), byte_of<2>(v), byte_of<3>(v)};
    MIXKV_UNROLL
    for (int i = 0; i < 4; ++i) {
        F16 f = mul(d[h], sub(to_float(codes[i]), set16(float(F::zero))));
        if (F::has_min) f = add(f, m[h]);
        store16(out + 16 * (4 * j + i), f);
    }
}
template <class F>
static void decode_block(const uint8_t* q, const uint8_t* s, int b, float* out) {
    F16 d[F::subs], m[F::subs];
    F::scales(s, b, d, m);
    q += size_t(b) * F::block_step;
    decode_quad<F, 0>(q, d, m, out);
    decode_quad<F, 1>(q, d, m, out);
    decode_quad<F, 2>(q, d, m, out);
    decode_quad<F, 3>(q, d, m, out);
    decode_quad<F, 4>(q, d, m, out);
    decode_quad<F, 5>(q, d, m, out);
    decode_quad<F, 6>(q, d, m, out);
    decode_quad<F, 7>(q, d, m, out);
}

template <class F, int M>
static void tile_exact(const Packed* w, const float* x, int64_t ldx, int group, int t0, int t, int t1,
                       const Out* out) {
    alignas(64) float wf[block_cols * group_rows];
    const float* row[M];
    F16 acc[M];
    MIXKV_UNROLL
    for (int i = 0; i < M; ++i) {
        row[i] = x + ldx * ((t + i < t1 ? t + i : t1 - 1) - t0);
        acc[i] = set16(0.0f);
    }
    const uint8_t* q = w->q_of(group, F::block_bytes);
    const uint8_t* s = w->s_of(group, F::unit_bytes);
    for (int b = 0; b < w->cols / block_cols; ++b) {
        decode_block<F>(q, s, b, wf);
        for (int k = 0; k < block_cols; ++k) {
            const F16 wk = load16(wf + 16 * k);
            MIXKV_UNROLL
            for (int i = 0; i < M; ++i) acc[i] = fma16(set16(row[i][block_cols * b + k]), wk, acc[i]);
        }
    }
    for (int i = 0; i < M && t + i < t1; ++i) put(out, w->rows, group, t + i, acc[i]);
}

template <class F>
static void matmul_exact(const Packed* w, const float* x, int64_t ldx, int g0, int g1, int t0, int t1,
                         const Out* out) {
    for (int g = g0; g < g1; ++g)
        for (int t = t0; t < t1;) {
            if (t1 - t == 1) {
                tile_exact<F, 1>(w, x, ldx, g, t0, t, t1, out), t += 1;
            } else {
                tile_exact<F, widest>(w, x, ldx, g, t0, t, t1, out), t += widest;
            }
        }
}

#define MIXKV_SIGNATURE(name)                                                                              \
    void matmul_f_##name(const Packed* w, const float* x, int64_t ldx, int g0, int g1, int t0, int t1,    \
                         const Out* out)
#define MIXKV_FLOAT(name, ...) \
    MIXKV_SIGNATURE(name) { matmul_float<Float_##name>(w, x, ldx, g0, g1, t0, t1, out); }
#define MIXKV_EXACT(name, ...) \
    MIXKV_SIGNATURE(name) { matmul_exact<Fmt_##name>(w, x, ldx, g0, g1, t0, t1, out); }
MIXKV_FLOAT_FORMATS(MIXKV_FLOAT)
MIXKV_QUANT_FORMATS(MIXKV_EXACT)

}  // namespace mixkv::MIXKV_ISA
