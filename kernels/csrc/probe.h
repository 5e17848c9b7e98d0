// A measurement, not a kernel: see probe.cpp.
#pragma once

#include <cstddef>

#include "backend.h"

namespace mixkv {

// Bytes a second that all threads together read from memory, in one pass over n_bytes that no cache holds.
double read_bandwidth(Backend& on, size_t n_bytes);

}  // namespace mixkv
