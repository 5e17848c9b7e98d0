// The attention kernels of one instruction set: softmax and states here, products in attn_qk.h, attn_pv.h and (matrix
// units) attn_amx.h, work on single rows in attn_rows.h. See attn_ops.h for what each function promises.
#include "attn_ops.h"
#include "attn_pv.h"
#include "attn_qk.h"
#include "attn_expand.h"  // after attn_qk.h, whose load_k it needs
#include "attn_rows.h"
#include "attn_simd.h"
#if defined(__AMX_INT8__)
#include "attn_amx.h"
#endif

namespace mixkv::MIXKV_ISA {

static inline void scale_row(float* acc, int n, float by) {
    const V w = vset(by);
    for (int i = 0; i < n; i += 16) vstore(acc + i, vmul(vload(acc + i), w));
}

// The finished score of 16 keys: softcap, then bias or ALiBi distance times the slope.
static inline V finish_score(const SoftmaxArgs& a, V x, int query, float slope, int part) {
    if (a.softcap > 0.0f) x = vmul(vset(a.softcap), vtanh(vdiv(x, vset(a.softcap))));
    if (a.bias) {
        const V bias = vload(a.bias + query * block_keys + part * 16);
        x = vkeep_neg_inf(bias, vfma(vset(slope), bias, x));
    } else if (a.slopes) {
        x = vfma(vset(slope), vadd(vset(a.distance[query] + float(part * 16)), viota()), x);
    }
    return x;
}

// Finished scores (times log2(e) they are in base 2) in place of the products, for what is not plain.
static void finish_row(const SoftmaxArgs& a, int query, int row, float slope) {
    float* x = a.x + size_t(row) * block_keys;
    for (int i = 0; i < tiles_per_block; ++i)
        vstore(x + 16 * i, finish_score(a, vmul(vload(x + 16 * i), vset(a.scale[row])), query, slope, i));
}

// Raises the reference m of a row to the largest visible score of this block (in base 2; a NaN counts as the largest,
// so that it is not lost) and its state with it.
__attribute__((noinline)) static void raise_reference(const SoftmaxArgs& a, int query, int row, float scale) {
    const float* x = a.x + size_t(row) * block_keys;
    V y[tiles_per_block];
    bool nan = false;
    for (int i = 0; i < tiles_per_block; ++i) {
        y[i] = vlanes(vmul(vload(x + 16 * i), vset(scale)), a.first[query] - 16 * i, a.stop[query] - 16 * i, -INFINITY);
        nan |= vany_nan(y[i]);
    }
    const float most = nan ? NAN : hmax(vmax(vmax(y[0], y[1]), vmax(y[2], y[3]))), old = a.state.m[row];
    if (most <= old) return;
    a.state.m[row] = most;
    if (old == -INFINITY) return;  // nothing to rescale yet
    const float shrink = exp2_one(old - most);
    scale_row(a.state.s + row * 16, 16, shrink);
    scale_row(a.state.acc + size_t(row) * a.state.pitch, a.state.pitch, shrink);
}

// Scores minus the reference, in base 2.
template <bool partial>
static inline void relative_scores(const float* x, float scale, float m, int first, int stop, V* t) {
    for (int i = 0; i < tiles_per_block; ++i) {
        t[i] = vfma(vload(x + 16 * i), vset(scale), vset(-m));
        if (partial) t[i] = vlanes(t[i], first - 16 * i, stop - 16 * i, -INFINITY);
    }
}

template <bool partial>
static inline void softmax_row(const SoftmaxArgs& a, int query, int row, float scale) {
    float* x = a.x + size_t(row) * block_keys;
    const int first = a.first[query], stop = a.stop[query];
    V t[tiles_per_block];
    relative_scores<partial>(x, scale, a.state.m[row], first, stop, t);
    if (!vall_at_most(t[0], t[1], t[2], t[3], a.slack)) {
        raise_reference(a, query, row, scale);
        relative_scores<partial>(x, scale, a.state.m[row], first, stop, t);
        if (a.state.m[row] == -INFINITY)  // nothing visible has a weight
            for (int i = 0; i < tiles_per_block; ++i) t[i] = vset(-INFINITY);
    }
    for (int i = 0; i < tiles_per_block; ++i) {
        t[i] = vexp2(t[i]);
        vstore(x + 16 * i, t[i]);
    }
    float* s = a.state.s + row * 16;
    vstore(s, vadd(vload(s), vadd(vadd(t[0], t[1]), vadd(t[2], t[3]))));
}

static void softmax(const SoftmaxArgs& a) {
    const bool plain = !a.bias && !a.slopes && a.softcap <= 0.0f;
    for (int i = 0; i < a.n_queries; ++i) {
        if (a.first[i] >= a.stop[i]) continue;
        const bool partial = a.first[i] > 0 || a.stop[i] < block_keys;
        for (int row = i * a.group; row < (i + 1) * a.group; ++row) {
            if (!plain) finish_row(a, i, row, a.slopes ? a.slopes[row - i * a.group] : 1.0f);
            const float scale = plain ? a.scale[row] : log2_e;
            if (partial)
                softmax_row<true>(a, i, row, scale);
            else
                softmax_row<false>(a, i, row, scale);
        }
    }
}

static void merge(int n_rows, int head_dim, const StateRows& a, const StateRows& b) {
    const int pitch = padded_dim(head_dim);
    for (int r = 0; r < n_rows; ++r) {
        if (b.m[r] == -INFINITY) continue;
        const float m = a.m[r] > b.m[r] ? a.m[r] : b.m[r] == b.m[r] && a.m[r] != a.m[r] ? a.m[r] : b.m[r];
        const V wa = vset(exp2_one(a.m[r] - m)), wb = vset(exp2_one(b.m[r] - m));
        auto mix = [&](float* x, const float* y) { vstore(x, vfma(vload(y), wb, vmul(vload(x), wa))); };
        a.m[r] = m;
        mix(a.s + r * 16, b.s + r * 16);
        for (int i = 0; i < pitch; i += 16) mix(a.acc + size_t(r) * a.pitch + i, b.acc + size_t(r) * b.pitch + i);
    }
}

static float sum_lanes(const float* s) { return hsum(vload(s)); }

static void finalize_row(const float* acc, float s, int head_dim, float* out) {
    const V by = vset(s != 0.0f ? 1.0f / s : 0.0f);
    for (int i = 0; i < padded_dim(head_dim); i += 16) vstore(out + i, vmul(vload(acc + i), by));
}

#if !defined(__AMX_INT8__)
static void enter(int) {}
static void leave() {}
#define MIXKV_QK_Q4 qk_int<cache_q4_0>
#define MIXKV_PV_MATRIX_Q4 nullptr
#else
#define MIXKV_QK_Q4 qk_q4_matrix
#define MIXKV_PV_MATRIX_Q4 pv_q4_matrix
#endif
#if defined(__AMX_INT8__)
#define MIXKV_QK_BLOCK_Q8 qk_int_block<cache_q8_0>
#define MIXKV_QK_BLOCK_Q4 qk_q4_block
#elif defined(__AVX512VNNI__)
#define MIXKV_QK_BLOCK_Q8 qk_int_block<cache_q8_0>
#define MIXKV_QK_BLOCK_Q4 qk_int_block<cache_q4_0>
#else
#define MIXKV_QK_BLOCK_Q8 nullptr
#define MIXKV_QK_BLOCK_Q4 nullptr
#endif

extern const AttnOps attn_table = {
    hadamard,
    encode_row,
    decode_row,
    split_queries,
    enter,
    leave,
    {qk_float<float>, qk_float<uint16_t>, qk_int<cache_q8_0>, MIXKV_QK_Q4},
    {nullptr, nullptr, MIXKV_QK_BLOCK_Q8, MIXKV_QK_BLOCK_Q4},
    softmax,
    {pv_f32, pv_tile<cache_f16>, pv_tile<cache_q8_0>, pv_tile<cache_q4_0>},
    {nullptr, pv_whole<cache_f16>, pv_whole<cache_q8_0>, pv_whole<cache_q4_0>},
    {nullptr, nullptr, nullptr, MIXKV_PV_MATRIX_Q4},
    {values_of_floats<float>, values_of_floats<uint16_t>, values_of_q8, values_of_q4},
    merge,
    sum_lanes,
    finalize_row,
};

}  // namespace mixkv::MIXKV_ISA
