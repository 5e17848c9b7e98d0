// The linear kernels' function table for one instruction set.
#include "linear_tables.h"

namespace mixkv::MIXKV_ISA {

#define MIXKV_Q(name, ...) &matmul_q_##name,
#define MIXKV_F(name, ...) &matmul_f_##name,
#define MIXKV_I(name, ...) &idots_##name,
extern const Ops linear_table = {
    norm,
    quantize,
    activate,
    gate,
    token_gate,
    scale,
    cap,
    rope,
    {MIXKV_QUANT_FORMATS(MIXKV_Q)},
    {MIXKV_QUANT_FORMATS(MIXKV_F) MIXKV_FLOAT_FORMATS(MIXKV_F)},
    {MIXKV_QUANT_FORMATS(MIXKV_I)},
};

}  // namespace mixkv::MIXKV_ISA
