// The attention kernels of one instruction set: softmax and states here, products in attn_qk.h, attn_pv.h and (matrix
// units) attn_amx.h, work on single rows in attn_rows.h. See attn_ops.h for what each function promises.
#include "attn_ops.h"
#include "attn_pv.h"
#include "attn_qk.h"
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

// The state of a row after its maximum has risen to m.
static void raise_max(const StateRows& state, int row, float m) {
    const float shrink = exp2_one(state.m[row] - m);
    scale_row(state.s + row * 16, 16, shrink);
    scale_row(state.acc + size_t(row) * state.pitch, state.pitch, shrink);
    state.m[row] = m;
}

// Four times 16 scores (times `scale`: in base 2) of the visible keys; a NaN among them becomes the maximum.
static float block_max(const V* x, float scale, int first, int stop) {
    V y[tiles_per_block];
    bool nan = false;
    for (int i = 0; i < tiles_per_block; ++i) {
        y[i] = vlanes(vmul(x[i], vset(scale)), first - 16 * i, stop - 16 * i, -INFINITY);
        nan |= vany_nan(y[i]);
    }
    return nan ? NAN : hmax(vmax(vmax(y[0], y[1]), vmax(y[2], y[3])));
}

// The maximum rarely rises after the first blocks: it is looked for only where some score exceeds it.
static inline void softmax_row(const SoftmaxArgs& a, int query, int row, float slope) {
    float* weights = a.x + size_t(row) * block_keys;
    const int first = a.first[query], stop = a.stop[query];
    const bool partial = first > 0 || stop < block_keys, plain = !a.bias && !a.slopes && a.softcap <= 0.0f;
    const float scale = plain ? a.scale[row] : log2_e;
    V x[tiles_per_block], t[tiles_per_block];
    for (int i = 0; i < tiles_per_block; ++i) {
        x[i] = vload(weights + 16 * i);
        if (!plain) x[i] = finish_score(a, vmul(x[i], vset(a.scale[row])), query, slope, i);
    }
    auto relative = [&](float m) {
        for (int i = 0; i < tiles_per_block; ++i) {
            t[i] = vfma(x[i], vset(scale), vset(-m));
            if (partial) t[i] = vlanes(t[i], first - 16 * i, stop - 16 * i, -INFINITY);
        }
    };
    relative(a.state.m[row]);
    if (!vall_at_most_zero(t[0], t[1], t[2], t[3])) {
        const float most = block_max(x, scale, first, stop);
        if (!(most <= a.state.m[row])) raise_max(a.state, row, most);
        relative(a.state.m[row]);
    }
    for (int i = 0; i < tiles_per_block; ++i) {
        t[i] = vexp2(t[i]);
        vstore(weights + 16 * i, t[i]);
    }
    float* s = a.state.s + row * 16;
    vstore(s, vadd(vload(s), vadd(vadd(t[0], t[1]), vadd(t[2], t[3]))));
}

static void softmax(const SoftmaxArgs& a) {
    for (int i = 0; i < a.n_queries; ++i) {
        if (a.first[i] >= a.stop[i]) continue;
        for (int g = 0; g < a.group; ++g) softmax_row(a, i, i * a.group + g, a.slopes ? a.slopes[g] : 1.0f);
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
#define MIXKV_QK_BLOCK_Q4 nullptr
#define MIXKV_PV_BLOCK_Q4 nullptr
#else
#define MIXKV_QK_Q4 qk_q4_matrix
#define MIXKV_QK_BLOCK_Q4 qk_q4_block
#define MIXKV_PV_BLOCK_Q4 pv_q4_matrix
#endif

extern const AttnOps attn_table = {
    hadamard,
    encode_row,
    decode_row,
    split_queries,
    enter,
    leave,
    {qk_float<float>, qk_float<uint16_t>, qk_int<cache_q8_0>, MIXKV_QK_Q4},
    {nullptr, nullptr, nullptr, MIXKV_QK_BLOCK_Q4},
    softmax,
    {pv_f32, pv_f16, pv_q8_0, pv_q4_0},
    {nullptr, nullptr, nullptr, MIXKV_PV_BLOCK_Q4},
    merge,
    sum_lanes,
    finalize_row,
};

}  // namespace mixkv::MIXKV_ISA
