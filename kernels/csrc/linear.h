// Products of activations and packed weights on the pool: what layers (layers.h) are made of.
// Everything here takes plain pointers and runs in the turn of the backend it is given; the *_bind.cpp check shapes and
// make arrays.
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

// (n, cols) rows at x, normalised first where there is a norm, or times the sigmoid of `gate` (n, cols) where that is
// given, as float and, if asked, as codes.
Activations prepare(Backend& on, const float* x, int n, int cols, const Norm* norm, const float* gate, bool quantized,
                    ActivationMemory& mem);

// What happens to a product once it has its bias, in the task that made it: y[t] = scale by_token[t] y[t] + residual[t],
// then cap tanh(y / cap).
struct After {
    const float* by_token = nullptr;  // (n)
    float scale = 1.0f, cap = 0.0f;   // no cap
    const float* residual = nullptr;  // (n, rows)
};
struct Product {
    const Weight* w;
    Out out;
    After after{};
};
// All products of the same activations in one parallel region.
void multiply(Backend& on, const Activations& a, const std::vector<Product>& products);

// For who cuts work himself. Tokens and groups of rows of one task:
int token_chunk(const Weight& w, int n);
int group_chunk(const Weight& w, int n);
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// How wide the tiles of n rows' codes are.
inline int tile_width(int n) { return n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : n <= 8 ? 8 : 16; }

// Groups g0..g1 x tokens t0..t1 of one product, by one of the matrices of w; scratch: matmul_scratch bytes of the calling
// thread's own.
void product_task(const Ops& ops, const Activations& a, const Weight& w, const Out& out, int g0, int g1, int t0, int t1,
                  void* scratch, int matrix = 0);

// Scratch for each thread of the pool, until the next such call.
struct ThreadScratch {
    uint8_t* base;
    size_t each;
    uint8_t* of(int thread) const { return base + size_t(thread) * each; }
};
ThreadScratch thread_scratch(Backend& on, size_t bytes);

}  // namespace mixkv
