// The function table of the linear kernels: one instance per instruction set, filled in isa/linear_table.cpp, chosen at
// run time by ops(). Another family of kernels (attention) has its own struct and table in the same manner:
//
//   attn_ops.h           struct AttnOps { ... pointers ... };  MIXKV_DECLARE_TABLES(AttnOps, attn_table)
//   attn_ops.cpp (glue)  MIXKV_DEFINE_LOOKUP(AttnOps, attn_table, attn_ops)      -> const AttnOps& attn_ops();
//   isa/attn_table.cpp   namespace mixkv::MIXKV_ISA { extern const AttnOps attn_table = {...}; }
//
// Only plain types cross this border: the isa sources see no std templates (see CMakeLists.txt).
#pragma once

#include <stdint.h>

#include "isa_tables.h"

namespace mixkv {

struct Ops {
    // y[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i], for n rows of dim floats
    void (*rms_norm)(const float* x, const float* gain, float eps, int n, int dim, float* y);
};

MIXKV_DECLARE_TABLES(Ops, linear_table)
const Ops& ops();

}  // namespace mixkv
