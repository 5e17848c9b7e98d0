#include "backend.h"

namespace mixkv {
namespace {
MIXKV_DEFINE_LOOKUP(Ops, linear_table, linear_ops)
MIXKV_DEFINE_LOOKUP(AttnOps, attn_table, attn_ops)
MIXKV_DEFINE_LOOKUP(RecurrentOps, recurrent_table, recurrent_ops)
}  // namespace

Backend::Backend(Isa isa_, int n_threads)
    : isa(isa_), linear(linear_ops(isa_)), attn(attn_ops(isa_)), recurrent(recurrent_ops(isa_)), pool(n_threads), attention(n_threads) {}

}  // namespace mixkv
