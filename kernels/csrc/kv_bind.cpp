#include "bind.h"

namespace mixkv {
void bind_kv(nb::module_&) {}
}  // namespace mixkv
