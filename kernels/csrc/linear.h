// Products of activations and packed weights on the pool, and the fused pieces of a layer that are made of them.
// Everything here takes plain pointers and runs in the turn of the backend it is given; linear_bind.cpp checks shapes and makes arrays.
//
// Work is cut into fixed tasks (a few groups of rows x a chunk of tokens); see linear.cpp for the sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "weight.h"

namespace mixkv {

// Rows of activations in the forms that the weights want.
struct Activations {
    const float* x = nullptr;  // (n, cols), rows ldx apart; null where only codes were asked for
    int64_t ldx = 0;
    QuantX codes{};            // valid where `quantized`
    bool quantized = false;
    int n = 0, cols = 0;
};

// (n, cols) rows at x, RMS-normalised first where gain is given, as float and, if asked, as codes.
Activations prepare(Backend& on, const float* x, int n, int cols, const float* gain, float eps, bool quantized,
                    ActivationMemory& mem);

struct Product {
    const Weight* w;
    Out out;
};
// All products of the same activations in one parallel region.
void multiply(Backend& on, const Activations& a, const std::vector<Product>& products);

struct QKV {
    const Weight *q, *k, *v;
    const float *norm, *bq, *bk, *bv, *q_norm, *k_norm;  // all but norm may be null
    float eps;
    std::vector<float> inv_freq;
    bool interleaved;
    double rope_scale;
    int n_heads, n_kv_heads, head_dim;
    // x (n, dim) at positions (n); q (n, n_heads head_dim), k, v (n, n_kv_heads .)
    void run(Backend& on, const float* x, int n, const int64_t* positions, float* q_out, float* k_out, float* v_out) const;
};

struct FFN {
    const Weight *gate, *up, *down;
    const float *norm, *gate_bias, *up_bias, *down_bias;  // all but norm may be null
    float eps;
    void run(Backend& on, const float* x, int n, float* out) const;  // out = x + down(silu(gate h) * up h)
};

}  // namespace mixkv
