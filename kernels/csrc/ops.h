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

// The first bytes of the panel that its reader will most likely read next, in both planes of packed.h; null: not known.
struct Next {
    const uint8_t *q = nullptr, *s = nullptr;
};

// Where a product goes: y[t * ldy + row - row0] = acc + bias[row] + residual[t * ldr + row]; bias, residual may be
// null. next: what to fetch ahead when the product's own weights end.
struct Out {
    float* y;
    int64_t ldy;
    int row0;
    const float* bias;
    const float* residual;
    int64_t ldr;
    Next next{};
};

// kernels/parts.py: Norm, over rows of a length that the caller knows.
struct Norm {
    const float* gain = nullptr;  // null: 1
    const float* bias = nullptr;  // null: none
    float eps = 0;
    bool centred = false;
};

// kernels/parts.py: Activation, with its numbers in their order there.
enum ActivationKind { act_silu, act_gelu, act_relu2, act_swiglu_oai, act_xielu, n_activations };
struct Activation {
    ActivationKind kind = act_silu;
    float numbers[4] = {};
};

constexpr int max_tokens = 512;  // of one call of matmul_q
constexpr size_t matmul_scratch = 32 * 512 + size_t(max_tokens) * group_rows * sizeof(float);  // see linear_amx.h

struct Ops {
    // The norm of n rows of dim floats; y may be x
    void (*norm)(const float* x, const Norm* norm, int n, int dim, float* y);
    // Rows t0..t1 of blocks b0..b1 of `out` from x, whose row 0 is row t0 and column 0 is column 32 b0.
    void (*quantize)(const float* x, int64_t ldx, const QuantX* out, int t0, int t1, int b0, int b1);
    // g[i] = activation(g[i], u[i]); u may be null, which is 1 everywhere
    void (*activate)(const Activation* activation, float* g, const float* u, int n);
    // y[i] = h[i] * sigmoid(gate[i]); y may be h
    void (*gate)(const float* h, const float* gate, int n, float* y);
    // sigmoid(h . w), of n floats
    float (*token_gate)(const float* h, const float* w, int n);
    // y[i] = factor * y[i] + residual[i], rounded twice; residual may be null
    void (*scale)(float* y, float factor, const float* residual, int n);
    // y[i] = cap * tanh(y[i] / cap)
    void (*cap)(float* y, float cap, int n);
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
