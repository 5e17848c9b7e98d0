// The attention kernels of one instruction set: softmax and states here, products in attn_qk.h and attn_pv.h, work on
// single rows in attn_rows.h. See attn_ops.h for what each function promises.
#include "attn_ops.h"
#include "attn_pv.h"
#include "attn_qk.h"
#include "attn_rows.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

static inline void scale_row(float* acc, int pitch, float by) {
    const V w = vset(by);
    for (int i = 0; i < pitch; i += 16) vstore(acc + i, vmul(vload(acc + i), w));
}

// The finished score of 16 keys: softcap, then bias or ALiBi distance times the slope, then the visible range.
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

static void softmax_row(const SoftmaxArgs& a, int query, int row, float slope) {
    float* x = a.x + size_t(row) * block_keys;
    const int first = a.first[query], stop = a.stop[query];
    const bool partial = first > 0 || stop < block_keys, plain = !a.bias && !a.slopes && a.softcap <= 0.0f;
    V p[tiles_per_block];
    for (int i = 0; i < tiles_per_block; ++i) {
        p[i] = vload(x + 16 * i);
        if (!plain) p[i] = finish_score(a, p[i], query, slope, i);
        if (partial) p[i] = vlanes(p[i], first - 16 * i, stop - 16 * i, -INFINITY);
    }
    const float old = a.state.m[row];
    const float most = hmax(vmax(vmax(p[0], p[1]), vmax(p[2], p[3])));
    const float m = most > old ? most : old;
    if (m == -INFINITY) {
        for (int i = 0; i < tiles_per_block; ++i) vstore(x + 16 * i, vset(0.0f));
        return;
    }
    for (int i = 0; i < tiles_per_block; ++i) {
        p[i] = vexp(vsub(p[i], vset(m)));
        vstore(x + 16 * i, p[i]);
    }
    const float sum = hsum(vadd(vadd(p[0], p[1]), vadd(p[2], p[3])));
    if (m > old) {
        const float shrink = exp_one(old - m);
        a.state.s[row] *= shrink;
        scale_row(a.state.acc + size_t(row) * a.state.pitch, a.state.pitch, shrink);
        a.state.m[row] = m;
    }
    a.state.s[row] += sum;
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
        const float m = a.m[r] > b.m[r] ? a.m[r] : b.m[r];
        const float wa = exp_one(a.m[r] - m), wb = exp_one(b.m[r] - m);
        a.m[r] = m;
        a.s[r] = a.s[r] * wa + b.s[r] * wb;
        float* x = a.acc + size_t(r) * a.pitch;
        const float* y = b.acc + size_t(r) * b.pitch;
        for (int i = 0; i < pitch; i += 16)
            vstore(x + i, vfma(vload(y + i), vset(wb), vmul(vload(x + i), vset(wa))));
    }
}

static void finalize_row(const float* acc, float s, int head_dim, float* out) {
    const V by = vset(s != 0.0f ? 1.0f / s : 0.0f);
    for (int i = 0; i < padded_dim(head_dim); i += 16) vstore(out + i, vmul(vload(acc + i), by));
}

extern const AttnOps attn_table = {
    hadamard,
    encode_row,
    decode_row,
    split_queries,
    {qk_float<float>, qk_float<uint16_t>, qk_int<cache_q8_0>, qk_int<cache_q4_0>},
    softmax,
    {pv_f32, pv_f16, pv_q8_0, pv_q4_0},
    merge,
    finalize_row,
};

}  // namespace mixkv::MIXKV_ISA
