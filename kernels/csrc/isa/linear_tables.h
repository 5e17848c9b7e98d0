// What the linear_*.cpp of one instruction set offer to linear_table.cpp; meanings in ops.h.
#pragma once

#include "ops.h"

namespace mixkv::MIXKV_ISA {

void norm(const float* x, const Norm* norm, int n, int dim, float* y);
void quantize(const float* x, int64_t ldx, const QuantX* out, int t0, int t1, int b0, int b1);
void activate(const Activation* activation, float* g, const float* u, int n);
void gate(const float* h, const float* gate, int n, float* y);
float token_gate(const float* h, const float* w, int n);
void scale(float* y, float factor, const float* residual, int n);
void cap(float* y, float cap, int n);
void rope(float* x, const float* cos, const float* sin, int half, int interleaved);

#define MIXKV_DECLARE_Q(name, ...)                                                                      \
    void matmul_q_##name(const Packed*, const QuantX*, int g0, int g1, int t0, int t1, const Out*, void*); \
    void idots_##name(const Packed*, const QuantX*, int g, int32_t* out);
#define MIXKV_DECLARE_F(name, ...) \
    void matmul_f_##name(const Packed*, const float* x, int64_t ldx, int g0, int g1, int t0, int t1, const Out*);
MIXKV_QUANT_FORMATS(MIXKV_DECLARE_Q)
MIXKV_QUANT_FORMATS(MIXKV_DECLARE_F)
MIXKV_FLOAT_FORMATS(MIXKV_DECLARE_F)

}  // namespace mixkv::MIXKV_ISA
