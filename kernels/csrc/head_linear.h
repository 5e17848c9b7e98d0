// Products of each head's rows with a matrix of its own (kernels/contract.py: HeadLinear).
#pragma once

#include "experts.h"

namespace mixkv {

// x (n, w.n(), w.cols()), y (n, w.n(), w.rows()).
void head_linear(Backend& on, const Experts& w, const float* x, int n, float* y);

}  // namespace mixkv
