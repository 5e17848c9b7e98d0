// The function table of the linear kernels: one instance per instruction set, filled in isa/linear_table.cpp, looked up by
// each backend for its own. Another family of kernels (attention) has its own struct and table in the same manner:
//
//   attn_ops.h           struct AttnOps { ... pointers ... };  MIXKV_DECLARE_TABLES(AttnOps, attn_table)
//   backend.cpp (glue)   MIXKV_DEFINE_LOOKUP(AttnOps, attn_table, attn_ops)      -> const AttnOps& attn_ops(Isa isa);
//   isa/attn_table.cpp   namespace mixkv::MIXKV_ISA { extern const AttnOps attn_table = {...}; }
//
// Only plain types cross this border: the isa sources see no std templates (see CMakeLists.txt).
#pragma once

#include <stdint.h>

#include "isa_tables.h"
#include "packed.h"

namespace mixkv {

// Activations (n, cols) rounded to int8: each row's blocks of 32 columns have d = max|x| / 127 and codes
// round-to-nearest-even(x / d). One rule for every n, kernel and instruction set: results cannot depend on them.
// Stored in tiles of `width` rows (1, 2, 4, 8 or 16; missing rows are zeros): q [tile][block][row][32],
// d [tile][block][row], sum [tile][block][half][row] with the sums of the codes of both halves of 16 columns.
struct QuantX {
    int8_t* q;
    float* d;
    int32_t* sum;
    int n, width, blocks;
};

// Where a product goes: y[t * ldy + row - row0] = acc + bias[row] + residual[t * ldr + row]; bias, residual may be
// null.
struct Out {
    float* y;
    int64_t ldy;
    int row0;
    const float* bias;
    const float* residual;
    int64_t ldr;
};

constexpr int max_tokens = 512;  // of one call of matmul_q
constexpr size_t matmul_scratch = 32 * 512 + size_t(max_tokens) * group_rows * sizeof(float);  // see linear_amx.h

struct Ops {
    // y[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i], for n rows of dim floats; y may be x
    void (*rms_norm)(const float* x, const float* gain, float eps, int n, int dim, float* y);
    // Rows t0..t1 of blocks b0..b1 of `out` from x, whose row 0 is row t0 and column 0 is column 32 b0.
    void (*quantize)(const float* x, int64_t ldx, const QuantX* out, int t0, int t1, int b0, int b1);
    // g[i] = silu(g[i]) * u[i]
    void (*silu_mul)(float* g, const float* u, int n);
    // In place on one head: pairs (2i, 2i+1) or (i, i + half) turned by the angles whose cos and sin are given
    void (*rope)(float* x, const float* cos, const float* sin, int half, int interleaved);
    // Groups g0..g1 x rows t0..t1 of activations; t0 is a multiple of x->width. scratch: matmul_scratch bytes,
    // aligned to 64, of the calling thread's own; at most max_tokens rows
    void (*matmul_q[n_quant_formats])(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,
                                      void* scratch);
    // The same with float activations x (row 0 is row t0): float formats, and quantized ones in exact mode
    void (*matmul_f[n_formats])(const Packed* w, const float* x, int64_t ldx, int g0, int g1, int t0, int t1,
                                const Out* out);
    // For tests: the exact integer dot products, out [t][block][half][row] of group g, half 1 zero where subs == 1
    void (*idots[n_quant_formats])(const Packed* w, const QuantX* x, int g, int32_t* out);
};

MIXKV_DECLARE_TABLES(Ops, linear_table)

}  // namespace mixkv
