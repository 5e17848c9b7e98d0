#include "attn_ops.h"

#include "cpu.h"

namespace mixkv {
MIXKV_DEFINE_LOOKUP(AttnOps, attn_table, attn_ops)
}  // namespace mixkv
