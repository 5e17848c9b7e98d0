#include "ops.h"

#include "cpu.h"

namespace mixkv {
MIXKV_DEFINE_LOOKUP(Ops, linear_table, ops)
}  // namespace mixkv
