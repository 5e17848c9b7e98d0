// What recurrent mixers do between their projections, for one sequence; meanings in kernels/contract.py. Runs in the turn of
// the backend it is given.
//
// Work is cut into blocks of tokens for what has no past but the convolution's, and into strips of the state's columns for
// the scan; results do not depend on either.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"

namespace mixkv {

// A convolution with its weights turned: a row of `weight` for each tap.
struct Taps {
    std::vector<float> weight;
    Convolution conv{};
    Taps() = default;
    Taps(const float* weight, const float* bias, int channels, int kernel);  // weight (channels, kernel)
    Convolution view() const { return {weight.data(), conv.bias, conv.kernel, conv.channels}; }
};

struct Mamba2 {
    Taps taps;
    std::vector<float> a, d, dt_bias;
    Norm norm;
    bool normed;
    int n_heads, head_dim, n_groups, d_state;
    int inner() const { return n_heads * head_dim; }
    int width() const { return 2 * inner() + 2 * n_groups * d_state + n_heads; }  // of an input row
    void run(Backend& on, const float* packed, int n, const float* const before[2], float* const after[2], float* y) const;
};

struct DeltaNet {
    Taps taps;
    std::vector<float> a, dt_bias;
    Norm norm;
    float eps;
    int n_heads, n_k_heads, head_dim;
    bool tiled;
    // qkv (n, (2 n_k_heads + n_heads) head_dim), z (n, n_heads head_dim), alpha, beta (n, n_heads)
    void run(Backend& on, const float* qkv, const float* z, const float* alpha, const float* beta, int n,
             const float* const before[2], float* const after[2], float* y) const;
};

struct ShortConv {
    Taps taps;
    void run(Backend& on, const float* bcx, int n, const float* before, float* after, float* y) const;
};

}  // namespace mixkv
