// A measurement, not a kernel: see probe.cpp.
#pragma once

#include <cstddef>

namespace mixkv {

// Bytes a second that all threads together read from memory, in one pass over n_bytes that no cache holds.
double read_bandwidth(size_t n_bytes);

}  // namespace mixkv
